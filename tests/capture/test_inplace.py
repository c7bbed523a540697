"""What the network overwrites after a layer returned it: the captured value stays what the layer returned."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_featviz.capture import capture, inplace
from torch_featviz.errors import LayerError


class Scaled(nn.Module):
    """Returns a tuple and a dict, one of whose tensors its caller will write to."""

    def forward(self, x):
        return {"out": (x * 2, x.sum()), "note": "kept"}


class Step(nn.Module):
    """One random step; `kind` says how it treats memory."""

    def __init__(self, kind, shared):
        super().__init__()
        self.kind, self.shared = kind, shared
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.act = nn.ReLU(inplace=True)
        self.same = nn.Identity()
        self.scaled = Scaled()
        self.nested = nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 2, 1), nn.Hardswish(inplace=True)), nn.Dropout(0.2, True)
        )

    def forward(self, x):
        match self.kind:
            case "inplace module":
                return self.act(self.conv(x))
            case "residual +=":
                out = self.norm(self.conv(x))
                out += x
                return self.act(out)
            case "aliased by name":  # the sum sees the rectified tensor
                out = self.conv(x)
                return self.act(out) + out
            case "shared":
                return self.shared(self.shared(x).relu_())
            case "view":
                out = self.conv(x)
                out.view(-1)[::2].mul_(0.5)
                return out
            case "identity":
                out = self.same(self.conv(x))
                return F.relu(out, inplace=True)
            case "out=":
                out = self.conv(x.detach()).detach()
                return torch.add(out, 1.0, out=out)
            case "structure":
                found = self.scaled(self.conv(x))
                found["out"][0].clamp_(0, 1)
                return found["out"][0] + found["out"][1]
            case "index":
                out = self.conv(x)
                out[:, 0] = 0.0
                return out
            case "copy_":
                out = self.conv(x)
                out.copy_(x.detach())
                return self.norm(out)
            case _:
                return self.nested(x)


KINDS = [
    "inplace module", "residual +=", "aliased by name", "shared", "view", "identity", "out=", "structure", "index",
    "copy_", "nested",
]  # fmt: skip


def network(kinds):
    torch.manual_seed(len(kinds))
    shared = nn.Conv2d(2, 2, 3, padding=1)
    return nn.Sequential(*(Step(kind, shared) for kind in kinds))


def run(model, x):
    torch.manual_seed(3)
    output = model(x)
    if output.requires_grad:
        model.zero_grad()
        output.sum().backward()
    return [output, [p.grad for p in model.parameters() if p.grad is not None], list(model.buffers())]


@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from([torch.enable_grad, torch.no_grad, torch.inference_mode]),
)
def test_random_networks(oracles, kinds, training, mode):
    hooked, same = oracles
    bare = network(kinds).train(training)
    watched, oracle = copy.deepcopy(bare), copy.deepcopy(bare)
    x = torch.randn(2, 2, 4, 4)
    for _ in range(3):
        with mode():
            expected = run(bare, x)
            with capture(watched) as acts:
                actual = run(watched, x)
            _, calls = hooked(oracle, lambda: run(oracle, x))
        assert same(actual, expected)
        assert [key.partition("#")[0] for key in acts] == [name for name, _ in calls]
        assert all(same(value, kept) for value, (_, kept) in zip(acts.values(), calls, strict=True))


def test_what_is_not_overwritten_is_not_copied():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 2, 3), nn.ReLU(inplace=True))
    memory = []
    for index in (0, 1, 3):
        model[index].register_forward_hook(lambda _m, _i, out: memory.append(out.data_ptr()))
    for _ in range(2):
        memory.clear()
        with torch.no_grad(), capture(model, ["0", "1", "3"]) as acts:
            model(torch.randn(1, 1, 8, 8))
        assert [value.data_ptr() for value in acts.values()] == memory


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_who_changes_the_output_is_told(mode):
    model = nn.Sequential(nn.Linear(3, 3))
    with mode(), capture(model) as acts:
        output = model(torch.ones(1, 3))
        acts["0"]
        output.zero_()
    with pytest.raises(LayerError, match="the output of '0' was changed in place after the forward; read it earlier"):
        acts["0"]


def test_a_forward_that_changes_its_ways_is_told_and_watched_again():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.overwrite = nn.Linear(3, 3), False

        def forward(self, x):
            out = self.layer(x)
            return out.zero_() if self.overwrite else out + 1

    model, x = Fickle(), torch.ones(1, 3)
    with torch.no_grad():
        with capture(model, "layer") as acts:
            model(x)
        model.overwrite = True
        with capture(model, "layer") as acts:
            model(x)
        with pytest.raises(LayerError, match="changed in place"):
            acts["layer"]
        with capture(model, "layer") as acts:
            model(x)
        assert torch.equal(acts["layer"], model.layer(x))


def test_the_learnt_goes_with_the_model():
    model = nn.Sequential(nn.Linear(2, 2))
    with capture(model):
        model(torch.ones(1, 2))
    assert model in inplace._learnt
    gc.collect()  # models of other tests
    before = len(inplace._learnt)
    del model
    gc.collect()
    assert len(inplace._learnt) == before - 1
