"""What W&B wrote in the file of an offline run is what was seen, and the user's own rows are as they were."""

import json
import math
import struct
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torch_featviz.training import Bins, ParameterFigures, Sample
from torch_featviz.training.sinks import Record, WandbSink

wandb = pytest.importorskip("wandb")
pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")

# Of W&B's own: its service's folder goes when the process ends, and is told of by Python.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a run that needs no network."""
    for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off", "ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    runs = []

    def run():
        settings = wandb.Settings(x_disable_stats=True, x_disable_meta=True, disable_git=True, disable_code=True)
        runs.append(wandb.init(project="test", dir=str(tmp_path), settings=settings))
        return runs[-1]

    yield run
    for each in runs:
        finish(each)


def finish(run):
    """Its file is complete when W&B's service has ended, a moment after `run.finish`; and no process is left."""
    run.finish()
    wandb.teardown()


def entries(run):
    """All entries of a finished run's file: blocks of 32 KiB, of pieces with checksum, length and place."""
    (path,) = _folder(run).glob("*.wandb")
    data, at, entry = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, place = struct.unpack("<IHB", data[at : at + 7])
        entry += data[at + 7 : at + 7 + length]
        at += 7 + length
        if place in (1, 4):  # whole, or last of several
            yield pb.Record.FromString(entry)
            entry = b""


def _folder(run):
    return Path(run.dir).parent


def rows(run):
    """The run's history, without what W&B adds of its own."""
    found = []
    for entry in entries(run):
        if entry.WhichOneof("record_type") == "history":
            row = {}
            for item in entry.history.item:
                *outer, last = item.nested_key
                inside = row.setdefault(outer[0], {}) if outer else row
                inside[last] = json.loads(item.value_json)
            found.append({key: value for key, value in row.items() if key not in ("_timestamp", "_runtime")})
    return found


def test_figures_histograms_and_pictures(start, known, picture):
    run = start()
    WandbSink(run).write(known())
    finish(run)
    (row,) = rows(run)
    assert row["featviz/step"] == 400
    assert row["featviz/mean/conv"] == 0.5
    assert math.isnan(float(row["featviz/std/(model)"]))
    assert row["featviz/update_ratio/conv.weight"] in (math.inf, "Infinity")
    assert "featviz/saturated/(model)" not in row
    assert row["featviz/histogram/conv"]["values"] == [1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 2]
    assert row["featviz/histogram/conv"]["bins"] == [-2.0 + 0.5 * i for i in range(12)]
    assert row["featviz/grad_histogram/conv.weight"]["values"] == [0, 3, 0, 0, 1, 0, 0, 0]
    image = _folder(run) / "files" / row["featviz/kernels/conv"]["path"]
    np.testing.assert_array_equal(np.array(Image.open(image)), picture.numpy())
    table = json.loads((_folder(run) / "files" / row["featviz/findings"]["path"]).read_text())
    assert table["columns"] == ["step", "kind", "names", "text"]
    assert table["data"][1] == [400, "dead", "conv", "1 of 4 channels of conv is dead."]
    assert len(row) == 1 + 1 + 27 + 3 + 1 + 1  # W&B's own step, ours, figures, histograms, a picture, the table


def test_what_was_logged(start, known):
    run, record = start(), known()
    WandbSink(run).write(replace(record, sample=replace(record.sample, scalars={"loss": 0.75, "learning_rate/1": 0.5})))
    finish(run)
    (row,) = rows(run)
    assert (row["featviz/loss"], row["featviz/learning_rate/1"]) == (0.75, 0.5)


def test_the_axis_is_its_own(start):
    run = start()
    WandbSink(run)
    finish(run)
    metrics = [e.metric for e in entries(run) if e.WhichOneof("record_type") == "metric"]
    assert ("featviz/*", "featviz/step") in [(m.glob_name, m.step_metric) for m in metrics] or [
        m for m in metrics if m.glob_name == "featviz/*" and m.step_metric_index
    ]


def test_findings_are_a_table_of_all_so_far(start, known):
    run = start()
    sink = WandbSink(run)
    for step in (1, 2, 3):
        sink.write(known(step, findings=step != 2))
    finish(run)
    assert ["featviz/findings" in row for row in rows(run)] == [True, False, True]
    path = rows(run)[2]["featviz/findings"]["path"]
    assert [line[0] for line in json.loads((_folder(run) / "files" / path).read_text())["data"]] == [1, 1, 3, 3]


def test_the_users_own_steps_are_undisturbed(start, known):
    """Rows by step=, two calls each, with ours between the two: W&B would refuse the second had ours made a row."""
    run = start()
    sink = WandbSink(run)
    for step in range(6):
        run.log({"loss": step / 2}, step=step)
        if step % 2 == 0:
            sink.write(known(step, findings=False))
        run.log({"accuracy": step / 4}, step=step)
    sink.close()
    finish(run)
    found = rows(run)
    assert [row["_step"] for row in found] == list(range(6))
    assert [row["loss"] for row in found] == [step / 2 for step in range(6)]
    assert [row["accuracy"] for row in found] == [step / 4 for step in range(6)]
    assert [row.get("featviz/step") for row in found] == [0, None, 2, None, 4, None]


def test_nothing_is_lost_of_steps_with_no_row_between(start, seen):
    run = start()
    sink = WandbSink(run)
    for record in seen[:2]:
        sink.write(record)
    run.log({"loss": 1.0})
    sink.write(seen[2])
    sink.close()
    finish(run)
    found = rows(run)
    assert [row["featviz/step"] for row in found] == [0, 1, 2]
    assert [row.get("loss") for row in found] == [None, 1.0, None]
    for row, record in zip(found, seen, strict=True):
        for name, layer in record.sample.layers.items():
            assert row[f"featviz/nan/{name}"] == layer.nan
            np.testing.assert_equal(float(row[f"featviz/mean/{name}"]), layer.mean)
            assert tuple(row[f"featviz/histogram/{name}"]["values"]) == layer.histogram.counts


def test_from_another_thread(start, known):
    run = start()
    thread = threading.Thread(target=WandbSink(run).write, args=[known()])
    thread.start()
    thread.join()
    finish(run)
    assert [row["featviz/step"] for row in rows(run)] == [400]


@pytest.mark.parametrize(("bins", "factor"), [(512, 1), (514, 2), (1600, 4)])
def test_more_bins_than_wandb_takes(start, bins, factor):
    counts = np.random.default_rng(0).integers(9, size=bins)
    weight = ParameterFigures(1, 1.0, 1.0, 0.0, Bins(-3.0, 0.25, tuple(counts.tolist())))
    run = start()
    WandbSink(run).write(Record(Sample(0, {}, {"w": weight})))
    finish(run)
    (row,) = rows(run)
    values, edges = (np.array(row["featviz/grad_histogram/w"][key]) for key in ("values", "bins"))
    assert len(values) <= 512
    np.testing.assert_array_equal(edges, -3.0 + 0.25 * factor * np.arange(len(values) + 1))
    every = np.repeat(-3.0 + 0.25 * np.arange(bins), counts)  # each value, on the left edge of its bin
    np.testing.assert_array_equal(values, np.histogram(every, edges)[0])
