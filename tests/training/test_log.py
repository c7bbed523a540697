"""What waits for a GPU ends up as what is read at once: here a CPU's figures are made to wait, too."""

import contextlib
import gc
import subprocess
import sys
import threading
import time
import warnings
import weakref
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as dist
from torch import nn

from tests.training.kept import Kept
from torch_featviz.errors import FindingWarning, LayerError
from torch_featviz.training import History, Monitor, look, writer


@pytest.fixture
def waits(monkeypatch):
    """Figures are read a step later, as those of a GPU."""
    monkeypatch.setattr(look, "_is_on_its_way", lambda tensors: True)


class Named(nn.Module):
    def forward(self, x):
        return {"x": x}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.fc, self.named = nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Linear(48, 2), Named()

    def forward(self, x):
        return self.named(self.fc(self.act(self.conv(x)).flatten(1)))["x"]


WATCHED = ["conv", "act", "fc", "named"]
ACTIONS = ("plain", "raises", "no optimizer", "broken", "large", "back", "read", "film", "resume", "close")


def film_of(watch, of):
    try:
        film = watch.film("conv", of)
    except LayerError:  # nothing was seen yet
        return None
    return film.steps, film.numpy().tobytes()


def told(plan, every, folder, *, later):
    """All that a training says: which stumbles, goes back, is read from and resumed as `plan` has it."""
    torch.manual_seed(0)
    net, probe, sink = Net(), torch.randn(2, 1, 6, 6), Kept()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def monitor():
        return Monitor(net, WATCHED, every=every, probe=probe, to=[sink, folder], keep=4)

    with mock.patch.object(look, "_is_on_its_way", return_value=later), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        watch, read, number = monitor(), [], 0
        for action in plan:
            number = max(0, number - 2) if action == "back" else number
            if action == "broken":
                nn.init.constant_(net.fc.bias, torch.nan)
            if action == "resume":
                state = watch.state_dict()
                watch.close()
                watch = monitor()
                watch.load_state_dict(state)
            try:
                with watch.step(number):
                    net(torch.randn(4, 1, 6, 6)).square().mean().backward()
                    if action == "raises":
                        raise KeyboardInterrupt
                    if action == "large":
                        net.fc.weight.grad *= 1e4
                    if action != "no optimizer":
                        optimizer.step()
                    optimizer.zero_grad()
            except KeyboardInterrupt:
                read.append("raised")
            if action == "read":
                read.append(([sample.as_dict() for sample in watch.history], watch.findings))
            if action == "film":
                read.append(film_of(watch, "maps"))
            if action == "close":
                watch.close()
            number += 1
        watch.close()
        read += [str(watch.state_dict()), watch.findings, film_of(watch, "kernels"), film_of(watch, "maps")]
    records = [(each.as_dict(), {name: one.png() for name, one in each.pictures.items()}) for each in sink.records]
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return read, records, files, [(each.category, str(each.message)) for each in said]


@settings(max_examples=12)
@given(st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=9), st.integers(1, 3))
def test_all_that_is_told_is_the_same(tmp_path_factory, plan, every):
    now, later = (told(plan, every, tmp_path_factory.mktemp("run"), later=later) for later in (False, True))
    for each, other in zip(now, later, strict=True):
        assert each == other


def test_a_plan_that_tells_much(tmp_path):
    """So that the test above compares something."""
    plan = ["plain", "read", "raises", "back", "resume", "broken", "plain"]
    now, later = (told(plan, 1, tmp_path / str(later), later=later) for later in (False, True))
    assert now == later
    _, records, files, said = later
    assert len(records) == 7
    assert any("samples.jsonl" in name for name in files)
    texts = " ".join(text for _, text in said)
    for expected in ("no figures of layer 'named'", "is the first with NaN", "exist already"):
        assert expected in texts


def looked_at(net, watch, x, number=None):
    with watch.step(number):
        net(x).square().mean().backward()


def test_findings_are_told_when_the_next_step_ends(waits):
    net, x = nn.Linear(2, 2), torch.full((1, 2), torch.nan)
    watch = Monitor(net, every=2)
    looked_at(net, watch, x)  # says nothing yet
    with pytest.warns(FindingWarning, match="The input has 2 NaN and 0 infinite of 2 values at step 0"):
        looked_at(net, watch, x)  # which is not looked at
    assert watch.history.steps == [0]


@pytest.mark.parametrize(
    "read",
    [
        lambda watch: watch.history,
        lambda watch: watch.findings,
        lambda watch: watch.report(),
        lambda watch: watch.film(""),
        lambda watch: watch.state_dict(),
        lambda watch: watch.load_state_dict(Monitor(nn.Linear(1, 1)).state_dict()),
        lambda watch: watch.close(),
        lambda watch: watch.__exit__(),
    ],
)
def test_whoever_asks_has_the_last_step(waits, read):
    net, sink = nn.Conv2d(1, 2, 2), Kept()
    watch = Monitor(net, every=1, to=sink)
    looked_at(net, watch, torch.randn(1, 1, 3, 3))
    assert watch._log.history.steps == []
    read(watch)
    assert watch._log._waiting is None
    watch.close()
    assert [record.step for record in sink.records] == [0]


def test_nothing_of_the_network_is_held_meanwhile(waits):
    net, held = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), []
    net[0].register_forward_hook(lambda module, args, output: held.append(weakref.ref(output)))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    watch = Monitor(net, every=1)
    with watch.step():
        net(torch.ones(2, 3)).sum().backward()
        held.append(weakref.ref(net[0].weight.grad))
        optimizer.step()
        optimizer.zero_grad()
    assert watch._log._waiting is not None
    assert len(held) == 2
    assert not [one for one in held if one() is not None]
    expected = float(net[0].weight.detach().double().norm())
    net[0].weight.data.zero_()  # what was seen of it was then
    assert watch.history[0].parameters["0.weight"].norm == pytest.approx(expected)


def test_a_monitor_that_goes_without_a_word(waits):
    net, sink, threads = nn.Linear(2, 2), Kept(), threading.active_count()
    watch = Monitor(net, every=1, to=sink)
    for _ in range(3):
        looked_at(net, watch, torch.ones(1, 2))
        assert threading.active_count() == threads + 1  # none can begin when the interpreter has ended
    assert len(sink.records) < 3
    del watch
    gc.collect()
    assert [record.step for record in sink.records] == [0, 1, 2]


SCRIPT = """
import os, sys, torch
from torch import nn
from torch_featviz.training import Monitor, look

look._is_on_its_way = lambda tensors: True
net = nn.Linear(2, 2)
watch = Monitor(net, every=1, to=sys.argv[1])
for step in range(int(sys.argv[2])):
    with watch.step():
        net(torch.full((1, 2), torch.nan if step else 1.0))
if not os.fork():
    sys.exit()  # a child that forgets to leave by os._exit
os.wait()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("steps", [1, 2])
def test_an_interpreter_that_ends_without_a_word(tmp_path, steps):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert History.load(tmp_path).steps == list(range(steps))
    assert done.stderr.count("The input has 2 NaN") == steps - 1
    assert "Traceback" not in done.stderr


def test_a_sink_that_reads_the_history(waits, monkeypatch):
    """In its own thread it gets what is there, and waits for nothing, least of all for room in its own queue."""
    monkeypatch.setattr(writer, "ROOM", 1)

    class Reads(Kept):
        def write(self, record):
            go.wait()
            self.records.append(watch.history.steps)
            read.set()

    net, sink, go, read = nn.Linear(2, 2), Reads(), threading.Event(), threading.Event()
    watch = Monitor(net, every=1, to=sink)
    for _ in range(3):  # the first is being written, the second has the only place, the third waits
        looked_at(net, watch, torch.ones(1, 2))
        time.sleep(0.05)
    go.set()
    assert read.wait(5)
    watch.close()
    assert sink.records[0] == [0, 1]
    assert len(sink.records) == 3


def test_another_thread_that_reads_meanwhile(waits):
    net, sink, ended = nn.Linear(2, 2), Kept(), threading.Event()
    watch = Monitor(net, every=1, to=sink)

    def read():
        while not ended.wait(0.001):
            steps = watch.history.steps
            assert steps == list(range(len(steps)))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):
        looked_at(net, watch, torch.ones(1, 2))
    ended.set()
    reader.join()
    watch.close()
    assert watch.history.steps == [record.step for record in sink.records] == list(range(100))


def test_what_fails_later_fails_once(waits):
    net, x = nn.Linear(2, 2), torch.full((1, 2), torch.nan)
    watch = Monitor(net, every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        looked_at(net, watch, x)
        with pytest.raises(FindingWarning):
            looked_at(net, watch, x)
        looked_at(net, watch, x)
    assert watch.history.steps == [0, 1, 2]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("inside", [True, False])
def test_where_a_training_fails_its_own_error_is_the_one_to_see(waits, monkeypatch, every, inside):
    """A GPU on which a kernel failed cannot be read from either."""
    monkeypatch.setattr(look.Look, "read", lambda self: 1 // 0)
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="the training"), Monitor(net, every=every) as watch:  # noqa: PT012
        looked_at(net, watch, torch.ones(1, 2))
        with watch.step() if inside else contextlib.nullcontext():
            raise ValueError("the training")
    watch.close()
    assert watch.history.steps == []


def test_what_cannot_be_read_is_told_once(waits, monkeypatch):
    monkeypatch.setattr(look.Look, "read", lambda self: 1 // 0)
    net = nn.Linear(2, 2)
    watch = Monitor(net, every=1)
    looked_at(net, watch, torch.ones(1, 2))
    with pytest.raises(ZeroDivisionError):
        watch.close()
    watch.close()


def test_a_group_is_never_kept_waiting(waits):
    """All ranks gather, and so have waited already."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net = nn.Linear(2, 2)
        watch = Monitor(net, every=1, group=dist.group.WORLD)
        looked_at(net, watch, torch.ones(1, 2))
        assert watch._log.history.steps == [0]
    finally:
        dist.destroy_process_group()
