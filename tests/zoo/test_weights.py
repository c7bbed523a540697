"""Weights that do not fit the network are refused before any of them is copied."""

import io
import time
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from torch_featviz.errors import WeightsError
from torch_featviz.zoo import ModelCard
from torch_featviz.zoo.weights import plain, put_state


class Masked(nn.Module):
    """Parameters, a counter, flags, and a mask that is infinite on purpose."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("flags", torch.tensor([True, False]))


def values(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def fitting():
    torch.manual_seed(1)
    return values(Masked())


NESTED = "conv.bias float32 nested for float32|Python objects .torch._utils._rebuild_nested_tensor."  # so torch 2.15
REFUSED = {
    "int8": ("conv.weight", lambda v: (v * 127).to(torch.int8), "1 of another kind: conv.weight int8 for float32"),
    "bool": ("conv.bias", lambda v: v > 0, "1 of another kind: conv.bias bool for float32"),
    "complex": ("conv.bias", lambda v: torch.complex(v, v), "of another kind: conv.bias complex64 for float32"),
    "float8": ("conv.bias", lambda v: v.to(torch.float8_e4m3fn), "conv.bias float8_e4m3fn for float32"),
    "quantised": (
        "conv.bias",
        lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
        "of another kind: conv.bias qint8 for float32",
    ),
    "sparse": ("conv.weight", torch.Tensor.to_sparse, r"conv.weight float32 sparse_coo for float32; save value.to_den"),
    "nested": ("conv.bias", lambda v: torch.nested.nested_tensor([v, v]), NESTED),
    "meta": ("conv.weight", lambda v: v.to("meta"), "1 without values: conv.weight on the meta device"),
    "shape": ("conv.bias", lambda v: v[:1], r"1 of another shape: conv.bias \(1,\) for \(2,\)"),
    "nan": ("conv.bias", lambda v: v * torch.nan, r"1 not finite: conv.bias \(2 of 2 values\)"),
    "inf": (
        "norm.running_var",
        lambda v: v.index_fill(0, torch.tensor(1), torch.inf),
        r"running_var \(1 of 2 values\)",
    ),
    "too large": ("conv.bias", lambda v: v.double() * 0 + 1e39, r"conv.bias \(2 of 2 values as float32\)"),
    "other mask": ("mask", lambda v: v.flip(0), r"1 not finite: mask \(1 of 2 values\)"),
    "counter": ("norm.num_batches_tracked", lambda v: v.float(), "num_batches_tracked float32 for int64"),
    "flags": ("flags", lambda v: v.long(), "flags int64 for bool"),
}


@pytest.mark.parametrize("harm", REFUSED)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path, harm):
    key, change, match = REFUSED[harm]
    state, model = fitting(), Masked()
    before = values(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has quantised tensors no longer than it must
        torch.save({**state, key: change(state[key])}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=match):
        ModelCard("m", lambda: model, (1, 8, 8)).load(tmp_path / "w.pt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_other_sizes_and_smaller_counters_are_taken(tmp_path, dtype):
    state = {key: v.to(dtype) if v.is_floating_point() else v for key, v in fitting().items()}
    state["norm.num_batches_tracked"] = torch.tensor(7, dtype=torch.int16)
    torch.save(state, tmp_path / "w.pt")
    loaded = ModelCard("m", Masked, (1, 8, 8)).load(tmp_path / "w.pt").state_dict()
    assert all(torch.equal(value, state[name].to(value.dtype)) for name, value in loaded.items())
    assert loaded["conv.weight"].dtype == torch.float32
    assert int(loaded["norm.num_batches_tracked"]) == 7


def test_whole_numbers_that_do_not_fit():
    model = nn.Module()
    model.register_buffer("count", torch.tensor([3], dtype=torch.uint8))
    put_state(model, {"count": torch.tensor([255])}, "m")
    assert model.count.item() == 255
    with pytest.raises(WeightsError, match="count int64 for uint8"):
        put_state(model, {"count": torch.tensor([256])}, "m")


def test_names_that_are_none_or_come_twice():
    with pytest.raises(WeightsError, match="weights for 'm' must be tensors by name"):
        put_state(nn.ReLU(), {7: torch.ones(1)}, "m")
    with pytest.raises(WeightsError, match=r"'w\.pt' holds several tensors of one name: a; save one of each"):
        plain({"_orig_mod.a": torch.ones(1), "a": torch.zeros(1)}, "w.pt")
    card = ModelCard("m", nn.ReLU, (1, 8, 8), weights=lambda: {"a": torch.ones(1), "b": torch.ones(1)}, rename=len)
    with pytest.raises(WeightsError, match="'m' holds several tensors of one name: 1"):
        card.load()


def test_a_module_that_loads_in_a_way_of_its_own():
    class Own(nn.Module):
        def _load_from_state_dict(self, *args):
            args[-1].append("not today")

    with pytest.raises(WeightsError, match=r"do not fit 'm': Error.* loading state_dict for Own"):
        put_state(Own(), {}, "m")


def test_long_names_cost_little():
    start = time.process_time()
    assert [*plain({"module." * 100_000 + "a": torch.ones(1)}, "w.pt")] == ["a"]
    with pytest.raises(WeightsError) as told:
        put_state(nn.ReLU(), {"a" * 1_000_000: torch.ones(1)}, "m")
    assert len(str(told.value)) < 400
    assert time.process_time() - start < 1


def saved():
    file = io.BytesIO()
    torch.save(fitting(), file)
    return file.getvalue()


SAVED = saved()
damage = st.lists(st.tuples(st.integers(0, len(SAVED) - 1), st.integers(0, 255)), min_size=1, max_size=8)


def damaged(changes):
    data = bytearray(SAVED)
    for place, byte in changes:
        data[place] = byte
    return bytes(data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda x: b"\x80\x02" + x + b".") | damage.map(damaged))
def test_any_bytes_as_a_file(tmp_path, data):
    (tmp_path / "w.pt").write_bytes(data)
    model = Masked()
    before = values(model)
    try:
        ModelCard("m", lambda: model, (1, 8, 8)).load(tmp_path / "w.pt")
    except WeightsError:
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    else:
        assert all(value.isfinite().all() for value in model.parameters())
