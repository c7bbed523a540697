"""Items that cannot be read are left out, counted and named, in whatever order a loader draws them."""

import gc
import itertools
import multiprocessing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Subset

from torch_featviz.errors import FeatvizWarning
from torch_featviz.model.reading import read_batches, read_items, read_numbered, unread, warn_of


class Torn(Dataset):
    """Item `i` is `i`; some cannot be read. It raises no IndexError."""

    def __init__(self, count, torn):
        self.samples = [(f"/somewhere/{i}.jpg", 0) for i in range(count)]
        self.torn = torn

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        if i in self.torn:
            raise OSError(f"file {i} is torn.\nsecond line")
        return i


class Stream(IterableDataset):
    def __iter__(self):
        return iter("abc")


def test_items_come_with_their_numbers():
    left_out = {}
    assert [*read_items(Torn(4, {0, 2}), left_out)] == [(1, 1), (3, 3)]
    assert left_out == {0: "file 0 is torn", 2: "file 2 is torn"}
    assert [*read_items(Stream(), left_out)] == [(0, "a"), (1, "b"), (2, "c")]
    assert [*read_items([5], left_out)] == [(0, 5)]
    assert [*read_numbered(Torn(9, {4}), [7, 4, 2], left_out)] == [(7, 7), (2, 2)]
    assert set(left_out) == {0, 2, 4}


@given(st.integers(1, 12), st.sets(st.integers(0, 11)), st.integers(1, 5), st.booleans(), st.booleans())
@settings(deadline=None)
def test_each_batch_has_those_of_its_items_that_can_be_read(count, torn, size, shuffle, drop):
    order = DataLoader(Torn(count, torn), size, shuffle=shuffle, drop_last=drop)
    left_out = {}
    batches = [batch.tolist() for batch in read_batches(order, left_out)]
    seen = [number for batch in batches for number in batch]
    assert all(0 < len(batch) <= size for batch in batches)
    assert not set(seen) & torn
    assert len(set(seen)) == len(seen)
    if not drop:
        assert sorted(seen) == [i for i in range(count) if i not in torn]
        assert set(left_out) == torn & set(range(count))
    if not shuffle:
        kept = count // size * size if drop else count
        whole = [[i for i in range(at, min(at + size, kept)) if i not in torn] for at in range(0, kept, size)]
        assert batches == [batch for batch in whole if batch]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_workers_lose_no_more(workers, shuffle):
    loader, left_out = DataLoader(Torn(11, {2, 3, 9}), 2, shuffle=shuffle, num_workers=workers), {}
    assert sorted(torch.cat([*read_batches(loader, left_out)]).tolist()) == [0, 1, 4, 5, 6, 7, 8, 10]
    assert set(left_out) == {2, 3, 9}


@pytest.mark.parametrize("most", [9, 3])
def test_workers_end_with_the_pass_and_not_when_garbage_is_collected(most):
    """Then each would be waited for 5 s."""
    before = set(multiprocessing.active_children())
    gc.disable()
    try:
        batches = read_batches(DataLoader(Torn(11, {2, 3, 9}), 2, num_workers=2), {})
        assert len([*itertools.islice(batches, most)]) == min(most, 5)
        batches.close()
        assert set(multiprocessing.active_children()) <= before
    finally:
        gc.enable()


def test_other_ways_to_draw():
    data, left_out = Torn(6, {1}), {}
    drawn = DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 4, drop_last=False))
    assert sorted(torch.cat([*read_batches(drawn, left_out)]).tolist()) == [0, 2, 3, 4, 5]
    pairs = DataLoader(data, batch_sampler=[[0, 1], [5, 4]])
    assert [batch.tolist() for batch in read_batches(pairs, left_out)] == [[0], [5, 4]]
    assert left_out == {1: "file 1 is torn"}
    for loader in (DataLoader(data, batch_size=None), (data[i] for i in range(3))):  # which have no numbers
        with pytest.raises(OSError, match="file 1 is torn"):
            list(read_batches(loader, left_out))


def test_other_errors_end_it():
    class Broken(Torn):
        def __getitem__(self, i):
            raise ValueError("no file's fault")

    for way in (read_items, lambda data, left_out: read_batches(DataLoader(data), left_out)):
        with pytest.raises(ValueError, match="no file's fault"):
            list(way(Broken(2, ()), {}))


def test_they_are_told_by_the_names_of_their_files():
    data = Torn(9, ())
    assert unread(data, {}) == ""
    assert unread(data, {4: ""}) == "1 file could not be read: 4.jpg"
    assert unread(DataLoader(data), {4: "", 7: ""}) == "2 files could not be read: 4.jpg, 7.jpg"
    part = Subset(Subset(data, [8, 6, 4]), [1, 2])
    assert unread(part, dict.fromkeys((0, 1))) == "2 files could not be read: 6.jpg, 4.jpg"
    assert unread(data, dict.fromkeys(range(9))) == "9 files could not be read: 0.jpg, 1.jpg, 2.jpg and 6 more"
    assert unread([1, 2], {1: ""}) == "1 file could not be read: item 1"
    data.samples[4] = ("a/\x1b[2J.jpg", 0)
    assert unread(data, {4: ""}) == r"1 file could not be read: \u001b[2J.jpg"
    data.samples[4] = ({"no": "path"}, 0)
    assert unread(data, {4: ""}) == "1 file could not be read: item 4"


def test_the_warning_has_the_reasons(recwarn):
    warn_of({})
    assert not recwarn
    with pytest.warns(
        FeatvizWarning, match=r"^4 images cannot be read and are left out: 0: why; 1: why; 2: why; \.\.\.$"
    ):
        warn_of(dict.fromkeys(range(4), "why"))
