"""A list that covers a whole run in bounded memory."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_featviz.errors import OptionError
from torch_featviz.training.thinned import Thinned


def by_hand(n, keep):
    """Every item, or every second, fourth ... one: as many as leave a place for the latest; and that."""
    items, stride = list(range(n)), 1
    while len(items[::stride]) > keep - 1:
        stride *= 2
    return sorted({*items[::stride], *items[-1:]})


@given(st.integers(0, 300), st.integers(2, 40))
def test_what_is_held(n, keep):
    held = Thinned(keep)
    for item in range(n):
        held.append(item)
        assert len(held) <= keep
    assert list(held) == by_hand(n, keep)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(2, 12))
def test_one_goes_on_from_another(n, more, keep):
    first, second, whole = Thinned(keep), Thinned(keep), Thinned(keep)
    for item in range(n):
        first.append(item)
        whole.append(item)
    second.go_on_from(list(first), **first.thinning())
    for item in range(n, n + more):
        second.append(item)
        whole.append(item)
    assert list(second) == list(whole)


@pytest.mark.parametrize("keep", [1, 2.0, "2"])
def test_numbers_that_mean_nothing(keep):
    with pytest.raises(OptionError, match="keep must be an integer of at least 2"):
        Thinned(keep)


def test_another_thread_sees_each_item_once():
    """After each line of `append`, what a reader would see."""
    held, seen = Thinned(4), []

    def look(frame, event, arg):
        seen.append(list(held))
        return look

    for item in range(12):
        sys.settrace(lambda frame, event, arg: look if frame.f_code is Thinned.append.__code__ else None)
        try:
            held.append(item)
        finally:
            sys.settrace(None)
    assert len(seen) > 24
    assert all(items == sorted(set(items)) for items in seen)
