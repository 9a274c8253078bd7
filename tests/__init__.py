"""The tests. One thread each, set before torch is imported: two workers share two cores, and sums depend on it."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
