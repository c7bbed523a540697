"""The folder: whole at any moment, gone on with after a kill, and no disk is so full that a training would stop."""

import io
import json
import math
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from torch_featviz.errors import FeatvizWarning, FileError
from torch_featviz.picture import Sheet
from torch_featviz.training import Bins, History, LayerFigures, Monitor, ParameterFigures, Sample
from torch_featviz.training.findings import Finding
from torch_featviz.training.sinks import Record
from torch_featviz.training.sinks.folder import FolderSink

BINS = Bins(-1.0, 0.5, (1, 2, 0, 4))


def record(step, mean=0.5, layer="conv.1", findings=()):
    figures = LayerFigures(mean, 1.0, -math.inf, math.inf, 0.5, 1, 4, 2, 3, BINS, None)
    parameters = {
        "conv.1.weight": ParameterFigures(9, 1.0, math.nan, math.inf, BINS, 3, 1),
        "b": ParameterFigures(1, 2.0),
    }
    picture = Sheet(torch.full((1, 3, 4, 4), step % 256, dtype=torch.uint8))
    return Record(Sample(step, {layer: figures}, parameters), findings, {f"kernels/{layer}": picture})


def test_what_is_written_is_read_back(tmp_path):
    sink = FolderSink(tmp_path / "run")
    finding = Finding(8, "dead", ("conv.1",), "<b>dead</b> – ×")
    made = [record(0), record(8, findings=(finding,)), record(16, mean=math.nan)]
    for each in made:
        sink.write(each)
    history = History.load(tmp_path / "run")
    assert history.steps == [0, 8, 16]
    assert [each.as_dict() for each in history] == [each.sample.as_dict() for each in made]  # where NaN is a word
    lines = (tmp_path / "run/samples.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert rows[1]["findings"] == [{"step": 8, "kind": "dead", "names": ["conv.1"], "text": "<b>dead</b> – ×"}]
    assert rows[0]["parameters"]["conv.1.weight"]["update_ratio"] == "inf"
    for each in made:
        path = tmp_path / f"run/kernels/conv.1/step-{each.step:08d}.png"
        picture = each.pictures["kernels/conv.1"]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(path.read_bytes()))), picture.numpy())


@pytest.mark.parametrize(("layer", "folder"), [("", "(model)"), ("a/../b", "a%2F..%2Fb"), ("é<x>", "%C3%A9%3Cx%3E")])
def test_names_stay_inside_the_folder(tmp_path, layer, folder):
    FolderSink(tmp_path / "run").write(record(0, layer=layer))
    assert [path.name for path in (tmp_path / "run/kernels").iterdir()] == [folder]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_run_that_goes_on_replaces_what_comes_after(tmp_path):
    first = FolderSink(tmp_path)
    for step in (0, 8, 16, 24):
        first.write(record(step))
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"step": 32, "lay')  # as a crash of the machine may leave it
    assert History.load(tmp_path).steps == [0, 8, 16, 24]
    first.close()
    again = FolderSink(tmp_path)
    again.write(record(16, mean=7.0))
    again.write(record(20))
    history = History.load(tmp_path)
    assert history.steps == [0, 8, 16, 20]
    assert history[2].layers["conv.1"].mean == 7.0
    assert sorted(path.name for path in tmp_path.glob("kernels/*/*")) == [f"step-{n:08d}.png" for n in (0, 8, 16, 20)]
    assert (tmp_path / "samples.jsonl").read_bytes().endswith(b"\n")


def test_what_is_no_such_folder(tmp_path):
    with pytest.raises(FileError, match=r"has no samples\.jsonl; pass a folder that a Monitor wrote\."):
        History.load(tmp_path)
    (tmp_path / "samples.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(FileError, match=r"samples\.jsonl' was not written by a Monitor: KeyError"):
        History.load(tmp_path)
    (tmp_path / "samples.jsonl").write_text("no\n")
    with pytest.raises(FileError, match="was not written by a Monitor: JSONDecodeError"):
        Monitor(nn.Linear(2, 2), to=tmp_path)
    with pytest.raises(FileError, match=r"cannot write .*samples\.jsonl"):
        FolderSink(tmp_path / "samples.jsonl").write(record(0))


TRAIN = """
import torch
from torch import nn
from torch_featviz.training import Monitor

def train(folder, first, last):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    losses = []
    with Monitor(net, every=2, to=folder, probe=torch.ones(1, 1, 8, 8)) as watch:
        for step in range(first, last):
            with watch.step(step):
                x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step))
                loss = net(x).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
    return watch, losses
"""


def whole_pictures(folder):
    found = sorted(folder.glob("*/*/*"))
    for path in found:
        assert path.suffix == ".png" or path.name.startswith("."), path
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
    return [path for path in found if path.suffix == ".png"]


def test_killed_in_mid_run_it_is_whole_and_a_resumed_run_appends(tmp_path, forks):
    folder = tmp_path / "run"
    code = TRAIN + f"train({str(folder)!r}, 0, 10**6)"
    with open(tmp_path / "said", "w+") as said, forks.start(code, stdout=said, stderr=said) as process:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("*/*/*.png"))) < 40:
            time.sleep(0.02)
            assert process.runs(), (tmp_path / "said").read_text()
            assert time.monotonic() < deadline
            if (folder / "samples.jsonl").exists():
                History.load(folder)  # readable all the while
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
    before = History.load(folder)
    assert before.steps[:20] == list(range(0, 40, 2))
    assert all(set(sample.layers) == {"0", "3"} for sample in before)
    assert len(whole_pictures(folder)) >= 40
    (folder / f".{'0' * 32}.tmp").write_bytes(b"half")  # as a kill may leave it

    space = {}
    exec(TRAIN, space)
    resumed = before.steps[-1] + 2
    watch, _ = space["train"](folder, resumed, resumed + 6)
    after = History.load(folder)
    assert after.steps == [*before.steps, resumed, resumed + 2, resumed + 4]
    assert list(after)[: len(before)] == list(before)
    assert not list(folder.rglob("*.tmp"))
    assert watch.history.steps == after.steps  # its report is of the whole run

    with pytest.warns(FeatvizWarning, match=f"steps 10 to {resumed + 4} exist already; those from step 10 on are rep"):
        space["train"](folder, 10, 12)
    assert History.load(folder).steps == [0, 2, 4, 6, 8, 10]


def trained_with_little_room(folder, losses):
    """A training whose folder cannot take it all: ends right, warns once, leaves whole lines and pictures."""
    space = {}
    exec(TRAIN, space)
    with pytest.warns(FeatvizWarning, match=r"FolderSink could not write step \d+ .*training goes on") as told:
        watch, found = space["train"](folder, 0, 400)
    assert len(told) == 1
    assert found == losses
    assert len(watch.history) == 200
    steps = History.load(folder).steps
    assert 0 < len(steps) < 200
    assert steps == sorted(steps)
    whole_pictures(folder)
    assert not [path for path in folder.rglob("*.tmp") if path.stat().st_size]


@pytest.fixture(scope="module")
def losses():
    space = {}
    exec(TRAIN, space)
    return space["train"](None, 0, 400)[1]


def test_a_full_disk(tmp_path, losses):
    if sys.platform != "linux" or os.getuid() or os.system(f"mount -t tmpfs -o size=600k tmpfs {tmp_path}"):
        pytest.skip("needs the right to mount a small disk")
    try:
        trained_with_little_room(tmp_path, losses)
    finally:
        os.system(f"umount {tmp_path}")


def test_a_file_that_may_not_grow(tmp_path, losses):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        trained_with_little_room(tmp_path, losses)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_no_handle_stays_open(tmp_path):
    space = {}
    exec(TRAIN, space)
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    space["train"](tmp_path, 0, 20)
    after = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    assert len(after) <= len(before)


def test_what_is_not_ours_stays(tmp_path):
    mine = [
        tmp_path / "ckpt" / ".model.tmp",
        tmp_path / "fake" / "g" / "step-00000100.png",
        tmp_path / "kernels" / "a.txt",
    ]
    for path in mine:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"mine")
    for _ in range(2):
        sink = FolderSink(tmp_path)
        sink.write(record(5))
        sink.close()
    assert all(path.read_bytes() == b"mine" for path in mine)


def test_two_monitors_do_not_share_a_folder(tmp_path):
    first, second = FolderSink(tmp_path / "run"), FolderSink(tmp_path / "x" / ".." / "run")
    first.write(record(0))
    with pytest.raises(FileError, match=r"another monitor already writes to .*; use one folder per monitor"):
        second.write(record(0))
    first.write(record(1))
    first.close()
    second.write(record(2))
    assert History.load(tmp_path / "run").steps == [0, 1, 2]


def test_long_names_have_a_folder_too(tmp_path):
    names = ["a" * 300, "b" + "a" * 299]
    for name in names:
        sink = FolderSink(tmp_path)
        sink.write(record(names.index(name), layer=name))
        sink.close()
    assert len(list(tmp_path.glob("kernels/*/*.png"))) == 2


def test_one_picture_that_cannot_be_written_keeps_no_other_from_it(tmp_path):
    made = record(0)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "conv.1").write_bytes(b"a file where a folder should be")
    both = {**made.pictures, "kernels/z": made.pictures["kernels/conv.1"]}
    with pytest.raises(FileError, match="cannot write"):
        FolderSink(tmp_path).write(Record(made.sample, (), both))
    assert (tmp_path / "kernels" / "z" / "step-00000000.png").exists()
    assert History.load(tmp_path).steps == [0]


def test_a_loop_without_numbers_goes_on_after_the_last_step(tmp_path):
    def run(net, steps):
        with Monitor(net, every=2, to=tmp_path) as watch:
            for _ in range(steps):
                with watch.step():
                    net(torch.ones(1, 2))
        return watch.history.steps

    assert run(nn.Linear(2, 2), 3) == [0, 2]
    assert run(nn.Linear(2, 2), 3) == [0, 2, 4]
    with pytest.raises(FileError, match="holds a run of a model with other layers, such as ''; choose another folder"):
        run(nn.Sequential(nn.Linear(2, 2)), 1)
