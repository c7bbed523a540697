"""Sameness to the bit, held against the bytes of NumPy arrays."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_featviz.prove.bits import apart, distance, same

NUMBERS = [0.0, -0.0, 1.0, math.nan, math.inf, -math.inf, 2**-149]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.int32, torch.bool]


def held(tensor):
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return str(tensor.dtype), tuple(tensor.shape), np.ascontiguousarray(tensor.numpy()).tobytes()


@given(st.lists(st.tuples(*[st.sampled_from(NUMBERS)] * 2), max_size=4), st.sampled_from(DTYPES))
def test_same_is_having_the_same_bytes(pairs, dtype):
    whole = dtype in (torch.int32, torch.bool)
    one, other = (
        (torch.tensor([0 if whole and not math.isfinite(x) else x for x in xs]) for xs in zip(*pairs, strict=True))
        if pairs
        else (torch.zeros(0), torch.zeros(0))
    )
    one, other = one.to(dtype), other.to(dtype)
    assert same(one, other) == (held(one) == held(other))
    assert same(one, one.clone())


@pytest.mark.parametrize(
    "other",
    [torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2).to_sparse(), [torch.zeros(3, 2)]],
)
def test_tensors_of_other_kinds_are_not_the_same(other):
    assert not same(torch.zeros(3, 2), other)


def test_memory_layouts_do_not_count():
    x = torch.arange(24.0).view(1, 2, 3, 4)
    assert same(x, x.to(memory_format=torch.channels_last))
    assert same(x.mT, x.mT.contiguous())


def test_containers_are_the_same_item_by_item():
    assert same({"a": [torch.ones(1), 1, math.nan]}, {"a": [torch.ones(1), 1, math.nan]})
    assert not same({"a": 1}, {"b": 1})
    assert not same([1, 2], [1])
    assert not same(1, True)
    assert same(torch.ones(2).to_sparse(), torch.ones(2).to_sparse())
    assert not same(torch.ones(2).to_sparse(), torch.tensor([1.0, 2.0]).to_sparse())
    assert same(torch.ones(2, device="meta"), torch.ones(2, device="meta"))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_values_are_compared_as_they_are():
    one, other = (torch.quantize_per_tensor(torch.tensor([1.0, x]), 0.5, 0, torch.quint8) for x in (2.0, 4.0))
    assert same(one, one.clone())
    assert not same(one, other)
    assert distance([one], [other]) == 2


def test_how_far_tensors_are_apart():
    one, other = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    assert distance([one, one], [other, one]) == 0.5
    assert apart([one], [other]) == "values differ by up to 0.5"
    assert distance([one], [one, one]) == distance([one], [one[:1]]) == distance([one], [None]) == math.inf
    assert distance([one], [torch.tensor([1.0, math.nan])]) == math.inf
    assert apart([one], [one, one]) == "1 tensors became 2"
    assert apart([one], [None]) == "a tensor is gone"
    assert apart([None], [one]) == "there is a tensor where there was none"
    assert apart([one, one], [one, one.double()]) == "2, float32 became 2, float64"
