"""What TensorBoard reads in the event file is what was seen."""

import io
import math
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from torch_featviz.training import Bins, ParameterFigures, Sample
from torch_featviz.training.sinks import Record, TensorBoardSink

pytest.importorskip("tensorboard")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorBoard's own, of packages it was built with
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util
    from torch.utils.tensorboard import SummaryWriter


@pytest.fixture
def read(tmp_path):
    """Writes records, and reads all that is in the folder then."""

    def run(*records):
        with SummaryWriter(tmp_path) as writer:
            sink = TensorBoardSink(writer)
            for record in records:
                sink.write(record)
            events = EventAccumulator(str(tmp_path), {"tensors": 0, "images": 0, "scalars": 0, "histograms": 0})
            events.Reload()  # before anything is closed: each write is there at once
            sink.close()
            writer.add_scalar("mine", 1.0)  # the writer still is the user's
        return events

    return run


def test_scalars(read, known):
    events = read(known(400), known(800))
    values = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert values["mean/conv"] == [(400, 0.5), (800, 0.5)]
    assert values["saturated/conv"][0] == (400, 0.125)
    assert values["dead/(model)"][0] == (400, 4.0)
    assert math.isnan(values["std/(model)"][0][1])
    assert values["update_ratio/conv.weight"][0] == (400, math.inf)
    assert values["unreached/conv.weight"][0] == (400, 2.0)
    assert values["norm/bias"][0] == (400, 0.5)
    assert "saturated/(model)" not in values  # was not measured
    assert {tag for tag in values if tag.endswith("/bias")} == {"size/bias", "norm/bias"}
    assert len(values) == 10 + 9 + 6 + 2


def test_what_was_logged(read, known):
    record = known()
    logged = {"loss": 0.75, "accuracy": math.nan, "learning_rate/1": 0.5}
    events = read(replace(record, sample=replace(record.sample, scalars=logged)))
    values = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert (values["loss"], values["learning_rate/1"]) == (0.75, 0.5)
    assert math.isnan(values["accuracy"])


def test_histograms(read, known):
    events = read(known())
    assert set(events.Tags()["histograms"]) == {"histogram/conv", "grad_histogram/conv.weight"}  # one counted nothing
    (event,) = events.Histograms("histogram/conv")
    layer, half = event.histogram_value, [-2.0 + 0.5 * i for i in range(12)]
    assert event.step == 400
    assert list(layer.bucket) == [1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 2]
    assert list(layer.bucket_limit) == half[1:]
    assert (layer.min, layer.max, layer.num) == (-1.5, 3.25, 8)
    assert (layer.sum, layer.sum_squares) == (8 * 0.5, 8 * (2.0**2 + 0.5**2))
    grad = events.Histograms("grad_histogram/conv.weight")[0].histogram_value
    assert list(grad.bucket) == [0, 3, 0, 0, 1, 0, 0, 0]
    assert list(grad.bucket_limit) == [-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0]
    assert (grad.min, grad.max, grad.num) == (-0.75, 0.25, 4)
    assert (grad.sum, grad.sum_squares) == (3 * -0.625 + 0.125, 3 * 0.625**2 + 0.125**2)


def test_pictures(read, known, picture):
    (event,) = read(known()).Images("kernels/conv")
    assert event.step == 400
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(event.encoded_image_string))), picture.numpy())


def test_findings(read, known):
    events = read(known(3), known(4, findings=False))
    (event,) = events.Tensors("findings/text_summary")
    (text,) = tensor_util.make_ndarray(event.tensor_proto).tolist()
    assert event.step == 3
    assert text.decode() == (
        "3 values of (model) are not finite: lower the learning rate.\n\n1 of 4 channels of conv is dead."
    )


def test_what_a_monitor_saw(read, seen):
    events = read(*seen)
    for name in ("0", "3"):
        assert [e.step for e in events.Scalars(f"mean/{name}")] == [0, 1, 2]
        for figure in ("mean", "std", "min", "max", "zero_share", "dead", "nan"):
            read_back = [e.value for e in events.Scalars(f"{figure}/{name}")]
            expected = [getattr(record.sample.layers[name], figure) for record in seen]
            np.testing.assert_array_equal(np.float32(read_back), np.float32(expected), err_msg=figure)
        ratios = [e.value for e in events.Scalars(f"update_ratio/{name}.weight")]
        np.testing.assert_array_equal(
            np.float32(ratios), np.float32([r.sample.parameters[f"{name}.weight"].update_ratio for r in seen])
        )
    assert [e.value for e in events.Scalars("nan/0")] == [0, 72, 288]  # of 2 images, 4 channels, 6 x 6 places
    assert [e.step for e in events.Histograms("histogram/0")] == [0, 1]  # nothing is left to count
    assert [e.step for e in events.Histograms("histogram/3")] == [0]
    for event, record in zip(events.Histograms("histogram/0"), seen, strict=False):
        layer, bins = event.histogram_value, record.sample.layers["0"].histogram
        assert tuple(layer.bucket) == bins.counts
        assert layer.num == sum(bins.counts) == 2 * 36 * (4 if event.step == 0 else 3)
        edges = np.array([bins.start, *layer.bucket_limit])
        np.testing.assert_array_equal(np.diff(edges), bins.width)
        middles, counts = edges[:-1] + bins.width / 2, np.array(bins.counts)
        assert abs(layer.sum - middles @ counts) <= layer.num * bins.width / 2  # no value is further from its middle


def test_numbers_too_large_to_square(read):
    weight = ParameterFigures(1, 1e200, 1e200, 0.0, Bins(0.0, 2.0**700, (0, 1)))
    events = read(Record(Sample(0, {}, {"w": weight})))
    assert events.Histograms("grad_histogram/w")[0].histogram_value.sum_squares == math.inf


def test_no_thread_is_started(read, known):
    before = set(threading.enumerate())
    read(known())
    assert set(threading.enumerate()) == before
