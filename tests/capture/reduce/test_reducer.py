"""What every reducer promises: fresh ones, merging, modes of autograd, one transfer, many ranks."""

import copy
import pickle

import pytest
import torch

from torch_featviz.capture.reduce import reducer
from torch_featviz.capture.reduce.histogram import Histogram
from torch_featviz.capture.reduce.moments import Moments
from torch_featviz.capture.reduce.several import Several
from torch_featviz.capture.reduce.topk import TopK
from torch_featviz.capture.reduce.transfer import fetch, to_host
from torch_featviz.errors import OptionError, ShapeError

KINDS = [Moments(), Histogram(8), TopK(3), Several(Moments(), Histogram(8))]
each = pytest.mark.parametrize("prototype", KINDS, ids=lambda kind: type(kind).__name__)


@each
def test_fresh_is_empty_and_apart(prototype, streams):
    used = streams.fed(prototype, [torch.randn(2, 3)])
    again = used.fresh()
    assert again.settings == used.settings == prototype.settings
    assert "nothing seen yet" in repr(again)
    assert "nothing seen yet" in repr(prototype)


@each
def test_input_and_other_stay_as_they_are(prototype, streams):
    output = torch.randn(4, 3, 5, 5)
    before = output.clone()
    a, b = streams.fed(prototype, [output]), streams.fed(prototype, [output + 1])
    kept = copy.deepcopy(b)
    a.merge(b)
    a.update(output)
    assert torch.equal(output, before)
    streams.agree(b, kept)


@each
def test_merging_nothing(prototype, streams):
    full, empty = streams.fed(prototype, [torch.randn(4, 3, 5)]), prototype.fresh()
    kept = copy.deepcopy(full)
    full.merge(empty)
    empty.merge(full)
    streams.agree(full, kept)
    streams.agree(empty, kept)


@each
def test_no_graph_is_kept_and_modes_mix(prototype, streams):
    outputs = [torch.randn(2, 3, 4, requires_grad=True) for _ in range(4)]
    mixed = prototype.fresh()
    mixed.update(outputs[0])
    with torch.inference_mode():
        mixed.update(outputs[1] * 1)
    mixed.update(outputs[2])
    assert not any(tensor.requires_grad for tensor in mixed._state)
    with torch.no_grad():
        mixed.update(outputs[3])
    streams.agree(mixed, streams.fed(prototype, [output.detach() for output in outputs]))
    with torch.inference_mode():
        made_inside = streams.fed(prototype, outputs[:2])
        streams.figures(made_inside)
    made_inside.update(outputs[2])
    made_inside.merge(streams.fed(prototype, outputs[3:]))
    streams.agree(made_inside, mixed, rtol=1e-6, atol=1e-6)


@each
def test_state_made_in_inference_mode_goes_on_compiled(prototype, streams):
    outputs = [torch.randn(2, 3, 4) for _ in range(3)]
    torch._dynamo.reset()
    reducer = prototype.fresh()
    forward = torch.compile(lambda values: reducer.update(values), fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        forward(outputs[0])
    forward(outputs[1])
    with torch.inference_mode():
        forward(outputs[2])
    streams.agree(reducer, streams.fed(prototype, outputs), rtol=1e-5, atol=1e-5)


@each
def test_pickles(prototype, streams):
    used = streams.fed(prototype, [torch.randn(4, 3, 5)])
    streams.agree(pickle.loads(pickle.dumps(used)), used)


@each
def test_reading_is_one_transfer_until_the_next_update(prototype, streams, monkeypatch):
    transfers = []
    monkeypatch.setattr(reducer, "to_host", lambda state: transfers.append(1) or to_host(state))
    used = streams.fed(prototype, [torch.randn(4, 3, 5)])
    streams.figures(used)
    streams.figures(used)
    assert len(transfers) == 1
    used.update(torch.randn(4, 3, 5))
    streams.figures(used)
    assert len(transfers) == 2


def test_bits_survive_the_transfer():
    state = (
        torch.tensor([[1e-45, -0.0], [torch.inf, 0.1]]),
        torch.tensor([2**62, -1]),
        torch.tensor(0.1, dtype=torch.float64),
    )
    host = to_host(state)
    assert [tensor.dtype for tensor in host] == [torch.float64, torch.int64, torch.float64]
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(host, state, strict=True))


def test_no_update_waits_for_a_device(streams):
    """On the meta device nothing has a value: whatever asked for one would raise."""
    for prototype in KINDS:
        reducer = prototype.fresh()
        for _ in range(2):
            reducer.update(torch.randn(4, 3, 5, 5, device="meta"))
        reducer.merge(reducer)
        assert all(tensor.is_meta for tensor in reducer._state)


def test_what_cannot_be_merged(streams):
    with pytest.raises(OptionError, match="only statistics of the same kind and settings can be merged, got TopK"):
        TopK(3).merge(TopK(4))
    with pytest.raises(OptionError, match="the same kind and settings"):
        Moments().merge(TopK())
    a, b = streams.fed(Moments(), [torch.zeros(2, 3)]), streams.fed(Moments(), [torch.zeros(2, 4)])
    with pytest.raises(ShapeError, match="must have the same number of channels, got 4 after 3"):
        a.merge(b)


SCRIPT = """
import pickle, sys, time, torch
from torch import distributed as dist
from torch_featviz.capture.reduce.histogram import Histogram
from torch_featviz.capture.reduce.moments import Moments
from torch_featviz.capture.reduce.reducer import across_ranks
from torch_featviz.capture.reduce.several import Several
from torch_featviz.capture.reduce.topk import TopK
from torch_featviz.errors import OptionError

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
data = torch.load(sys.argv[1])
mine = data.tensor_split(ranks)[rank]
for kind in (Moments(), Histogram(8), TopK(3), Several(Moments(), Histogram(8))):
    states = {"all": kind.fresh(), "none": kind.fresh()}
    states["all"].update(mine)
    if rank == ranks - 1:
        states["last"] = kind.fresh()
        states["last"].update(mine)
    before = pickle.dumps(states)
    merged = across_ranks(states)
    assert pickle.dumps(states) == before
    torch.save(merged, f"{sys.argv[2]}/{type(kind).__name__}{rank}.pt")
try:
    across_ranks({"conv": TopK(1 + rank)})
    raise SystemExit("ranks that differ were merged")
except OptionError as error:
    assert "layer 'conv' differs between ranks" in str(error)
time.sleep(0.3)  # torch 2.6 waits for ever for threads that have not let go of their tensors yet
dist.destroy_process_group()
"""


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_equal_one_process(ranks, tmp_path, streams, forks):
    data = torch.randn(11, 3, 4, 4).round(decimals=1)
    data[5, 1, 2, 2] = torch.nan
    torch.save(data, tmp_path / "data.pt")
    forks.ranks(ranks, SCRIPT, tmp_path / "data.pt", tmp_path)
    for kind in KINDS:
        name = type(kind).__name__
        results = [torch.load(tmp_path / f"{name}{rank}.pt", weights_only=False) for rank in range(ranks)]
        for merged in results:
            assert list(merged) == ["all", "none", "last"]
            assert "nothing seen yet" in repr(merged["none"])
            for layer in ("all", "last"):
                streams.agree(merged[layer], results[0][layer])
        streams.agree(results[0]["all"], streams.fed(kind, [data]), rtol=1e-5, atol=1e-6)
        streams.agree(results[0]["last"], streams.fed(kind, [data.tensor_split(ranks)[-1]]))


def test_one_transfer_brings_each_tensor(monkeypatch):
    """As from a GPU: parts of one tensor, of two lengths of numbers, even and odd many, and none."""
    base, narrow = torch.randn(4, 6, dtype=torch.float64), torch.randn(9, 5)
    whole = [base[:, :2], base[:, 2:], torch.arange(7), narrow[:2], narrow[3], torch.randn(3), torch.tensor(2.5)]
    whole += [narrow.t()[1:], torch.tensor(3), torch.randn(2) > 0, torch.arange(3, dtype=torch.int32), narrow.half()]
    transfers, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: transfers.append(tensor.numel()) or cpu(tensor))
    for given in (whole, whole[:3], whole[3:], whole[5:], [torch.zeros(0), *whole], [torch.zeros(0)], []):
        transfers.clear()
        for got, tensor in zip(to_host(given), given, strict=True):
            assert got.dtype == (torch.float64 if tensor.is_floating_point() else torch.int64)
            assert torch.equal(got, tensor.to(got.dtype))
        assert len(transfers) <= 1


def test_what_is_fetched_may_change_meanwhile():
    given = [torch.ones(2, 3), torch.tensor(1.0), torch.ones(4, dtype=torch.float64)]
    read = fetch(given)
    for tensor in given:
        tensor.zero_()
    assert all((array == 1).all() for array in read())
