"""Optimizers are seen as they step: closures, several at once, those of other models, and what a step leaves behind."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from torch_featviz.errors import OptionError
from torch_featviz.training import Monitor
from torch_featviz.training.optimizers import Optimizers


def fresh():
    torch.manual_seed(0)
    return nn.ModuleDict({"body": nn.Linear(3, 4), "head": nn.Linear(4, 2)})


def loss_of(net, x=None):
    x = torch.linspace(-1, 1, 15).reshape(5, 3) if x is None else x
    return net["head"](torch.tanh(net["body"](x))).square().mean()


def norm_of_all(parameters):
    return math.sqrt(sum(float((p.grad.double().numpy() ** 2).sum()) for p in parameters if p.grad is not None))


def hooks():
    return len(_global_optimizer_pre_hooks) + len(_global_optimizer_post_hooks)


class Listens:
    def __init__(self):
        self.heard = []

    def measure(self, optimizer):
        self.heard.append(("measure", type(optimizer).__name__))

    def stepped(self, optimizer):
        self.heard.append(("stepped", type(optimizer).__name__))


def test_a_listener_is_told_of_the_models_optimizers_only():
    net, other, listener = fresh(), fresh(), Listens()
    ours, theirs = torch.optim.SGD(net.parameters(), 0.1), torch.optim.Adam(other.parameters())
    optimizers = Optimizers()
    optimizers.of(list(net.parameters()))
    optimizers.begin()
    optimizers.listen([listener], fully=True)
    assert hooks() == 2
    theirs.step()
    assert (listener.heard, optimizers.stepped, optimizers.others) == ([], False, [theirs])
    loss_of(net).backward()
    ours.step()
    optimizers.stop()
    assert not hooks()
    assert listener.heard == [("measure", "SGD"), ("stepped", "SGD")]
    assert optimizers.stepped
    assert set(optimizers.known) == {ours}
    optimizers.begin()
    assert (optimizers.stepped, optimizers.others, optimizers.ever) == (False, [], True)
    ours.step()
    assert len(listener.heard) == 2  # not heard outside
    optimizers.listen([listener], fully=False)  # between two looks
    assert hooks() == 1
    ours.step()
    optimizers.stop()
    assert listener.heard[2:] == [("measure", "SGD")]
    assert (optimizers.stepped, optimizers.groups) == (True, [])


def test_what_is_no_optimizer_is_refused():
    net = fresh()
    with pytest.raises(OptionError, match=r"optimizer must be a torch.optim.Optimizer, or several, got 'adam'"):
        Optimizers(["adam"])
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(net.parameters(), 0.1), 3)
    with pytest.raises(OptionError, match=r"or several, got <torch\.optim\.lr_scheduler"):
        Monitor(net, optimizer=[scheduler])


def test_holders_are_those_that_were_given_or_all_that_live():
    net = fresh()
    body, head = torch.optim.SGD(net["body"].parameters(), 0.1), torch.optim.Adam(net["head"].parameters())
    for given, expected in ((None, {"SGD", "Adam"}), (body, {"SGD"}), ([body, head], {"SGD", "Adam"})):
        optimizers = Optimizers(given)
        optimizers.of(list(net.parameters()))
        holders = optimizers.holders()
        assert set(holders.values()) == expected
        assert len(holders) == 2 * len(expected)
    assert holders[id(net["head"].weight)] == "Adam"


def test_lbfgs_is_seen_at_its_first_gradient():
    net, watch = fresh(), None
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=5)
    watch, calls, norms = Monitor(net, every=1), [], []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        calls.append(loss.item())
        norms.append(norm_of_all(net.parameters()))
        return loss

    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with watch.step():
        optimizer.step(closure)
    assert len(calls) > 1
    (sample,) = watch.history
    assert sample.scalars["gradient_norm"] == pytest.approx(norms[0], rel=1e-6)
    for name, each in sample.parameters.items():
        moved = np.linalg.norm((net.get_parameter(name) - before[name]).detach().double().numpy())
        assert each.update_ratio == pytest.approx(moved / np.linalg.norm(before[name].numpy()), rel=1e-4)
    twin = fresh()
    optimizer = torch.optim.LBFGS(twin.parameters(), lr=0.5, max_iter=5)
    net, calls = twin, []
    optimizer.step(closure)
    assert all(torch.equal(p, q) for p, q in zip(twin.parameters(), watch._model.parameters(), strict=True))


def test_two_optimizers_in_one_block():
    net = fresh()
    first = torch.optim.SGD(net["body"].parameters(), 0.1)
    second = torch.optim.Adam(net["head"].parameters(), 0.01)
    watch = Monitor(net, every=1)
    for _ in range(3):
        with watch.step():
            loss_of(net).backward()
            norm = norm_of_all(net.parameters())
            first.step()
            second.step()
            first.zero_grad()
            second.zero_grad()
    sample = watch.history[-1]
    assert all(each.grad_norm > 0 and each.update_ratio > 0 for each in sample.parameters.values())
    assert sample.scalars["gradient_norm"] == pytest.approx(norm, rel=1e-6)
    assert (sample.scalars["learning_rate/0"], sample.scalars["learning_rate/1"]) == (0.1, 0.01)
    assert watch.findings == ()


def test_of_several_steps_in_one_block_the_last_is_seen():
    net = fresh()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    watch = Monitor(net, every=1)
    with watch.step():
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(net).backward()
            optimizer.step()
            norm, rate = norm_of_all(net.parameters()), optimizer.param_groups[0]["lr"]
            optimizer.param_groups[0]["lr"] /= 2
    (sample,) = watch.history
    assert sample.scalars == {"learning_rate": rate, "gradient_norm": pytest.approx(norm, rel=1e-6)}
    of_weights = math.sqrt(sum(each.grad_norm**2 for each in sample.parameters.values()))
    assert of_weights == pytest.approx(norm, rel=1e-6)


def test_steps_in_turn_are_steps_of_their_own():
    """As of a GAN whose two halves are one module."""
    net = fresh()
    each = [torch.optim.SGD(net[name].parameters(), rate) for name, rate in (("body", 0.1), ("head", 0.2))]
    watch = Monitor(net, every=1)
    for i in range(4):
        with watch.step():
            for optimizer in each:
                optimizer.zero_grad()
            loss_of(net).backward()
            each[i % 2].step()
    assert watch.history.steps == [0, 1, 2, 3]
    np.testing.assert_array_equal(watch.history.values("learning_rate"), [0.1, 0.2, 0.1, 0.2])
    moved = [sample.parameters["body.weight"].update_ratio is not None for sample in watch.history]
    assert moved == [True, False, True, False]


def test_a_learning_rate_may_be_a_tensor():
    net, rate = fresh(), torch.tensor(0.25)
    optimizer = torch.optim.Adam(net.parameters(), rate, foreach=False)
    watch = Monitor(net, every=1)
    for _ in range(2):
        with watch.step():
            loss_of(net).backward()
            optimizer.step()
            optimizer.zero_grad()
        rate.mul_(0.5)
    np.testing.assert_array_equal(watch.history.values("learning_rate"), [0.25, 0.125])


def test_a_monitor_that_is_let_go_of_amid_a_step_listens_no_more():
    net = fresh()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    watch = Monitor(net, every=1)
    with watch.step():
        loss_of(net).backward()
    assert hooks() == 2
    gone = weakref.ref(watch)
    del watch
    gc.collect()
    assert gone() is None
    assert not hooks()
    optimizer.step()


@pytest.mark.filterwarnings("ignore::torch_featviz.errors.FindingWarning")
@pytest.mark.parametrize("fails", ["closure", "step"])
def test_a_step_that_fails_leaves_no_hook(fails):
    net = fresh()
    optimizer = torch.optim.LBFGS(net.parameters())
    watch = Monitor(net, every=1)

    def closure():
        raise RuntimeError("no")

    with pytest.raises((RuntimeError, TypeError)), watch.step():
        optimizer.step(closure if fails == "closure" else None)
    assert not hooks()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with watch.step():
        loss_of(net).backward()
        optimizer.step()
    assert watch.history[-1].parameters["body.weight"].grad_norm > 0
