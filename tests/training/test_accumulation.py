"""A step is an optimizer's: a look goes on over all blocks until it steps, with the figures that one block has."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from torch_featviz.training import Monitor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)  # runs last
        self.conv = nn.Conv2d(1, 2, 3)
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        return self.head(self.drop(torch.tanh(self.conv(x)).flatten(1)))


def fresh():
    torch.manual_seed(0)
    net = Net()
    return net, torch.optim.AdamW(net.parameters(), 1e-2)


def batches(n):
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 1, 4, 4, generator=g), torch.randint(3, (4,), generator=g)) for _ in range(n)]


def backward(net, x, y, parts):
    (cross_entropy(net(x), y) / parts).backward()


def hooks():
    return len(_global_optimizer_pre_hooks) + len(_global_optimizer_post_hooks)


@pytest.mark.parametrize("every", [1, 2, 100])
@pytest.mark.parametrize("options", [{}, {"check_finite": False}], ids=str)
def test_each_look_has_gradients_and_is_the_same_as_of_one_block(every, options):
    net, optimizer = fresh()
    apart, steps = Monitor(net, every=every, **options), 101 if every == 100 else 5
    torch.manual_seed(5)
    for i, (x, y) in enumerate(batches(8 * steps)):
        with apart.step():
            backward(net, x, y, 8)
            if i % 8 == 7:
                optimizer.step()
                optimizer.zero_grad()
    other, optimizer = fresh()
    whole, given = Monitor(other, every=every, **options), batches(8 * steps)
    torch.manual_seed(5)
    for i in range(steps):
        with whole.step():
            for x, y in given[8 * i : 8 * i + 8]:
                backward(other, x, y, 8)
            optimizer.step()
            optimizer.zero_grad()
    assert apart.history.steps == list(range(0, steps, every))
    assert [each.as_dict() for each in apart.history] == [each.as_dict() for each in whole.history]
    assert all(figures.grad_norm > 0 for sample in apart.history for figures in sample.parameters.values())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert apart.findings == whole.findings == ()


def test_a_block_without_backward_is_a_step():
    net, optimizer = fresh()
    watch = Monitor(net, every=1)
    for i, (x, y) in enumerate(batches(6)):
        with watch.step() as step:
            assert step.number == i
            if i % 2:
                net(x)
            else:
                backward(net, x, y, 1)
                optimizer.step()
                optimizer.zero_grad()
        assert not watch.unfinished
        assert not hooks()
    assert watch.history.steps == list(range(6))
    assert [each.parameters["head.weight"].grad_norm is None for each in watch.history] == [False, True] * 3


def test_numbers_of_the_optimizers_steps_may_be_given():
    net, optimizer = fresh()
    watch = Monitor(net, every=2)
    for i, (x, y) in enumerate(batches(20)):
        with watch.step(10 + i // 4) as step:
            backward(net, x, y, 4)
            assert step.number == 10 + i // 4
            if i % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    assert watch.history.steps == [10, 12, 14]
    assert all(sample.parameters["conv.weight"].grad_norm for sample in watch.history)
    whole = sum(watch.history[0].layers["head"].histogram.counts)
    assert whole == 4 * 4 * 3  # all batches


def test_numbers_may_be_those_of_batches():
    net, optimizer = fresh()
    watch = Monitor(net, every=6)
    for number, (x, y) in enumerate(batches(24)):
        with watch.step(number):
            backward(net, x, y, 4)
            if number % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    assert watch.history.steps == [0, 8, 12, 20]
    assert all(sample.parameters["conv.weight"].grad_norm for sample in watch.history)


def test_the_optimizer_may_step_after_the_block():
    """As in trainers, whose batch ends before."""
    net, optimizer = fresh()
    watch = Monitor(net, every=1)
    for x, y in batches(3):
        optimizer.zero_grad()
        with watch.step() as step:
            loss = cross_entropy(net(x), y)
            loss.backward()
            step.log(loss=loss)
        assert watch.unfinished
        optimizer.step()
        assert not watch.unfinished
    assert watch.history.steps == [0, 1, 2]  # read before the third is closed
    watch.close()
    assert [each.step for each in watch.history] == [0, 1, 2]
    other, optimizer = fresh()
    whole = Monitor(other, every=1)
    torch.manual_seed(0)
    fresh()
    for x, y in batches(3):
        optimizer.zero_grad()
        with whole.step() as step:
            loss = cross_entropy(other(x), y)
            loss.backward()
            step.log(loss=loss)
            optimizer.step()
    assert list(watch.history) == list(whole.history)
    assert not hooks()


def test_history_amid_a_step_shows_it_as_far_as_it_came_and_loses_nothing():
    seen = []
    for reads in (False, True):
        net, optimizer = fresh()
        watch, counts = Monitor(net, every=1), []
        torch.manual_seed(5)
        for i, (x, y) in enumerate(batches(8)):
            with watch.step():
                backward(net, x, y, 4)
                if i % 4 == 3:
                    optimizer.step()
                    optimizer.zero_grad()
            if reads:
                assert watch.findings == ()
                assert watch.history.steps == list(range(i // 4 + 1))
                counts.append(sum(watch.history[-1].layers["head"].histogram.counts))
                assert (watch.history[-1].parameters["head.weight"].grad_norm is None) == (i % 4 != 3)
                assert len(watch.state_dict()["samples"]["items"]) == i // 4 + 1
                assert watch.report().numpy().ndim == 3
        seen.append([each.as_dict() for each in watch.history])
        assert counts == [12, 24, 36, 48] * 2 * reads
    assert flat(seen[1]) == pytest.approx(flat(seen[0]), rel=1e-13, abs=0)  # sums are split where they were read


def flat(plain, path=""):
    """The numbers of nested lists and dicts, by where they are."""
    if isinstance(plain, (dict, list, tuple)):
        items = plain.items() if isinstance(plain, dict) else enumerate(plain)
        return {place: each for key, value in items for place, each in flat(value, f"{path}/{key}").items()}
    return {} if plain is None else {path: plain}


def test_closed_amid_a_step_it_is_kept_as_far_as_it_came():
    net, _optimizer = fresh()
    watch = Monitor(net, every=1)
    for x, y in batches(2):
        with watch.step():
            backward(net, x, y, 4)
    assert hooks() == 2
    watch.close()
    assert not hooks()
    (sample,) = watch.history
    assert sum(sample.layers["head"].histogram.counts) == 24
    assert sample.parameters["head.weight"].grad_norm is None
    watch.close()
    assert len(watch.history) == 1


@pytest.mark.parametrize("every", [1, 2])
def test_a_block_that_raises_ends_its_step(every):
    net, optimizer = fresh()
    watch, given = Monitor(net, every=every), batches(8)
    for x, y in given[:2]:
        with watch.step():
            backward(net, x, y, 4)
    with pytest.raises(RuntimeError, match="out of memory"), watch.step():  # noqa: PT012
        net(given[2][0])
        raise RuntimeError("out of memory")
    assert not watch.unfinished
    assert not hooks()
    assert sum(watch.history[0].layers["head"].histogram.counts) == 36
    optimizer.zero_grad()
    for i, (x, y) in enumerate(given[:4]):
        with watch.step(2):
            backward(net, x, y, 4)
            if i == 3:
                optimizer.step()
                optimizer.zero_grad()
    assert watch.history.steps == [0, 2]
    assert watch.history[1].parameters["conv.weight"].grad_norm > 0


def test_between_the_blocks_the_model_is_as_it_was(instance_state):
    net, optimizer = fresh()
    before, names = instance_state(net), list(net.state_dict())
    compared = [sorted(vars(module)) for module in net.modules()]
    watch = Monitor(net, every=1)
    for i, (x, y) in enumerate(batches(4)):
        with watch.step():
            assert [sorted(vars(module)) for module in net.modules()] != compared
            backward(net, x, y, 4)
            if i == 3:
                optimizer.step()
        assert instance_state(net) == before
        assert [sorted(vars(module)) for module in net.modules()] == compared
        assert list(net.state_dict()) == names
        for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert [sorted(vars(module)) for module in twin.modules()] == compared
            assert torch.equal(twin.eval()(x), copy.deepcopy(net).eval()(x))
        net(x).sum()  # evaluated between two blocks: not of the step
        assert watch.unfinished == (i < 3)
        assert hooks() == (2 if i < 3 else 0)
    assert sum(watch.history[0].layers["head"].histogram.counts) == 48


def test_a_skipped_step_of_a_scaler_goes_on_with_the_next():
    net = nn.Linear(4, 2)
    optimizer, scaler = torch.optim.SGD(net.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=2.0**16)
    watch, stepped = Monitor(net, every=1), []
    for i in range(6):
        before = net.weight.detach().clone()
        with watch.step():
            optimizer.zero_grad()
            loss = net(torch.ones(2, 4)).square().mean()
            scaler.scale(loss * (1e37 if i in (0, 3) else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        stepped.append(not torch.equal(before, net.weight))
    assert stepped == [False, True, True, False, True, True]
    assert watch.history.steps == [0, 1, 2, 3]
    norms = watch.history.values("weight", "grad_norm")
    assert all(math.isfinite(norm) and norm > 0 for norm in norms)
    assert watch.findings == ()


def test_accelerate_agrees_with_the_plain_loop():
    accelerate = pytest.importorskip("accelerate")
    net, optimizer = fresh()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    prepared, driven = accelerator.prepare(net, optimizer)
    watch = Monitor(prepared, every=2)
    torch.manual_seed(5)
    for x, y in batches(20):
        with watch.step(), accelerator.accumulate(prepared):
            accelerator.backward(cross_entropy(prepared(x), y))
            driven.step()
            driven.zero_grad()
    other, optimizer = fresh()
    plain = Monitor(other, every=2)
    torch.manual_seed(5)
    for i, (x, y) in enumerate(batches(20)):
        with plain.step():
            backward(other, x, y, 4)
            if i % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    assert watch.history.steps == plain.history.steps == [0, 2, 4]
    assert list(watch.history) == list(plain.history)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_block_that_only_looks_is_a_step_of_its_own_beside_old_gradients():
    """With `zero_grad` at the beginning, the gradients of the last step are still there."""
    net = nn.Linear(4, 2)
    optimizer, watch, numbers = torch.optim.SGD(net.parameters(), 0.1), Monitor(net, every=1), []
    for i in range(8):
        with watch.step() as step:
            numbers.append(step.number)
            if i % 2:
                net(torch.randn(3, 4))
            else:
                optimizer.zero_grad()
                net(torch.randn(3, 4)).square().mean().backward()
                optimizer.step()
    assert numbers == list(range(8))
    assert [sample.parameters["weight"].grad_norm is not None for sample in watch.history] == [True, False] * 4


def test_a_long_accumulation():
    net = nn.Linear(4, 2)
    optimizer, watch = torch.optim.SGD(net.parameters(), 0.1), Monitor(net, every=1)
    for i in range(600):
        with watch.step():
            net(torch.randn(3, 4)).square().mean().backward()
            if i % 200 == 199:
                optimizer.step()
                optimizer.zero_grad()
    assert watch.history.steps == [0, 1, 2]
    assert not watch.findings
