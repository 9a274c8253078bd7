"""The tests.

Each test process uses one thread: two test processes share two cores, and the last digits of sums
depend on the number of threads. The variable must be set before torch is imported.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
