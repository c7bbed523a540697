"""The sweep over models: twelve of them, and that each of its checks sees a fault."""

import json
import multiprocessing
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import torch_featviz as fv
from benchmarks import sweep, sweep_checks
from benchmarks import sweep_attention as others
from benchmarks.sweep_models import Built, Subject, build
from torch_featviz.capture import capture
from torch_featviz.prove import figures, kernels, maps

pytest.importorskip("timm")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries that are not ours


@pytest.mark.parametrize("name", sweep.TWELVE)
def test_twelve_models(name):
    found = sweep_checks.look_at(build(name))
    assert not {check: finding.text for check, finding in found.items() if finding.state == "wrong"}
    assert all(finding.state == "right" for check, finding in found.items() if check in ("capture", "summary"))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 1, 1, groups=2), nn.Linear(8, 4)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.head(self.relu(self.b(self.relu(self.a(x)))).mean((2, 3)))


@pytest.fixture
def built():
    torch.manual_seed(0)
    return Built(Net().eval(), torch.rand(1, 3, 32, 48))


def test_nothing_is_wrong_with_a_plain_network(built):
    found = sweep_checks.look_at(built)
    assert {check: finding.state for check, finding in found.items()} == dict.fromkeys(sweep.QUESTIONS, "right")
    assert found["heatmap"].text == "relu#2"
    assert found["attention"].text == "none"
    assert found["kernels"].text == "2 kinds"


class Doubled:
    """Activations of which one layer's are not its own."""

    def __init__(self, acts):
        self.acts = acts

    def __iter__(self):
        return iter(self.acts)

    def __getattr__(self, name):
        return getattr(self.acts, name)

    def calls(self, name):
        return [2 * value if name == "b" else value for value in self.acts.calls(name)]


class Doubling:
    def __init__(self, *args, **options):
        self.block = capture(*args, **options)

    def __enter__(self):
        return Doubled(self.block.__enter__())

    def __exit__(self, *error):
        return self.block.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self.block, name)


def test_other_values_are_seen(built, monkeypatch):
    monkeypatch.setattr("torch_featviz.prove.runs.capture", Doubling)
    found = sweep_checks.look_at(built, ["capture"])["capture"]
    assert found.state == "wrong"
    assert found.text.startswith("captured values: ")


@pytest.mark.parametrize(
    ("layer", "why"), [("a", "a, but relu (1, 6, 16, 24) is later"), ("b", "b, but relu (1, 8, 16, 24) is later")]
)
def test_an_earlier_layer_is_seen(built, monkeypatch, layer, why):
    attribute = fv.attribute
    monkeypatch.setattr(maps, "attribute", lambda *args, **options: attribute(*args, **options, layer=layer))
    assert sweep_checks.look_at(built)["heatmap"][:2] == ("wrong", why)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.cat([self.a(x), self.b(x)], 1).mean((2, 3)))


def test_one_branch_of_two_is_seen(monkeypatch):
    torch.manual_seed(0)
    two, attribute = Built(Branches().eval(), torch.rand(1, 3, 32, 48)), fv.attribute
    assert sweep_checks.look_at(two)["heatmap"][:2] == ("right", "a.cat")
    monkeypatch.setattr(maps, "attribute", lambda *args, **options: attribute(*args, **options, layer="b"))
    assert sweep_checks.look_at(two)["heatmap"][:2] == ("wrong", "b: the answer passes beside it")


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1), nn.Conv2d(14, 4, 1)
        self.mix = nn.Conv2d(14, 14, 3, 1, 1)

    def forward(self, x):
        fine = self.a(x).tanh()
        both = torch.cat([fine, nn.functional.interpolate(self.b(fine).tanh(), fine.shape[2:])], 1)
        return {"out": self.head(self.mix(both).tanh())}


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        ("b", "b: the answer passes beside it"),
        (["a", "b", "mix"], "a and b and mix: each by its own maximum, then the larger: a is behind the others"),
    ],
)
def test_other_maps_of_a_segmenter_are_seen(monkeypatch, layer, why):
    torch.manual_seed(0)
    net, attribute = Built(Segmenter().eval(), torch.rand(1, 3, 32, 48), pixels=True), fv.attribute
    assert sweep_checks.look_at(net)["heatmap"][0] == "right"
    monkeypatch.setattr(maps, "attribute", lambda *args, **options: attribute(*args, **options, layer=layer))
    assert sweep_checks.look_at(net)["heatmap"][:2] == ("wrong", why)


def test_another_class_of_a_segmenter_is_seen(monkeypatch):
    torch.manual_seed(0)
    net, attribute = Built(Segmenter().eval(), torch.rand(1, 3, 32, 48), pixels=True), fv.attribute
    labels = net()["out"].argmax(1).unique(return_counts=True)
    rare = int(labels[0][labels[1].argmin()])
    monkeypatch.setattr(maps, "attribute", lambda *args, **options: attribute(*args, **options, target=rare))
    assert "is explained, which is not the largest" in sweep_checks.look_at(net)["heatmap"].text


def test_a_refusal_where_there_is_a_gradient_is_seen(built, monkeypatch):
    def refuse(*args, **options):
        raise fv.errors.OptionError("no.")

    monkeypatch.setattr(maps, "attribute", refuse)
    assert sweep_checks.look_at(built)["heatmap"][:2] == ("wrong", "no.")
    with torch.no_grad():
        built.net.head.weight.zero_()
    assert sweep_checks.look_at(built)["heatmap"][:2] == ("right", "no gradient, as is said")


class Attending(nn.Module):
    """Attention within windows of four tokens or fewer, fused or written out, of pixels and of classes."""

    def __init__(self, heads=2, fused=True):
        super().__init__()
        self.embed, self.attn = nn.Conv2d(3, 8, 8, 8), nn.Sequential(Heads(heads, fused))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).mT  # 1 24 8
        windows = tokens.reshape(-1, 4, 8)
        return self.head(self.attn(windows).reshape(tokens.shape).mean(1)).softmax(-1)


class Heads(nn.Module):
    def __init__(self, heads, fused):
        super().__init__()
        self.heads, self.fused, self.qkv = heads, fused, nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if self.fused:
            x = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            x = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        return x.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("fused", [True, False])
def test_attention_in_windows(fused):
    torch.manual_seed(0)
    net = Built(Attending(fused=fused).eval(), torch.rand(1, 3, 32, 48))
    assert sweep_checks.look_at(net, ["attention"])["attention"][:2] == ("right", "1 layers × 2 heads")


class Attentions(Doubled):
    """Attention weights of which something is wrong."""

    def __init__(self, acts, wrong):
        super().__init__(acts)
        self.wrong = wrong

    def calls(self, name):
        return [self.wrong(weights) for weights in self.acts.calls(name)]

    def __getitem__(self, name):
        return self.calls(name)[0]


def swapped(weights):
    return weights.flip(1)


def of_another_scale(weights):
    return (weights.log() / 2).softmax(-1)


@pytest.mark.parametrize("wrong", [swapped, of_another_scale])
@pytest.mark.parametrize("fused", [True, False])
def test_other_weights_are_seen(monkeypatch, wrong, fused):
    class Wrong(Doubling):
        def __enter__(self):
            return Attentions(self.block.__enter__(), wrong)

    torch.manual_seed(0)
    net = Built(Attending(fused=fused).eval(), torch.rand(1, 3, 32, 48))
    with torch.no_grad():
        net.net.attn[0].qkv.weight.mul_(8)  # far from even
    monkeypatch.setattr(fv, "capture", Wrong)
    found = sweep_checks.look_at(net, ["attention"])["attention"]
    assert found.state == "wrong"
    assert "from the softmax in its forward" in found.text


def test_attention_that_was_left_out_is_told(monkeypatch):
    capture = fv.capture

    def lazily(net, layers=None, **options):
        return capture(net, "embed" if layers is None else layers, **{**options, "of": "output"})

    torch.manual_seed(0)
    monkeypatch.setattr(fv, "capture", lazily)
    found = sweep_checks.look_at(Built(Attending().eval(), torch.rand(1, 3, 32, 48)), ["attention"])["attention"]
    assert found.state == "wrong"


def test_what_the_library_tells_is_compared(monkeypatch):
    net = build("transformers:Dinov2WithRegisters")
    monkeypatch.setattr(others, "of_transformers", lambda _: [torch.zeros(1, 4, 21, 21)] * 3)
    found = sweep_checks.look_at(net, ["attention"])["attention"]
    assert found.state == "wrong"
    assert found.text.endswith("from what transformers tells, in float64")


@pytest.mark.parametrize("size", ["8×192", "24×16", "16×8"])
def test_a_strip_is_seen(monkeypatch, built, size):
    drawn = SimpleNamespace(labels=("a  Conv2d", "b  Conv2d"), captions=("16×24  ±1", f"{size}  ±0.5"))
    monkeypatch.setattr(fv, "overview", lambda *_, **__: drawn)
    assert sweep_checks.look_at(built)["overview"][:2] == ("wrong", f"b is drawn as {size} of 32×48")


def test_another_kernel_is_seen(built, monkeypatch):
    drawn = kernels._drawn
    monkeypatch.setattr(kernels, "_drawn", lambda net, name: drawn(net, name).flip(-1))
    found = sweep_checks.look_at(built)["kernels"]
    assert found.state == "wrong"
    assert "of the largest away from its" in found.text


def test_any_error_is_a_fault(built, monkeypatch):
    monkeypatch.setattr(figures, "shapes", lambda *_, **__: 1 // 0)
    assert sweep_checks.look_at(built)["shapes"][:2] == (
        "wrong",
        "ZeroDivisionError: integer division or modulo by zero",
    )


def test_rows_are_resumed_and_limits_kept(tmp_path, monkeypatch):
    def look(subject, asked, answer):
        if subject.name == "slow":
            time.sleep(60)
        found = {check: {"state": "right", "text": subject.name, "grown": 1} for check in asked}
        answer.send({"parameters": 1, "size": [3, 8, 8], "found": found})

    rows, forks = tmp_path / "rows.jsonl", multiprocessing.get_context("fork")  # which know what is patched
    rows.write_text(json.dumps({"name": "old", "family": "f", "seconds": 1, "failed": "not done"}) + "\n")
    monkeypatch.setattr(sweep, "look", look)
    monkeypatch.setattr(sweep.multiprocessing, "get_context", lambda _: forks)
    wanted = [Subject(name, "f") for name in ("old", "slow", "new")]
    entries = sweep.sweep(wanted, rows, limit=2, total=60, processes=2)
    assert [entry["name"] for entry in entries] == ["old", "slow", "new"]
    assert [entry.get("failed") for entry in entries] == ["not done", "not done after 2 s", None]
    assert sweep.sweep(wanted, rows, limit=0, total=0, processes=1) == entries
    assert len(rows.read_text().splitlines()) == 3
    assert sweep.faults(entries) == ["old: not done", "slow: not done after 2 s"]


def test_a_question_that_is_new_is_asked_of_models_that_are_known(tmp_path, monkeypatch):
    asked_of = []

    def row(subject, asked, limit, context):
        asked_of.append(asked)
        found = {check: {"state": "right", "text": check, "grown": 1} for check in asked}
        return {"name": subject.name, "family": "f", "seconds": 1.5, "parameters": 1, "size": [3, 8, 8], "found": found}

    monkeypatch.setattr(sweep, "row", row)
    rows, wanted = tmp_path / "rows.jsonl", [Subject("a", "f")]
    options = {"limit": 2, "total": 60, "processes": 1}
    sweep.sweep(wanted, rows, asked=("capture", "shapes"), **options)
    for _ in range(2):
        (entry,) = sweep.sweep(wanted, rows, asked=("capture", "attention", "shapes"), **options)
        assert (list(entry["found"]), entry["seconds"]) == (["capture", "shapes", "attention"], 3)
    assert asked_of == [["capture", "shapes"], ["attention"]]
