"""The Trainer of transformers on tiny nets: it trains as without the callback; figures are those of a plain loop."""

import gc

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from torch_featviz.errors import LayerError
from torch_featviz.training import Monitor

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from torch_featviz.training import HFMonitor


class Net(nn.Module):
    """Dropout draws random numbers; in evaluation it is given what would be seen in the extremes."""

    def __init__(self, fails_at=None, drop=0.3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Dropout(drop), nn.Flatten())
        self.head = nn.Linear(64, 3)
        self.fails_at, self.batches, self.losses = fails_at, [], []

    def forward(self, x, labels=None):
        logits = self.head(self.body(x if self.training else 100 * x))
        loss = nn.functional.cross_entropy(logits, labels)
        if self.training:
            if len(self.losses) == self.fails_at:
                raise ValueError("broken batch")
            self.losses.append(loss.item())
            self.batches.append((x, labels))
        return {"loss": loss, "logits": logits}


def fresh(**settings):
    torch.manual_seed(0)
    return Net(**settings)


def data(batches=10):
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(4 * batches, 2, 6, 6, generator=g), torch.randint(3, (4 * batches,), generator=g)
    return [{"x": image, "labels": label} for image, label in zip(x, y, strict=True)]


DATA = data()


def trainer(tmp_path, net, *callbacks, data=DATA, optimizer=None, **settings):
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=7,
        **{"num_train_epochs": 1, "save_strategy": "no", "logging_strategy": "no", "learning_rate": 1e-2, **settings},
    )
    made = Trainer(net, arguments, train_dataset=data, eval_dataset=data[:8], optimizers=(optimizer, None))
    made.remove_callback(PrinterCallback)
    for callback in callbacks:
        made.add_callback(callback)
    return made


def replaced(net):
    """Modules with a `forward` of their own; with autocast, accelerate gives the whole net one."""
    assert not _global_optimizer_pre_hooks
    assert not _global_optimizer_post_hooks
    return [name for name, module in net.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_is_what_it_would_have_been(tmp_path, bf16, accumulate):
    settings = {"bf16": bf16, "gradient_accumulation_steps": accumulate, "num_train_epochs": 5}
    bare, watched = fresh(), fresh()
    trainer(tmp_path, bare, **settings).train()
    rng = torch.get_rng_state()
    monitor = HFMonitor(every=3)
    trainer(tmp_path, watched, monitor, **settings).train()
    assert len(watched.losses) == 50
    assert watched.losses == bare.losses
    assert torch.equal(rng, torch.get_rng_state())
    for (name, a), b in zip(bare.named_parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad), name
    steps = 5 * -(-10 // accumulate)  # the last batches of an epoch are a step of their own
    assert monitor.watch.history.steps == list(range(0, steps, 3))
    assert replaced(watched) == replaced(bare) == ([""] if bf16 else [])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_figures_are_those_of_a_plain_loop(tmp_path, accumulate):
    monitor, net, plain = HFMonitor(every=1), fresh(drop=0), fresh(drop=0)
    made = trainer(
        tmp_path, net, monitor,
        data=data(9),
        optimizer=torch.optim.SGD(net.parameters(), 0.1),
        lr_scheduler_type="constant",
        gradient_accumulation_steps=accumulate,
        max_grad_norm=0,
    )  # fmt: skip
    made.train()
    optimizer, watch = torch.optim.SGD(plain.parameters(), 0.1), Monitor(plain, every=1)
    batches = iter(net.batches)
    for _ in range(9 // accumulate):
        with watch.step():
            for x, labels in (next(batches) for _ in range(accumulate)):
                (plain(x, labels)["loss"] / accumulate).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert watch.history[0].parameters["head.weight"].grad_norm > 0
    assert list(monitor.watch.history) == list(watch.history)


def test_evaluation_is_not_counted(tmp_path):
    monitor, net = HFMonitor(every=1), fresh()
    made = trainer(tmp_path, net, monitor, eval_strategy="steps", eval_steps=1, eval_on_start=True)
    made.train()
    assert monitor.watch.history.steps == list(range(10))
    for sample in monitor.watch.history:
        assert sample.layers["body.0"].max < 20  # that of evaluation is 100 times as large
        assert sum(sample.layers["head"].histogram.counts) == 4 * 3


class Stop(TrainerCallback):
    """Between two batches of a step."""

    def on_substep_end(self, args, state, control, **kwargs):
        control.should_epoch_stop = state.global_step == 1


def test_an_epoch_that_stops_within_a_step(tmp_path):
    monitor, net = HFMonitor(every=1), fresh()
    settings = {"gradient_accumulation_steps": 5, "eval_strategy": "epoch"}
    trainer(tmp_path, net, monitor, Stop(), **settings).train()
    assert len(net.batches) == 6
    first, second = monitor.watch.history
    assert second.layers["body.0"].max < 20
    assert sum(second.layers["head"].histogram.counts) == 4 * 3
    assert first.parameters["head.weight"].grad_norm > 0
    assert second.parameters["head.weight"].grad_norm is None
    assert replaced(net) == []


class Kept:
    def __init__(self):
        self.steps, self.closed = [], 0

    def write(self, record):
        self.steps.append(record.step)

    def close(self):
        self.closed += 1


def test_a_step_that_an_exception_broke_off_ends_with_the_next_training(tmp_path):
    kept = Kept()
    monitor, net, other = HFMonitor(every=1, to=kept), fresh(fails_at=4), fresh()
    with pytest.raises(ValueError, match="broken batch"):
        trainer(tmp_path, net, monitor).train()
    broken = monitor.watch
    assert broken.history.steps == [0, 1, 2, 3]
    trainer(tmp_path, other, monitor).train()
    assert broken.history.steps == [0, 1, 2, 3, 4]
    assert broken.history[4].layers["head"].std > 0  # as far as it came
    assert replaced(net) == replaced(other) == []
    assert monitor.watch.history.steps == list(range(10))
    assert kept.closed == 2


def test_a_step_that_an_exception_broke_off_ends_when_the_callback_goes_away(tmp_path):
    def fails():
        monitor = HFMonitor(every=1, to=kept)
        with pytest.raises(ValueError, match="broken batch"):
            trainer(tmp_path, net, monitor).train()
        return monitor.watch

    kept, net = Kept(), fresh(fails_at=4)
    watch = fails()
    gc.collect()
    assert watch.history.steps == kept.steps == [0, 1, 2, 3, 4]
    assert kept.closed == 1
    assert replaced(net) == []


def test_a_checkpoint_goes_on(tmp_path):
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 5}
    whole, second = (
        (HFMonitor(every=2), HFMonitor(["head"], every=3)),
        (HFMonitor(every=2), HFMonitor(["head"], every=3)),
    )
    trainer(tmp_path, fresh(), *whole, **settings).train()
    assert second[0].watch is None
    trainer(tmp_path, net := fresh(), *second, **settings).train(
        resume_from_checkpoint=str(tmp_path / "out/checkpoint-5")
    )
    assert len(net.batches) == 15
    for a, b, steps in zip(whole, second, (range(0, 20, 2), range(0, 20, 3)), strict=True):
        assert a.watch.history.steps == b.watch.history.steps == list(steps)
        assert list(a.watch.history) == list(b.watch.history)
    assert len(list((tmp_path / "out/checkpoint-5").glob("featviz-*.json"))) == 2


def test_without_a_checkpoint_of_it_the_history_begins_there(tmp_path):
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 5}
    trainer(tmp_path, fresh(), **settings).train()
    monitor = HFMonitor(every=2)
    trainer(tmp_path, fresh(), monitor, **settings).train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-5"))
    assert monitor.watch.history.steps == list(range(6, 20, 2))


def test_a_second_training_begins_anew(tmp_path):
    monitor, net = HFMonitor(every=5), fresh()
    made = trainer(tmp_path, net, monitor)
    made.train()
    made.train()
    assert monitor.watch.history.steps == [0, 5]


def test_bad_settings_are_told_when_training_starts(tmp_path):
    with pytest.raises(LayerError, match="no layer 'conv9'"):
        trainer(tmp_path, net := fresh(), HFMonitor(["conv9"])).train()
    assert replaced(net) == []
