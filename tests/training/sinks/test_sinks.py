"""What is given as `to=` gets the sink for it, and nothing is imported that was not there."""

import logging
import sys
import types
import warnings

import pytest

from tests.training.kept import Kept
from torch_featviz.errors import OptionError
from torch_featviz.training import Bins
from torch_featviz.training.sinks import (
    MLflowSink,
    TensorBoardSink,
    WandbSink,
    edges,
    histograms,
    scalars,
    sinks_for,
    tag,
)

# Of Lightning's and MLflow's own: old calls of what they are built on, and database handles that a pool lets go later.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),  # W&B's service
]


class Writer:
    """What a writer of tensorboardX has."""

    def add_scalar(self, *args, **more): ...

    def add_histogram_raw(self, *args, **more): ...


def package(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages it was built with
        return pytest.importorskip(name)


def of(sinks):
    return [type(sink) for sink in sinks]


def test_none_sinks_and_writers():
    one, two = Kept(), Kept()
    assert sinks_for(None) == sinks_for([]) == []
    assert sinks_for(one) == [one]
    assert sinks_for((two, one)) == [two, one]
    assert of(sinks_for([Writer(), one])) == [TensorBoardSink, Kept]


def test_a_summary_writer(tmp_path):
    package("tensorboard")
    with package("torch.utils.tensorboard").SummaryWriter(tmp_path) as writer:
        (sink,) = sinks_for(writer)
        assert isinstance(sink, TensorBoardSink)


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_wandb_run(tmp_path, monkeypatch, mode, known):
    wandb = package("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(wandb, "run", None)  # a disabled run would stay there after its end
    with wandb.init(project="test", dir=str(tmp_path), mode=mode) as run:
        (sink,) = sinks_for(run)
        assert isinstance(sink, WandbSink)
        sink.write(known())
    wandb.teardown()


def test_an_mlflow_run(mlflow):
    with mlflow.start_run() as run:
        assert of(sinks_for(run)) == [MLflowSink]
    assert of(sinks_for(mlflow.MlflowClient().get_run(run.info.run_id))) == [MLflowSink]


@pytest.mark.parametrize("name", ["lightning.pytorch.loggers", "pytorch_lightning.loggers"])
class TestLightning:
    def test_tensorboard(self, name, tmp_path):
        package("tensorboard")
        logger = package(name).TensorBoardLogger(tmp_path)
        (sink,) = sinks_for(logger)
        assert isinstance(sink, TensorBoardSink)
        assert sink._writer is logger.experiment
        logger.experiment.close()

    def test_wandb(self, name, tmp_path, monkeypatch):
        wandb = package("wandb")
        monkeypatch.setenv("WANDB_SILENT", "true")
        logger = package(name).WandbLogger(project="test", save_dir=tmp_path, offline=True)
        (sink,) = sinks_for([logger])
        assert isinstance(sink, WandbSink)
        assert sink._run is logger.experiment
        logger.experiment.finish()
        wandb.teardown()

    def test_mlflow(self, name, mlflow, new_store, tmp_path, known):
        """Its own store, not the one that is set now."""
        uri = new_store("lightning.db")
        logger = package(name).MLFlowLogger(tracking_uri=uri, artifact_location=(tmp_path / "a").as_uri())
        (sink,) = sinks_for(logger)
        sink.write(known())
        assert isinstance(sink, MLflowSink)
        assert sink._client is logger.experiment
        client = mlflow.MlflowClient(uri)
        assert client.get_run(logger.run_id).data.metrics["mean/conv"] == 0.5

    def test_nothing_in_processes_but_the_first(self, name, tmp_path, monkeypatch, new_store):
        loggers = package(name)
        package("tensorboard")
        rank = package("lightning_utilities.core.rank_zero").rank_zero_only
        for each in {rank, *(vars(m)["rank_zero_only"] for m in list(sys.modules.values()) if _has_rank(m))}:
            monkeypatch.setattr(each, "rank", 1, raising=False)
        uri = new_store("lightning.db")
        assert sinks_for([loggers.TensorBoardLogger(tmp_path), loggers.MLFlowLogger(tracking_uri=uri)]) == []

    def test_another_logger_is_refused(self, name, tmp_path):
        with pytest.raises(OptionError, match="got the Lightning logger CSVLogger, which has no sink"):
            sinks_for(package(name).CSVLogger(tmp_path))


def _has_rank(module):
    return isinstance(module, types.ModuleType) and callable(vars(module).get("rank_zero_only"))


@pytest.mark.parametrize("thing", [3, Kept, Writer, print, {"to": Kept()}, [[Kept()]], logging])
def test_what_is_refused(thing):
    with pytest.raises(OptionError, match=r"to must be a folder, a SummaryWriter.* or a list .*; got "):
        sinks_for(thing)


def test_an_open_file_is_refused(tmp_path):
    with open(tmp_path / "f", "w") as file, pytest.raises(OptionError, match=r"got <_io\.TextIOWrapper"):
        sinks_for(file)


def test_nothing_is_imported(forks):
    code = """if True:
        import sys, torch_featviz
        from torch_featviz.training.sinks import sinks_for
        try:
            sinks_for(3)
        except ValueError:
            pass
        bad = {"lightning", "pytorch_lightning", "transformers", "ignite", "tensorboard", "wandb", "mlflow"}
        assert not bad & sys.modules.keys(), bad & sys.modules.keys()
    """
    done = forks.run(code, warn="ignore")
    assert done.returncode == 0, done.stderr


def test_a_sample_in_lists(known):
    sample = known().sample
    flat = scalars(sample)
    assert flat["mean", "conv"] == 0.5
    assert flat["mean", ""] != flat["mean", ""]  # NaN
    assert ("saturated", "conv") in flat
    assert ("saturated", "") not in flat
    assert ("grad_norm", "bias") not in flat
    assert all(type(value) is float for value in flat.values())
    assert set(histograms(sample)) == {("histogram", "conv"), ("histogram", ""), ("grad_histogram", "conv.weight")}
    assert edges(Bins(-1.0, 0.5, (1, 2, 3))) == [-1.0, -0.5, 0.0, 0.5]
    assert (tag("mean", "a.b"), tag("mean", "")) == ("mean/a.b", "mean/(model)")
