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
from benchmarks.sweep_models import Built, Subject, build
from torch_featviz.capture import capture

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
    assert found["kernels"].text == "2 kinds"


class Doubled:
    """Activations of which one layer's are not its own."""

    def __init__(self, acts):
        self.acts = acts

    def __iter__(self):
        return iter(self.acts)

    def calls(self, name):
        return [2 * value if name == "b" else value for value in self.acts.calls(name)]


class Doubling:
    def __init__(self, *args, **options):
        self.block = capture(*args, **options)

    def __enter__(self):
        return Doubled(self.block.__enter__())

    def __exit__(self, *error):
        return self.block.__exit__(*error)


def test_other_values_are_seen(built, monkeypatch):
    monkeypatch.setattr(fv, "capture", Doubling)
    assert sweep_checks.look_at(built)["capture"][:2] == ("wrong", "other values: b")


@pytest.mark.parametrize(
    ("layer", "why"), [("a", "a, but relu (1, 6, 16, 24) is later"), ("b", "b, but relu (1, 8, 16, 24) is later")]
)
def test_an_earlier_layer_is_seen(built, monkeypatch, layer, why):
    attribute = fv.attribute
    monkeypatch.setattr(fv, "attribute", lambda *args, **options: attribute(*args, **options, layer=layer))
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
    monkeypatch.setattr(fv, "attribute", lambda *args, **options: attribute(*args, **options, layer="b"))
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
    monkeypatch.setattr(fv, "attribute", lambda *args, **options: attribute(*args, **options, layer=layer))
    assert sweep_checks.look_at(net)["heatmap"][:2] == ("wrong", why)


def test_another_class_of_a_segmenter_is_seen(monkeypatch):
    torch.manual_seed(0)
    net, attribute = Built(Segmenter().eval(), torch.rand(1, 3, 32, 48), pixels=True), fv.attribute
    labels = net()["out"].argmax(1).unique(return_counts=True)
    rare = int(labels[0][labels[1].argmin()])
    monkeypatch.setattr(fv, "attribute", lambda *args, **options: attribute(*args, **options, target=rare))
    assert "is explained, which is not the largest" in sweep_checks.look_at(net)["heatmap"].text


def test_a_refusal_where_there_is_a_gradient_is_seen(built, monkeypatch):
    def refuse(*args, **options):
        raise fv.errors.OptionError("no.")

    monkeypatch.setattr(fv, "attribute", refuse)
    assert sweep_checks.look_at(built)["heatmap"][:2] == ("wrong", "no.")
    with torch.no_grad():
        built.net.head.weight.zero_()
    assert sweep_checks.look_at(built)["heatmap"][:2] == ("right", "no gradient, as is said")


@pytest.mark.parametrize("size", ["8×192", "24×16", "16×8"])
def test_a_strip_is_seen(monkeypatch, built, size):
    drawn = SimpleNamespace(labels=("a  Conv2d", "b  Conv2d"), captions=("16×24  ±1", f"{size}  ±0.5"))
    monkeypatch.setattr(fv, "overview", lambda *_, **__: drawn)
    assert sweep_checks.look_at(built)["overview"][:2] == ("wrong", f"b is drawn as {size} of 32×48")


def test_another_kernel_is_seen(built, monkeypatch):
    drawn = sweep_checks._drawn
    monkeypatch.setattr(sweep_checks, "_drawn", lambda net, name: drawn(net, name).flip(-1))
    found = sweep_checks.look_at(built)["kernels"]
    assert found.state == "wrong"
    assert "away from its impulse response" in found.text


def test_any_error_is_a_fault(built, monkeypatch):
    monkeypatch.setattr(fv, "shapes", lambda *_, **__: 1 // 0)
    assert sweep_checks.look_at(built)["shapes"][:2] == (
        "wrong",
        "ZeroDivisionError: integer division or modulo by zero",
    )


def test_rows_are_resumed_and_limits_kept(tmp_path, monkeypatch):
    def look(subject, answer):
        if subject.name == "slow":
            time.sleep(60)
        answer.send({"parameters": 1, "size": [3, 8, 8], "found": {}})

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
