"""`step.log`: scalars of one's own, in the history, the report, every sink and a state that is resumed."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.kept import Kept
from torch_featviz.errors import LayerError, OptionError
from torch_featviz.training import History, Monitor, Sample
from torch_featviz.training.step import Step


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x)


def fresh():
    torch.manual_seed(0)
    net = Small()
    return net, torch.optim.SGD(net.parameters(), 0.1)


def one_step(net, optimizer, watch, number=None, **scalars):
    with watch.step(number) as step:
        loss = net(torch.ones(4, 3)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step.log(loss=loss, **scalars)
    return loss.item()


def panels(watch):
    """The scalars that the report shows."""
    shown = [axes.get_label() for axes in watch.report().figure().axes]
    return [name for name in shown if name in ("loss", "learning_rate", "gradient_norm", "accuracy")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3.0),
        (2.5, 2.5),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7.0),
        (np.array(4.0), 4.0),
        (torch.tensor(1.5), 1.5),
        (torch.tensor(1.5, dtype=torch.float64), 1.5),
        (torch.tensor(0.25, dtype=torch.bfloat16), 0.25),
        (torch.tensor(9), 9.0),
        (torch.tensor(True), 1.0),
        (torch.tensor([[2.0]]), 2.0),
        (torch.tensor(1.0, requires_grad=True) * 3, 3.0),
        (-math.inf, -math.inf),
    ],
)
def test_a_number_is_logged(value, expected):
    net, optimizer = fresh()
    watch = Monitor(net, every=1)
    one_step(net, optimizer, watch, mine=value)
    assert watch.history[0].scalars["mine"] == expected
    assert type(watch.history[0].scalars["mine"]) is float


def test_a_loss_is_let_go_of():
    step, loss = Step(0), torch.tensor(1.0, requires_grad=True) * 2
    step.log(loss=loss)
    ((kept,),) = step.close().values()
    assert kept.grad_fn is None
    assert not kept.requires_grad


def test_of_several_values_in_one_step_the_mean_counts():
    net, optimizer = fresh()
    watch = Monitor(net, every=1)
    with watch.step() as step:
        for value in (1.0, torch.tensor(2.0), 6):
            step.log(loss=value)
        step.log(other=5)
        net(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert watch.history[0].scalars["loss"] == 3.0
    assert watch.history[0].scalars["other"] == 5.0


def test_of_several_blocks_of_one_step_the_mean_counts():
    net, optimizer = fresh()
    watch, losses = Monitor(net, every=1), []
    for i in range(8):
        with watch.step() as step:
            loss = net(torch.randn(4, 3)).square().mean()
            loss.backward()
            step.log(loss=loss)
            losses.append(loss.item())
            if i % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    assert watch.history.steps == [0, 1]
    means = [sum(losses[:4]) / 4, sum(losses[4:]) / 4]
    np.testing.assert_allclose(watch.history.values("loss"), means, rtol=1e-12)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("high", "'mine' is 'high'"),
        (None, "'mine' is None"),
        (1j, "'mine' is 1j"),
        (torch.zeros(2), r"'mine' is a tensor of shape \(2,\)"),
        (torch.zeros(0), r"'mine' is a tensor of shape \(0,\)"),
        (torch.zeros(1, dtype=torch.complex64), r"'mine' is a tensor of shape \(1,\)"),
        (np.zeros(3), "'mine' is array"),
        ([1.0], r"'mine' is \[1.0\]"),
    ],
)
def test_what_is_no_number_is_refused(value, said):
    net, _ = fresh()
    watch = Monitor(net, every=1)
    with watch.step() as step:
        with pytest.raises(OptionError, match=f"step.log takes numbers, or tensors of one number; {said}"):
            step.log(mine=value)
        net(torch.ones(1, 3))
    assert watch.history[0].scalars == {}


@pytest.mark.parametrize("name", ["learning_rate", "gradient_norm"])
def test_names_of_the_monitors_own_are_refused(name):
    with pytest.raises(OptionError, match=f"'{name}' is reserved: the monitor logs it itself. Choose another name"):
        Step(0).log(**{name: 1.0})


def test_after_its_block_nothing_is_logged():
    net, _ = fresh()
    watch = Monitor(net, every=1)
    with watch.step(4) as step:
        net(torch.ones(1, 3))
    with pytest.raises(OptionError, match=r"step 4 is over; call step\.log inside"):
        step.log(loss=1.0)
    with pytest.raises(RuntimeError, match="stop"), watch.step(5) as step:
        raise RuntimeError("stop")
    with pytest.raises(OptionError, match="step 5 is over"):
        step.log(loss=1.0)


def test_scalars_are_in_history_report_and_sinks(tmp_path):
    net, optimizer = fresh()
    kept = Kept()
    with Monitor(net, every=2, to=[tmp_path, kept]) as watch:
        losses = [one_step(net, optimizer, watch, accuracy=i / 10) for i in range(5)]
    assert watch.history.steps == [0, 2, 4]
    assert set(watch.history.scalars) == {"loss", "accuracy", "learning_rate", "gradient_norm"}
    np.testing.assert_allclose(watch.history.values("loss"), losses[::2], rtol=1e-12)
    np.testing.assert_allclose(watch.history.values("accuracy"), [0.0, 0.2, 0.4], rtol=1e-12)
    assert [each.sample.scalars["loss"] for each in kept.records] == losses[::2]
    assert list(History.load(tmp_path)) == list(watch.history)
    assert panels(watch) == ["loss", "learning_rate", "gradient_norm", "accuracy"]
    net, optimizer = fresh()
    without = Monitor(net, every=2)
    for _ in range(5):
        with without.step():
            net(torch.ones(4, 3)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert panels(without) == ["learning_rate", "gradient_norm"]
    with pytest.raises(LayerError, match="no scalar 'loss' was recorded; recorded: learning_rate, gradient_norm"):
        without.history.values("loss")


def test_a_scalar_that_comes_now_and_then_is_nan_between():
    net, optimizer = fresh()
    watch = Monitor(net, every=1)
    for i in range(4):
        one_step(net, optimizer, watch, **({"accuracy": 0.5} if i % 2 else {}))
    np.testing.assert_array_equal(watch.history.values("accuracy"), [np.nan, 0.5, np.nan, 0.5])
    assert watch.history.line("accuracy") == [None, 0.5, None, 0.5]


def test_scalars_are_in_a_state_that_is_resumed():
    net, optimizer = fresh()
    first = Monitor(net, every=1)
    for value in (0.5, math.nan, math.inf):
        one_step(net, optimizer, first, accuracy=value)
    state = json.loads(json.dumps(first.state_dict()["samples"], allow_nan=False))
    second = Monitor(net, every=1)
    second.load_state_dict({**first.state_dict(), "samples": state})
    one_step(net, optimizer, second, accuracy=0.75)
    np.testing.assert_array_equal(second.history.values("accuracy"), [0.5, np.nan, np.inf, 0.75])
    assert second.history.values("loss")[0] == first.history.values("loss")[0]


def test_files_from_before_scalars_and_inputs_are_read(tmp_path):
    net, optimizer = fresh()
    with Monitor(net, every=1, to=tmp_path) as watch:
        one_step(net, optimizer, watch)
    file = tmp_path / "samples.jsonl"
    old = json.loads(file.read_text())
    assert old.pop("scalars")
    assert old.pop("inputs")
    file.write_text(json.dumps(old) + "\n")
    (sample,) = History.load(tmp_path)
    assert (sample.scalars, sample.inputs) == ({}, {})
    assert sample.layers == watch.history[0].layers
    assert Sample.from_dict(sample.as_dict()) == sample
    with Monitor(net, every=1, to=tmp_path) as later:
        one_step(net, optimizer, later)
    assert later.history.steps == [0, 1]
    assert math.isnan(later.history.values("loss")[0])
    assert later.report().pixels.ndim == 3


def test_what_is_logged_between_two_looks_is_kept_for_the_records_only():
    net, optimizer = fresh()
    watch, accounts = Monitor(net, every=3), []
    look = watch._log.findings.look
    watch._log.findings.look = lambda sample, account: accounts.append(account) or look(sample, account)
    losses = [one_step(net, optimizer, watch, accuracy=float(i)) for i in range(7)]
    assert watch.history.values("accuracy").tolist() == [0.0, 3.0, 6.0]
    records = [record for account in accounts for record in account.records]
    assert [record.step for record in records] == list(range(7))
    assert [record.loss for record in records] == losses
    assert [record.scalars["accuracy"] for record in records] == list(range(7))


def test_a_value_is_what_it_was_when_it_was_logged():
    """A running sum, say, to which later steps add in place."""
    net, optimizer = fresh()
    watch, accounts, total = Monitor(net, every=3), [], torch.zeros(())
    look = watch._log.findings.look
    watch._log.findings.look = lambda sample, account: accounts.append(account) or look(sample, account)
    for _ in range(4):
        total += 1
        one_step(net, optimizer, watch, total=total)
    assert [record.scalars["total"] for record in accounts[-1].records] == [2.0, 3.0, 4.0]
