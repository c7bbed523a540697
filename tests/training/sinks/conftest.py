"""Records that every sink is given: one of known numbers, and one that a Monitor saw of a network with NaN in it."""

import shutil
import warnings

import pytest
import torch
from torch import nn

from torch_featviz.errors import FindingWarning
from torch_featviz.picture import Picture
from torch_featviz.training import Bins, LayerFigures, Monitor, ParameterFigures, Sample
from torch_featviz.training.history import Finding
from torch_featviz.training.sinks import Record


class Coloured(Picture):
    """Pixels as they are."""

    def __init__(self, pixels):
        self._pixels = pixels

    pixels = property(lambda self: self._pixels)
    _sheet = property(lambda self: self._pixels.permute(1, 2, 0).numpy())

    def figure(self):
        raise NotImplementedError


@pytest.fixture
def picture():
    """`3 5 7`, no two channels, rows or columns alike."""
    return Coloured(torch.randint(256, (3, 5, 7), dtype=torch.uint8))


@pytest.fixture
def known(picture):
    """Makes a record of a step: figures None, NaN and infinite, a model that is its own layer, two findings."""

    def make(step=400, findings=True):
        conv = LayerFigures(0.5, 2.0, -1.5, 3.25, 0.25, 1, 4, 0, 0, Bins(-2.0, 0.5, (1, 0, 5, *[0] * 7, 2)), 0.125)
        broken = LayerFigures(*[float("nan")] * 4, 0.0, 4, 4, 9, 3, Bins(0.0, 1.0, (0, 0)))
        weight = ParameterFigures(36, 1.5, 0.75, float("inf"), Bins(-1.0, 0.25, (0, 3, 0, 0, 1, 0, 0, 0)), 4, 2)
        told = (
            Finding(step, "nonfinite", ("",), "3 values of (model) are not finite: lower the learning rate."),
            Finding(step, "dead", ("conv",), "1 of 4 channels of conv is dead."),
        )
        sample = Sample(step, {"conv": conv, "": broken}, {"conv.weight": weight, "bias": ParameterFigures(4, 0.5)})
        return Record(sample, told if findings else (), {"kernels/conv": picture})

    return make


@pytest.fixture
def seen(picture):
    """What a Monitor saw of three steps; in the second, a channel of the first layer is NaN, and then all is."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    watch, optimizer = Monitor(net, every=1, bins=16), torch.optim.SGD(net.parameters(), 0.1)
    with pytest.warns(FindingWarning, match="Layer 0 is the first with NaN"):  # noqa: PT031
        for _ in range(3):
            with watch.step():
                net(torch.randn(2, 1, 8, 8)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                net[0].bias[0] = torch.nan
    return [Record(sample, pictures={"report": picture}) for sample in watch.history]


@pytest.fixture(scope="session")
def _empty_database(tmp_path_factory):
    """Made once, as MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("mlflow") / "runs.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages it was built with
        mlflow = pytest.importorskip("mlflow")
        pytest.importorskip("sqlalchemy")  # mlflow-skinny has no local store
        mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def new_store(_empty_database, tmp_path):
    """Makes an MLflow store in `tmp_path`: its address."""

    def make(name):
        return f"sqlite:///{shutil.copy(_empty_database, tmp_path / name)}"

    return make


@pytest.fixture
def mlflow(new_store, tmp_path, monkeypatch):
    """MLflow, with a store of the test's own as the one that is set."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(new_store("runs.db"))
    experiment = mlflow.create_experiment("test", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment(experiment_id=experiment)
    yield mlflow
    mlflow.set_tracking_uri(before)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
