"""The memory of the crops is used again, but never while a tensor refers to it."""

from simsiam.data.files.crop_loader import CropBuffers


def test_memory_that_nothing_refers_to_is_used_again() -> None:
    buffers = CropBuffers(views=2, size=8, pin=False)
    address = buffers.take(4).data_ptr()
    assert {buffers.take(4).data_ptr() for _ in range(5)} == {address}


def test_memory_that_a_view_or_an_array_refers_to_is_left_alone() -> None:
    buffers = CropBuffers(views=2, size=8, pin=False)
    first = buffers.take(4).zero_()
    part_of_first = first[1, 2:].flatten(1)
    del first
    array_of_second = buffers.take(4).zero_().numpy()
    for _ in range(5):
        buffers.take(4).fill_(1)
    assert part_of_first.sum() == 0 and array_of_second.sum() == 0


def test_batches_of_another_size_get_other_memory() -> None:
    buffers = CropBuffers(views=2, size=8, pin=False)
    assert [tuple(buffers.take(n).shape) for n in (4, 3, 4)] == [
        (2, 4, 3, 8, 8),
        (2, 3, 3, 8, 8),
        (2, 4, 3, 8, 8),
    ]
