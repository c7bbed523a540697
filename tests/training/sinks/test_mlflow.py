"""What an MLflow client reads back is what was seen."""

import json
import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torch_featviz.training import ParameterFigures, Sample
from torch_featviz.training.sinks import MLflowSink, Record

# Of MLflow's own and of what it is built on: old calls, and database handles that its pool lets go when it likes.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]


@pytest.fixture
def store(mlflow):
    return mlflow.MlflowClient()


@pytest.fixture
def run(mlflow):
    with mlflow.start_run() as run:
        yield run


def values(store, run, name):
    """A metric's steps and values."""
    return [(m.step, m.value) for m in store.get_metric_history(run.info.run_id, name)]


def artifact(store, run, path):
    return Path(store.download_artifacts(run.info.run_id, path)).read_text()


def test_figures(store, run, known):
    sink = MLflowSink(run)
    sink.write(known(400))
    sink.write(known(800))
    sink.close()
    assert values(store, run, "mean/conv") == [(400, 0.5), (800, 0.5)]
    assert values(store, run, "unreached/conv.weight") == [(400, 2.0), (800, 2.0)]
    assert values(store, run, "norm/bias")[0] == (400, 0.5)
    assert math.isnan(values(store, run, "std/_model_")[0][1])
    assert not values(store, run, "saturated/_model_")
    assert len(store.get_run(run.info.run_id).data.metrics) == 27
    assert store.get_run(run.info.run_id).info.status == "RUNNING"  # it is the user's to end


def test_what_was_logged(store, run, known):
    sink, record = MLflowSink(run), known()
    sink.write(replace(record, sample=replace(record.sample, scalars={"loss": 0.75, "learning_rate/1": 0.5})))
    sink.close()
    assert values(store, run, "loss") == [(400, 0.75)]
    assert values(store, run, "learning_rate/1") == [(400, 0.5)]
    content = json.loads(artifact(store, run, "featviz/step-00000400.json"))
    assert content["scalars"] == {"loss": 0.75, "learning_rate/1": 0.5}


def test_the_artifact_of_a_step(store, run, known):
    MLflowSink(run).write(known())

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads(artifact(store, run, "featviz/step-00000400.json"), parse_constant=refuse)
    assert content["step"] == 400
    assert content["layers"]["conv"]["histogram"] == {
        "start": -2.0,
        "width": 0.5,
        "counts": [1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 2],
    }
    assert content["layers"][""]["mean"] == "nan"
    assert content["parameters"]["conv.weight"]["update_ratio"] == "inf"
    assert content["parameters"]["bias"]["grad_norm"] is None
    assert [each["kind"] for each in content["findings"]] == ["nonfinite", "dead"]


def test_findings(store, run, known):
    sink = MLflowSink(run)
    sink.write(known(3))
    sink.write(known(4, findings=False))
    assert artifact(store, run, "featviz/findings-00000003.txt").splitlines() == [
        "3 values of (model) are not finite: lower the learning rate.",
        "1 of 4 channels of conv is dead.",
    ]
    names = sorted(each.path for each in store.list_artifacts(run.info.run_id, "featviz"))
    assert names == [
        f"featviz/{name}" for name in ("findings-00000003.txt", "step-00000003.json", "step-00000004.json")
    ]


def test_pictures(store, run, known, picture):
    MLflowSink(run).write(known())
    (path,) = (each.path for each in store.list_artifacts(run.info.run_id, "images") if each.path.endswith(".png"))
    assert "kernels" in path
    assert "step+400" in path
    image = Image.open(store.download_artifacts(run.info.run_id, path))
    np.testing.assert_array_equal(np.array(image), picture.numpy())


def test_what_a_monitor_saw_from_another_thread(store, run, seen):
    sink = MLflowSink(run)
    thread = threading.Thread(target=lambda: [sink.write(record) for record in seen])
    thread.start()
    thread.join()
    for name in ("0", "3"):
        for figure in ("mean", "std", "nan", "zero_share"):
            expected = [(r.step, getattr(r.sample.layers[name], figure)) for r in seen]
            np.testing.assert_equal(values(store, run, f"{figure}/{name}"), expected)
    assert values(store, run, "nan/0") == [(0, 0), (1, 72), (2, 288)]


def test_more_metrics_than_one_batch_and_names_it_does_not_allow(mlflow, store, run, monkeypatch):
    batches, log_batch = [], mlflow.MlflowClient.log_batch  # a server refuses larger ones, a local store takes them

    def spy(client, run_id, metrics, **more):
        batches.append(len(metrics))
        return log_batch(client, run_id, metrics, **more)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", spy)
    names = [f"layer{i}" for i in range(600)] + ["a[0]:é", "x" * 300 + ".weight", "b/"]
    MLflowSink(run).write(Record(Sample(1, {}, {name: ParameterFigures(2, i) for i, name in enumerate(names)})))
    found = store.get_run(run.info.run_id).data.metrics
    assert [found[f"norm/layer{i}"] for i in range(600)] == list(range(600))
    assert found["norm/a_0___"] == 600
    assert found["norm/" + "x" * 238 + ".weight"] == 601  # 250 characters
    assert found["norm/b"] == 602
    assert len(found) == 2 * 603
    assert batches == [1000, 206]


def test_another_client_than_that_of_the_uri_set_now(mlflow, run, known, tmp_path):
    client = mlflow.MlflowClient()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")
    MLflowSink(run, client=client).write(known())
    mlflow.set_tracking_uri(client.tracking_uri)
    assert values(client, run, "norm/bias") == [(400, 0.5)]
    assert not (tmp_path / "other.db").exists()


@pytest.mark.filterwarnings("ignore:The filesystem tracking backend:FutureWarning")  # MLflow's, of its own
def test_a_file_store(mlflow, tmp_path, monkeypatch, known):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    store = mlflow.MlflowClient()
    experiment = store.create_experiment("files")
    run = store.create_run(experiment)
    MLflowSink(run).write(known(400))
    assert values(store, run, "mean/conv") == [(400, 0.5)]
    files = sorted(path.name for path in (tmp_path / "mlruns").rglob("*") if path.is_file())
    assert "step-00000400.json" in files
    assert any(name.endswith(".png") for name in files)
