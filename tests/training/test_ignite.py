"""Ignite's own engines on tiny nets: they train as without the Monitor, and the figures are those of a plain loop."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from torch_featviz.errors import OptionError
from torch_featviz.training import Monitor

ignite = pytest.importorskip("ignite.engine")

from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer  # noqa: E402

from torch_featviz.training import attach_ignite  # noqa: E402


def fresh():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3))


def data(batches=10):
    g = torch.Generator().manual_seed(3)
    return [(torch.randn(4, 2, 6, 6, generator=g), torch.randint(3, (4,), generator=g)) for _ in range(batches)]


def supervised(net, accumulate=1):
    torch.manual_seed(7)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    loss = nn.CrossEntropyLoss()
    return create_supervised_trainer(net, optimizer, loss, gradient_accumulation_steps=accumulate)


def nothing_is_left_on(net):
    return (
        not _global_optimizer_pre_hooks
        and not _global_optimizer_post_hooks
        and not any("forward" in vars(module) for module in net.modules())
    )


def amp(net):
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)

    def update(engine, batch):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(net(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    torch.manual_seed(7)
    return Engine(update)


@pytest.mark.parametrize("make", [supervised, amp])
def test_training_is_what_it_would_have_been(make):
    runs = {}
    for watched in (False, True):
        net = fresh()
        engine, losses = make(net), []
        engine.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine, kept=losses: kept.append(engine.state.output)
        )
        watch = Monitor(net, every=3)
        if watched:
            attach_ignite(engine, watch)
        engine.run(data(), max_epochs=5)
        values = [value for p in net.parameters() for value in (p.detach(), p.grad)]
        runs[watched] = losses, [*values, torch.get_rng_state()]
        assert watch.history.steps == (list(range(0, 50, 3)) if watched else [])
        assert nothing_is_left_on(net)
    assert len(runs[True][0]) == 50
    assert runs[True][0] == runs[False][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[True][1], runs[False][1], strict=True))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_figures_are_those_of_a_plain_loop(accumulate):
    net, plain = fresh(), fresh()
    watch, expected = Monitor(net, every=1), Monitor(plain, every=1)
    engine = supervised(net, accumulate)
    attach_ignite(engine, watch, accumulate=accumulate)
    engine.run(data(9))
    optimizer, batches = torch.optim.AdamW(plain.parameters(), 1e-2), iter(data(9))
    torch.manual_seed(7)
    for i, (x, y) in enumerate(batches):  # a block a batch
        with expected.step() as step:
            loss = nn.functional.cross_entropy(plain(x), y) / accumulate
            loss.backward()
            step.log(loss=loss * accumulate)
            if (i + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    assert expected.history[0].layers["4"].std > 0
    losses = watch.history.values("loss")
    np.testing.assert_allclose(losses, expected.history.values("loss"), rtol=1e-5)
    for sample, other in zip(watch.history, expected.history, strict=True):
        assert replace(sample, scalars={**sample.scalars, "loss": other.scalars["loss"]}) == other


def test_an_evaluator_on_the_same_model_is_not_counted():
    net = fresh()
    engine, evaluator, watch = supervised(net), create_supervised_evaluator(net), Monitor(net, every=1)
    big = [(1000 * x, y) for x, y in data(2)]
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: evaluator.run(big))  # before ours, and after
    attach_ignite(engine, watch)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: evaluator.run(big))
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: evaluator.run(big))
    engine.run(data(4))
    assert watch.history.steps == [0, 1, 2, 3]
    for sample in watch.history:
        assert sample.layers["0"].max < 20
        assert sum(sample.layers["4"].histogram.counts) == 4 * 3


def test_runs_are_counted_on_and_one_can_resume():
    net = fresh()
    engine, watch = supervised(net), Monitor(net, every=4)
    attach_ignite(engine, watch)
    engine.run(data(), max_epochs=1)
    engine.run(data(), max_epochs=1)  # from its first iteration again
    assert watch.history.steps == [0, 4, 8, 12, 16]
    other = Monitor(net, every=4)
    other.load_state_dict(watch.state_dict())
    again = supervised(net)
    attach_ignite(again, other)
    again.load_state_dict({"iteration": 20, "max_epochs": 3, "epoch_length": 10})
    again.run(data())
    assert other.history.steps == [*range(0, 20, 4), 20, 24, 28]
    assert list(other.history)[:5] == list(watch.history)


def fails(net, at):
    update = supervised(net)._process_function

    def process(engine, batch):
        if engine.state.iteration == at:
            net(batch[0])
            raise ValueError("broken batch")
        return update(engine, batch)

    return Engine(process)


def test_an_exception_ends_the_step_and_reaches_the_caller():
    net = fresh()
    engine, watch = fails(net, 4), Monitor(net, every=1)
    attach_ignite(engine, watch)
    with pytest.raises(ValueError, match="broken batch"):
        engine.run(data())
    assert watch.history.steps == [0, 1, 2, 3]
    assert watch.history[3].layers["4"].std > 0  # as far as it came
    assert watch.history[3].parameters["4.weight"].grad_norm is None
    assert nothing_is_left_on(net)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("raises", [True, False])
def test_what_other_handlers_do_with_an_exception_stands(first, raises):
    net, seen = fresh(), []
    engine, watch = fails(net, 4), Monitor(net, every=1)

    def handler(engine, error):
        seen.append(error)
        if raises:
            raise RuntimeError("what the handler says") from error

    if not first:
        attach_ignite(engine, watch)
    engine.add_event_handler(Events.EXCEPTION_RAISED, handler)
    if first:
        attach_ignite(engine, watch)
    if raises:
        with pytest.raises(RuntimeError, match="what the handler says"):
            engine.run(data(4))
    else:
        engine.run(data(4))
    assert isinstance(seen[0], ValueError)
    assert watch.history.steps == [0, 1, 2, 3]
    assert nothing_is_left_on(net)


@pytest.mark.parametrize("stop", ["terminate", "terminate_epoch"])
@pytest.mark.parametrize("event", [Events.ITERATION_STARTED, Events.ITERATION_COMPLETED])
def test_a_run_that_is_stopped_leaves_nothing_behind(stop, event):
    net = fresh()
    engine, watch = supervised(net, 3), Monitor(net, every=1)
    attach_ignite(engine, watch, accumulate=3)
    engine.add_event_handler(event(once=5), getattr(engine, stop))
    engine.run(data(9), max_epochs=1)
    assert watch.history.steps == [0, 1]  # the second came as far as its first or second iteration
    assert nothing_is_left_on(net)


def test_it_can_be_removed():
    net = fresh()
    engine, watch, second = supervised(net), Monitor(net, every=1), Monitor(net, every=1)
    update = engine._process_function
    handle = attach_ignite(engine, watch)
    engine.run(data(2))
    handle.remove()
    handle.remove()
    assert engine._process_function == update
    assert not engine.has_event_handler(handle._run_ends)
    engine.run(data(2))
    assert watch.history.steps == [0, 1]
    handle = attach_ignite(engine, watch)
    outer = attach_ignite(engine, second)  # of the same engine
    handle.remove()
    engine.run(data(2))
    outer.remove()
    assert watch.history.steps == second.history.steps == [0, 1]
    engine.run(data(2))
    assert second.history.steps == [0, 1]


def test_removed_in_the_middle_of_a_step():
    net = fresh()
    engine, watch = supervised(net, 4), Monitor(net, every=1)
    handle = attach_ignite(engine, watch, accumulate=4)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: handle.remove())
    engine.run(data(8))
    assert watch.history.steps == [0]
    assert nothing_is_left_on(net)


def test_a_handler_that_raises_within_a_step():
    def fails():
        def handler():
            raise ValueError("broken handler")

        engine = supervised(net, 3)
        attach_ignite(engine, watch, accumulate=3)
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), handler)
        with pytest.raises(ValueError, match="broken handler"):
            engine.run(data(9))

    net = fresh()
    watch = Monitor(net, every=1)
    fails()
    gc.collect()  # the step ends with the engine, at the latest
    assert watch.history.steps == [0, 1]
    assert sum(watch.history[1].layers["4"].histogram.counts) == 2 * 4 * 3
    assert nothing_is_left_on(net)


@pytest.mark.parametrize("accumulate", [0, -1, 1.5])
def test_iterations_of_a_step_are_at_least_one(accumulate):
    net = fresh()
    with pytest.raises(OptionError, match=f"accumulate must be at least 1 iteration.*, got {accumulate}"):
        attach_ignite(supervised(net), Monitor(net), accumulate=accumulate)
