"""listing/duplicates.py: files with the same content."""

import hashlib

import numpy as np
import torch

from simsiam.data.listing.duplicates import find_first_copies


def test_copies_are_found_as_by_a_loop() -> None:
    contents = torch.randint(40, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    digests = [hashlib.sha256(str(content).encode()).digest() for content in contents]
    first = find_first_copies(np.array(digests, "V32"))
    assert first.tolist() == [contents.index(content) for content in contents]
    assert find_first_copies(np.array([], "V32")).tolist() == []
