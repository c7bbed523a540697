"""Lightning's own Trainer on tiny nets: it trains as without the callback; figures are those of a plain loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.data import DataLoader, TensorDataset

from torch_featviz.errors import LayerError
from torch_featviz.training import Monitor

L = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.loggers import CSVLogger  # noqa: E402

from torch_featviz.training import LightningMonitor  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers"),  # tiny data need none
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # Lightning's use of torch
]


class Net(L.LightningModule):
    """Dropout draws random numbers; batches of the loader are shuffled."""

    def __init__(self, fails_at=None, manual=False):
        super().__init__()
        self.automatic_optimization = not manual
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Flatten())
        self.head = nn.Linear(64, 3)
        self.fails_at, self.losses, self.validated = fails_at, [], 0

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        if len(self.losses) == self.fails_at:
            raise ValueError("broken batch")
        loss = nn.functional.cross_entropy(self(x), y)
        self.losses.append(loss.item())
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


class Validated(Net):
    def validation_step(self, batch, batch_idx):
        self.validated += 1
        self(100 * batch[0])  # would be seen in the extremes


def fresh(kind=Net, **settings):
    torch.manual_seed(0)
    return kind(**settings)


def loader(batches=10, shuffle=True):
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(4 * batches, 2, 6, 6, generator=g), torch.randint(3, (4 * batches,), generator=g)
    return DataLoader(TensorDataset(x, y), 4, shuffle=shuffle)


def trainer(tmp_path, *callbacks, **settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = {"log_every_n_steps": 5, "logger": False, "max_epochs": 1, "accelerator": "cpu", **quiet, **settings}
    return L.Trainer(callbacks=list(callbacks), default_root_dir=tmp_path, **settings)


def fit(tmp_path, net, *callbacks, data=None, ckpt_path=None, **settings):
    torch.manual_seed(7)
    made = trainer(tmp_path, *callbacks, **settings)
    made.fit(net, loader() if data is None else data, ckpt_path=ckpt_path)
    return made


def nothing_is_left_on(net):
    return (
        not _global_optimizer_pre_hooks
        and not _global_optimizer_post_hooks
        and not any("forward" in vars(module) for module in net.modules())
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_is_what_it_would_have_been(tmp_path, precision, accumulate):
    settings = {"precision": precision, "accumulate_grad_batches": accumulate, "max_epochs": 5}
    bare, watched = fresh(), fresh()
    fit(tmp_path, bare, **settings)
    rng = torch.get_rng_state()
    monitor = LightningMonitor(every=3)
    fit(tmp_path, watched, monitor, **settings)
    assert len(watched.losses) == 50
    assert watched.losses == bare.losses
    assert torch.equal(rng, torch.get_rng_state())
    for (name, a), b in zip(bare.named_parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad), name
    steps = 5 * -(-10 // accumulate)  # the last batches of an epoch are a step of their own
    assert monitor.watch.history.steps == list(range(0, steps, 3))
    assert nothing_is_left_on(watched)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("accumulate", "manual"), [(1, False), (3, False), (1, True)])
def test_figures_are_those_of_a_plain_loop(tmp_path, accumulate, manual):
    monitor, net = LightningMonitor(every=1), fresh(manual=manual)
    fit(tmp_path, net, monitor, accumulate_grad_batches=accumulate, data=loader(9, shuffle=False))
    plain = fresh()
    optimizer, watch = plain.configure_optimizers(), Monitor(plain, every=1)
    torch.manual_seed(7)
    loader_ = iter(loader(9, shuffle=False))
    for i, (x, y) in enumerate(loader_):  # a block a batch
        with watch.step() as step:
            loss = nn.functional.cross_entropy(plain(x), y)
            step.log(loss=loss)
            (loss / accumulate).backward()
            if (i + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    assert watch.history[0].layers["head"].std > 0
    losses = monitor.watch.history.values("loss")
    np.testing.assert_allclose(losses, watch.history.values("loss"), rtol=1e-6)
    for sample, expected in zip(monitor.watch.history, watch.history, strict=True):
        scalars = {**sample.scalars, "loss": expected.scalars["loss"]}
        assert replace(sample, scalars=scalars) == expected


def test_validation_between_steps_is_not_counted(tmp_path):
    monitor, net = LightningMonitor(every=1), fresh(Validated)
    trainer(tmp_path, monitor, val_check_interval=2, num_sanity_val_steps=1).fit(
        net, loader(), loader(2, shuffle=False)
    )
    assert net.validated == 1 + 5 * 2
    assert monitor.watch.history.steps == list(range(10))
    for sample in monitor.watch.history:
        assert sample.layers["body.0"].max < 20  # that of validation is 100 times as large
        assert sum(sample.layers["head"].histogram.counts) == 4 * 3


def test_validation_within_a_step_is_not_counted(tmp_path):
    monitor, net = LightningMonitor(every=1), fresh(Validated)
    settings = {"val_check_interval": 2, "accumulate_grad_batches": 5, "num_sanity_val_steps": 0}
    trainer(tmp_path, monitor, **settings).fit(net, loader(), loader(1, shuffle=False))
    assert net.validated == 5
    history = monitor.watch.history
    assert history.steps == [0, 1]
    assert all(sample.layers["body.0"].max < 20 for sample in history)
    assert [sum(sample.layers["head"].histogram.counts) for sample in history] == [5 * 4 * 3, 5 * 4 * 3]
    assert all(sample.parameters["head.weight"].grad_norm for sample in history)  # the step went on


class Skips(Net):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 4 else None


def test_an_epoch_whose_rest_is_skipped(tmp_path):
    monitor, net = LightningMonitor(every=1), fresh(Skips)
    fit(tmp_path, net, monitor, max_epochs=2)
    assert len(net.losses) == 8
    assert monitor.watch.history.steps == list(range(9))  # the last has begun, and no batch was run
    assert all(sample.parameters["head.weight"].grad_norm for sample in list(monitor.watch.history)[:8])
    assert monitor.watch.history[8].layers == {}
    assert nothing_is_left_on(net)


def test_an_exception_ends_the_step_and_reaches_the_caller(tmp_path):
    monitor, net = LightningMonitor(every=1), fresh(fails_at=4)
    with pytest.raises(ValueError, match="broken batch"):
        fit(tmp_path, net, monitor)
    assert monitor.watch.history.steps == [0, 1, 2, 3, 4]
    assert monitor.watch.history[4].layers == {}
    assert nothing_is_left_on(net)
    fit(tmp_path, fresh(), monitor)  # nothing is in the way of the next
    assert monitor.watch.history.steps == list(range(10))


def test_a_checkpoint_goes_on(tmp_path):
    whole, first, second = (LightningMonitor(every=2) for _ in range(3))
    data = loader(shuffle=False)
    fit(tmp_path, fresh(), whole, data=data, max_epochs=2)
    made = fit(tmp_path, net := fresh(), first, data=data)
    made.save_checkpoint(tmp_path / "last.ckpt")
    assert second.watch is None
    fit(tmp_path, net, second, data=data, max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert second.watch.history.steps == whole.watch.history.steps == list(range(0, 20, 2))
    assert list(second.watch.history)[:5] == list(whole.watch.history)[:5] == list(first.watch.history)


def test_fit_again_goes_on(tmp_path):
    monitor, net = LightningMonitor(every=4), fresh()
    made = fit(tmp_path, net, monitor)
    seen = list(monitor.watch.history)
    made.fit_loop.max_epochs = 2
    made.fit(net, loader())
    assert monitor.watch.history.steps == list(range(0, 20, 4))
    assert list(monitor.watch.history)[:3] == seen
    fit(tmp_path, fresh(), monitor)  # another training
    assert monitor.watch.history.steps == [0, 4, 8]


def test_several_in_one_trainer(tmp_path):
    both = LightningMonitor(["head"], every=2), LightningMonitor(["body.0"], every=3)
    assert both[0].state_key != both[1].state_key
    assert both[0].state_key == LightningMonitor(["head"], every=2, to="elsewhere").state_key
    made = fit(tmp_path, fresh(), *both)
    made.save_checkpoint(tmp_path / "last.ckpt")
    again = LightningMonitor(["body.0"], every=3), LightningMonitor(["head"], every=2)
    fit(tmp_path, fresh(), *again, max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert again[0].watch.history.steps == list(range(0, 20, 3))
    assert again[1].watch.history.steps == list(range(0, 20, 2))
    assert list(again[1].watch.history[-1].layers) == ["head"]


class Kept:
    def __init__(self):
        self.steps, self.closed = [], False

    def write(self, record):
        self.steps.append(record.step)

    def close(self):
        self.closed = True


def test_it_writes_where_it_is_told_to(tmp_path):
    kept = Kept()
    fit(tmp_path, fresh(), LightningMonitor(every=5, to=kept))
    assert kept.steps == [0, 5]
    assert kept.closed


def test_by_default_it_writes_to_the_trainers_loggers(tmp_path):
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tb")]
    monitor = LightningMonitor(every=5)
    fit(tmp_path, fresh(), monitor, logger=loggers)
    read = EventAccumulator(loggers[1].log_dir).Reload()
    written = [(event.step, event.value) for event in read.Scalars("std/head")]
    steps, values = monitor.watch.history.steps, monitor.watch.history.values("head", "std")
    assert written == [(step, np.float32(value)) for step, value in zip(steps, values, strict=True)]
    assert steps == [0, 5]


@pytest.mark.parametrize("settings", [{"to": []}, {}])
def test_a_logger_that_takes_no_pictures_is_let_be(tmp_path, settings):
    monitor = LightningMonitor(every=5, **settings)
    fit(tmp_path, fresh(), monitor, logger=CSVLogger(tmp_path))
    assert monitor.watch.history.steps == [0, 5]


def test_other_stages_need_no_monitor(tmp_path):
    monitor = LightningMonitor()
    trainer(tmp_path, monitor).validate(fresh(Validated), loader(shuffle=False), verbose=False)
    assert monitor.watch is None


def test_bad_settings_are_told_when_training_starts(tmp_path):
    with pytest.raises(LayerError, match="no layer 'conv9'"):
        fit(tmp_path, net := fresh(), LightningMonitor(["conv9"]))
    assert nothing_is_left_on(net)
