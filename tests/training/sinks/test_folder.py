"""The folder: whole at any moment, gone on with after a kill, and no disk is so full that a training would stop."""

import io
import json
import math
import os
import re
import signal
import sys
import time
import zlib
from urllib.parse import quote

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from torch_featviz.errors import FeatvizWarning, FileError
from torch_featviz.picture import Sheet
from torch_featviz.training import Bins, History, LayerFigures, Monitor, ParameterFigures, Sample
from torch_featviz.training.frames import KINDS
from torch_featviz.training.history import Finding, read_lines
from torch_featviz.training.run_folder import folder_of, picture_file, pictures
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


NAMES = [
    *(
        "",
        "(model)",
        "conv.1",
        "Conv.1",
        "CONV.1",
        "a*",
        "a?",
        "[a]",
        "..",
        ".",
        "a/../b",
        "/etc",
        "a.",
        "a..b",
        "a b ",
    ),
    *("con", "CON", "con.1", "lpt1", "_con", "é<x>", "Слой", "слой", "层", "a" * 300, "b" + "a" * 299, "A" * 300),
    *("a~0bce3fcf30c5", "a%2a", "a\\b", "a\nb", "a\x00b", "\ud800", "step-00000000.png", "samples.jsonl"),
]


def test_any_name_keeps_its_layer_and_its_picture(tmp_path):
    drawn = {f"kernels/{name}": Sheet(torch.full((1, 3, 4, 4), i, dtype=torch.uint8)) for i, name in enumerate(NAMES)}
    sink = FolderSink(tmp_path / "run")
    for step in (0, 8):
        sink.write(Record(record(step).sample, (), drawn))
    lines = list(read_lines(tmp_path / "run"))
    assert lines[0].pictures == tuple(drawn)
    found = pictures(tmp_path / "run", {line.sample.step: line.pictures for line in lines}, KINDS, ())
    assert list(found) == list(drawn)
    for name, files in found.items():
        assert list(files) == [0, 8]
        for file in files.values():
            assert np.array_equal(np.asarray(Image.open(file)), drawn[name].numpy())
    folders = [path.name for path in (tmp_path / "run/kernels").iterdir()]
    assert len({name.lower() for name in folders}) == len(NAMES), "two are two where case does not count"
    assert all(re.fullmatch(r"[\w.~()-]{1,100}", name, re.ASCII) and name[-1] != "." for name in folders)
    assert not any(re.match(r"(con|lpt1)(\.|$)", name.lower()) for name in folders)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_two_names_share_a_folder(one, other):
    assert (folder_of(one).lower() == folder_of(other).lower()) == (one == other)


@pytest.mark.parametrize("layer", ["", "conv.1", "Conv.1", "a/b", "é" * 100])
def test_folders_from_before_names_were_written_down(tmp_path, layer):
    """Names were quoted then, and those of more than 200 letters were cut."""
    sink = FolderSink(tmp_path)
    sink.write(record(0, layer=layer))
    sink.close()
    (new,) = (tmp_path / "kernels").iterdir()
    name = quote(layer, safe="") or "(model)"
    old = f"{zlib.crc32(layer.encode()):08x}{name[-200:]}" if len(name) > 200 else name
    new.rename(tmp_path / "kernels" / old)
    line = json.loads((tmp_path / "samples.jsonl").read_text())
    assert line.pop("pictures") == [f"kernels/{layer}"]
    (tmp_path / "samples.jsonl").write_text(json.dumps(line) + "\n")
    FolderSink(tmp_path).write(record(8, layer=layer))  # gone on with by this version
    lines = list(read_lines(tmp_path))
    assert [each.pictures for each in lines] == [None, (f"kernels/{layer}",)]
    found = pictures(tmp_path, {each.sample.step: each.pictures for each in lines}, KINDS, [layer])
    assert {name: list(files) for name, files in found.items()} == {f"kernels/{layer}": [0, 8]}


LINKS = ["samples.jsonl", "kernels", "kernels/conv.1", "kernels/conv.1/step-00000000.png"]


@pytest.mark.parametrize("place", LINKS)
@pytest.mark.parametrize("dangling", [False, True])
def test_links_in_it_are_not_followed(tmp_path, place, dangling):
    run, out = tmp_path / "run", tmp_path / "out"
    first = FolderSink(run)
    first.write(record(0))
    first.write(record(9))
    first.close()
    (run / place).rename(out)
    (run / place).symlink_to(tmp_path / "nowhere" if dangling else out)
    before = {path: path.read_bytes() for path in (out, *out.rglob("*")) if path.is_file()}

    lines = [(0, ("kernels/conv.1",)), (9, ("kernels/conv.1",))]
    found = pictures(run, dict(lines), KINDS, ()).get("kernels/conv.1", {})
    assert list(found) == ([0, 9] if place == "samples.jsonl" else [9] if "png" in place else [])
    assert pictures(run, {0: None, 9: None}, KINDS, ()).get("kernels/conv.1", {}) == found
    if place == "samples.jsonl":
        with pytest.raises(FileError, match=r"samples\.jsonl' is a link, which could lead out of the run folder"):
            History.load(run)
    if "png" not in place:
        with pytest.raises(FileError, match="is a link, which could lead out of the run folder; remove it"):
            FolderSink(run).write(record(0))
    else:
        FolderSink(run).write(record(5))
    assert {path: path.read_bytes() for path in (out, *out.rglob("*")) if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


@pytest.mark.parametrize("name", ["../x", "..", "/etc/x", "", "a/../../x", "kernels/../../x"])
def test_no_picture_is_outside(tmp_path, name):
    file = picture_file(tmp_path / "run", name, 0)
    assert file.resolve().is_relative_to(tmp_path.resolve() / "run")
    assert len(file.relative_to(tmp_path).parts) == 4


def test_a_folder_may_itself_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "real")
    FolderSink(tmp_path / "latest").write(record(0))
    assert History.load(tmp_path / "real").steps == [0]


def test_what_blocks_its_reader_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "samples.jsonl")
    with pytest.raises(FileError, match=r"has no samples\.jsonl"):
        History.load(tmp_path)
    with pytest.raises(FileError, match="it is no ordinary file; remove it"):
        FolderSink(tmp_path).write(record(0))


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
    with pytest.raises(FileError, match=r"samples\.jsonl' was not written .*: line 1: layers must be there, but"):
        History.load(tmp_path)
    (tmp_path / "samples.jsonl").write_text("no\n")
    with pytest.raises(FileError, match=r"was not written .*: line 1: value must be JSON, got b'no"):
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
    space["train"](tmp_path / "first", 0, 2)  # opens fonts, which stay open
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
