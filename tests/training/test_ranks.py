"""The figures of several processes are those of one over all their data; one of them writes and warns."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training import ranks
from torch_featviz.training import History, Monitor, Sample

pytestmark = pytest.mark.skipif(torch.__version__ < (2, 9), reason="fully_shard needs a GPU in torch 2.6")


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ran(request, tmp_path_factory, forks):
    """The folder in which so many ranks left what they saw."""
    out = tmp_path_factory.mktemp("ranks")
    forks.ranks(request.param, Path(__file__).with_name("ranks.py"), out)
    return out, request.param


@pytest.fixture(scope="module")
def alone():
    net = ranks.net()
    watch = Monitor(net, every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranks.train(net, watch, slice(None))
    return watch.history


def numbers(plain, path=""):
    """All numbers of a nested dict, by their path."""
    if isinstance(plain, dict):
        return {k: v for name, each in plain.items() for k, v in numbers(each, f"{path}/{name}").items()}
    if isinstance(plain, (list, tuple)):
        return {k: v for i, each in enumerate(plain) for k, v in numbers(each, f"{path}/{i}").items()}
    return {path: float("nan") if plain is None else float(plain)}


@pytest.mark.parametrize("case", ["ddp", "fsdp", "group"])
def test_equals_one_process_over_all_data(ran, alone, case):
    out, n = ran
    said = [json.loads((out / f"{case}{rank}.json").read_text()) for rank in range(n)]
    for each in said:
        assert each["samples"] == said[0]["samples"]
        assert each["film"] == [[0, 1, 2]] * 2
    assert len(said[0]["samples"]) == len(alone) == ranks.STEPS
    for found, expected in zip(said[0]["samples"], alone, strict=True):
        a, b = numbers(found), numbers(expected.as_dict())
        assert a.keys() == b.keys()
        for name in b:
            if "/counts/" in name:  # beside the edge of a bin, where the last bit decides
                assert abs(a[name] - b[name]) <= 2, name
            else:
                np.testing.assert_allclose(a[name], b[name], rtol=2e-5, atol=1e-7, err_msg=name)
    assert Sample.from_dict(said[0]["samples"][1]).layers["0"].nan > 0


@pytest.mark.parametrize("case", ["ddp", "fsdp", "group"])
def test_the_first_rank_writes_and_warns(ran, case):
    out, n = ran
    said = [json.loads((out / f"{case}{rank}.json").read_text()) for rank in range(n)]
    again = [4] if case == "ddp" else []
    history = History.load(out / case)
    assert history.steps == [0, 1, 2, *again]
    written = [sample.as_dict() for sample in history[: ranks.STEPS]]
    assert json.loads(json.dumps(written)) == said[0]["samples"]
    assert len(list(out.glob(f"{case}/kernels/0/*.png"))) == ranks.STEPS + len(again)
    assert all(each.get("again", [4])[-1] == 4 for each in said)
    for rank, each in enumerate(said):
        assert each["found"] == said[0]["found"]
        assert each["told"] == (said[0]["found"] if rank == 0 else [])


def test_a_twin_of_a_wrapped_model_is_bare_and_of_a_sharded_one_there_is_none(ran):
    out, count = ran
    for rank in range(count):
        twins = {
            case: json.loads((out / f"{case}{rank}.json").read_text())["twin"] for case in ("ddp", "fsdp", "group")
        }
        assert twins["ddp"] == twins["group"] == "Sequential"
        assert twins["fsdp"].startswith("FSDPSequential cannot be copied (FSDP")
        assert "a new one with the same state dict" in twins["fsdp"]
