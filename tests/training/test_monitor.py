"""What a Monitor sees equals what NumPy says of the gathered tensors, and the training is what it would have been."""

import copy
import io
import math
import os
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.checkpoint import checkpoint

from torch_featviz.errors import DtypeError, FeatvizWarning, LayerError, OptionError
from torch_featviz.launching import gpu
from torch_featviz.picture import Scale
from torch_featviz.training import History, Monitor, Sample
from torch_featviz.training.updates import norm_of


class Net(nn.Module):
    """A reused layer, dropout, an in-place activation, a checkpoint."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(4 * 36, 3)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        x = self.again(self.act(self.again(x)))
        x = checkpoint(lambda y: self.drop(torch.relu(y)), x, use_reentrant=False)
        return self.fc(x.flatten(1))


def data(steps):
    g = torch.Generator().manual_seed(3)
    return [(torch.randn(5, 2, 6, 6, generator=g), torch.randint(3, (5,), generator=g)) for _ in range(steps)]


def plain(loss, optimizer, scaler, step):
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def accumulated(loss, optimizer, scaler, step):
    (loss / 2).backward()
    if step % 2:
        optimizer.step()
        optimizer.zero_grad()


def scaled(loss, optimizer, scaler, step):
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


LOOPS = {"plain": plain, "accumulated": accumulated, "scaled": scaled}


def train(net, steps, *, loop="plain", amp=False, watch=None, model=None):
    """Losses; `net` is trained in place, through `model` where that is another view of it."""
    torch.manual_seed(7)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = []
    for step, (x, y) in enumerate(data(steps)):
        with watch.step() if watch else torch.enable_grad():
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                loss = nn.functional.cross_entropy((model or net)(x), y)
            LOOPS[loop](loss, optimizer, scaler, step)
        losses.append(loss.item())
    return losses, torch.get_rng_state()


def fresh():
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("amp", [False, True])
def test_training_is_what_it_would_have_been(loop, amp):
    bare, watched = fresh(), fresh()
    watch = Monitor(watched, every=3)
    expected, rng = train(bare, 50, loop=loop, amp=amp)
    losses, rng_watched = train(watched, 50, loop=loop, amp=amp, watch=watch)
    assert losses == expected
    assert torch.equal(rng, rng_watched)
    for (name, a), b in zip(bare.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert watch.history.steps == list(range(0, 25 if loop == "accumulated" else 50, 3))


def test_compiled_training_is_what_it_would_have_been():
    class Plain(nn.Sequential):
        pass

    def build():
        torch.manual_seed(0)
        return Plain(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3))

    bare, watched = build(), build()
    expected, _ = train(bare, 6, model=torch.compile(bare, backend="aot_eager"))
    compiled = torch.compile(watched, backend="aot_eager")
    watch = Monitor(compiled, every=2)
    losses, _ = train(watched, 6, model=compiled, watch=watch)
    assert losses == expected
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), watched.parameters(), strict=True))
    assert list(watch.history[2].layers) == ["0", "3"]
    eager = build()
    train(eager, 6, watch=(other := Monitor(eager, every=2)))
    for name in ("0", "3"):
        np.testing.assert_allclose(other.history.values(name, "std"), watch.history.values(name, "std"), rtol=1e-5)


def oracle(net, x, y):
    """Every output of the layers, gradients and moves of one step of plain SGD, as float64 arrays."""
    seen = {}
    for name in ("conv", "again", "fc"):
        net.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.setdefault(name, []).append(output.detach().double().numpy())
        )
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    before = {name: p.detach().double().numpy().copy() for name, p in net.named_parameters()}
    torch.manual_seed(1)
    nn.functional.cross_entropy(net(x), y).backward()
    grads = {name: p.grad.double().numpy() for name, p in net.named_parameters()}
    optimizer.step()
    after = {name: p.detach().double().numpy().copy() for name, p in net.named_parameters()}
    return seen, before, grads, after


def test_figures_are_those_of_numpy():
    net, other = fresh(), fresh()
    ((x, y),) = data(1)
    with torch.no_grad():  # channels that never fire, and exact zeros
        for each in (net, other):
            each.conv.weight[1] = 0
            each.conv.bias[1] = 0
            each.conv.bias[2] = -50
    seen, before, grads, after = oracle(other, x, y)
    watch = Monitor(net, every=1, bins=16)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    torch.manual_seed(1)
    with watch.step():
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    (sample,) = watch.history
    assert list(sample.layers) == ["conv", "norm", "again", "fc"]
    for name in ("conv", "again", "fc"):
        figures = sample.layers[name]
        outputs = seen[name]
        channels = np.concatenate([each.swapaxes(0, 1).reshape(each.shape[1], -1) for each in outputs], axis=1)
        np.testing.assert_allclose(figures.mean, channels.mean(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(figures.std, channels.std(), rtol=1e-5)
        assert (figures.min, figures.max) == (channels.min(), channels.max())
        assert figures.zero_share == (channels == 0).mean()
        assert (figures.dead, figures.channels) == ((channels.max(1) <= 0).sum(), len(channels))
        assert (figures.nan, figures.inf) == (0, 0)
        bins = figures.histogram
        edges = bins.start + np.arange(17) * bins.width
        assert bins.counts == tuple(np.histogram(channels, edges)[0])
        assert sum(bins.counts) == channels.size
    assert sample.layers["conv"].dead == 2
    assert set(sample.parameters) == {name for name, _ in net.named_parameters()}
    whole = np.sqrt(sum(np.square(grad).sum() for grad in grads.values()))
    np.testing.assert_allclose(sample.scalars.pop("gradient_norm"), whole, rtol=1e-6)
    assert sample.scalars == {"learning_rate": 0.1}
    given, values = sample.inputs["inputs"], x.double().numpy()
    np.testing.assert_allclose((given.mean, given.std), (values.mean(), values.std()), rtol=1e-5)
    assert (given.min, given.max, given.channels) == (values.min(), values.max(), 2)
    for name, figures in sample.parameters.items():
        np.testing.assert_allclose(figures.norm, np.linalg.norm(after[name]), rtol=1e-6)
        np.testing.assert_allclose(figures.grad_norm, np.linalg.norm(grads[name]), rtol=1e-6)
        moved = np.linalg.norm(after[name] - before[name])
        with np.errstate(divide="ignore"):  # a norm's bias begins at 0
            ratio = moved / np.linalg.norm(before[name])
        np.testing.assert_allclose(figures.update_ratio, ratio, rtol=1e-4, atol=1e-9)
        bins = figures.grad_histogram
        assert bins.counts == tuple(np.histogram(grads[name], bins.start + np.arange(17) * bins.width)[0])


def test_gradients_are_those_the_optimizer_got():
    plain_net, scaled_net = fresh(), fresh()
    train(plain_net, 3, watch=(one := Monitor(plain_net, every=1)))
    train(scaled_net, 3, loop="scaled", watch=(two := Monitor(scaled_net, every=1)))
    for a, b in zip(one.history, two.history, strict=True):
        for name, figures in a.parameters.items():
            assert figures.grad_norm > 0
            assert math.isclose(figures.grad_norm, b.parameters[name].grad_norm, rel_tol=1e-4)


@pytest.mark.parametrize("by_name", [False, True])
def test_gradients_that_come_inside_the_optimizers_step(by_name):
    plain_net, net = fresh(), fresh()
    train(plain_net, 3, watch=(one := Monitor(plain_net, every=1)))
    torch.manual_seed(7)
    optimizer, two = torch.optim.AdamW(net.parameters(), 1e-2), Monitor(net, every=1)
    for x, y in data(3):

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            return loss

        with two.step():
            optimizer.step(closure=closure) if by_name else optimizer.step(closure)
    assert list(one.history) == list(two.history)


def test_a_step_goes_on_until_its_optimizer_steps():
    net, other = fresh(), fresh()
    train(net, 4, loop="accumulated", watch=(watch := Monitor(net, every=1)))
    assert watch.history.steps == [0, 1]
    torch.manual_seed(7)
    optimizer, whole = torch.optim.AdamW(other.parameters(), 1e-2), Monitor(other, every=1)
    batches = data(4)
    for both in (batches[:2], batches[2:]):  # the same in one block
        with whole.step():
            for x, y in both:
                (nn.functional.cross_entropy(other(x), y) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert list(watch.history) == list(whole.history)
    assert all(sample.parameters["fc.weight"].grad_norm for sample in watch.history)


@pytest.mark.filterwarnings("ignore:The optimizer updates other tensors:torch_featviz.errors.FindingWarning")
def test_optimizers_of_other_models_are_not_looked_at():
    net, other = fresh(), fresh()
    watch = Monitor(net, every=1)
    with watch.step():
        train(other, 1)
        net(data(1)[0][0])
    (sample,) = watch.history
    assert all(figures.grad_norm is None for figures in sample.parameters.values())


@pytest.mark.filterwarnings("ignore::torch_featviz.errors.FindingWarning")
def test_broken_values_are_counted_and_a_step_that_raises_is_kept():
    net = fresh()
    with torch.no_grad():
        net.conv.bias[0] = torch.nan
    watch = Monitor(net, every=1)
    with pytest.raises(RuntimeError, match="stop here"), watch.step():  # noqa: PT012
        net(data(1)[0][0])
        raise RuntimeError("stop here")
    (sample,) = watch.history
    assert sample.layers["conv"].nan == 5 * 36
    assert sample.layers["fc"].nan == 15
    assert math.isnan(sample.layers["fc"].mean)
    assert sum(sample.layers["fc"].histogram.counts) == 0
    assert not _global_optimizer_pre_hooks
    assert not _global_optimizer_post_hooks
    with watch.step():  # nothing is in the way of the next
        net(data(1)[0][0])
    assert watch.history.steps == [0, 1]


def test_big_gradients_do_not_overflow():
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), 1e-30)
    watch = Monitor(net, every=1)
    with watch.step():
        (net(torch.ones(1, 2)) * 1e25).sum().backward()
        optimizer.step()
    (sample,) = watch.history
    assert math.isclose(sample.parameters["weight"].grad_norm, 2e25, rel_tol=1e-6)
    assert list(sample.layers) == [""]


@pytest.mark.parametrize("size", [(1,), (4096,), (3, 5000), (64, 3, 16, 16)])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e25, 0.0])
@pytest.mark.parametrize("form", ["plain", "transposed", "bfloat16", "float64"])
def test_norms(size, scale, form):
    values = torch.randn(size) * scale
    values = values.transpose(0, -1) if form == "transposed" else values.to(getattr(torch, form, torch.float32))
    expected = np.linalg.norm(values.double().numpy())
    np.testing.assert_allclose(norm_of(values).item(), expected, rtol=1e-6)
    assert norm_of(values).dtype == torch.float64


def test_norms_of_broken_values():
    values = torch.ones(9000)
    values[8999] = torch.nan
    assert norm_of(values).isnan()
    values[8999] = torch.inf
    assert norm_of(values).isinf()


def test_the_steps_between_see_nothing(monkeypatch):
    net = fresh()
    watch = Monitor(net, every=4)
    x, _ = data(1)[0]
    for step in range(6):
        with watch.step():
            assert ("forward" in vars(net.conv)) is False or step % 4 == 0
            net(x)
        assert not _global_optimizer_pre_hooks
        assert not _global_optimizer_post_hooks
    assert watch.history.steps == [0, 4]


def test_one_transfer_for_all_figures(monkeypatch):
    moved = []
    download = gpu.download
    monkeypatch.setattr(gpu, "download", lambda packed: moved.append(len(packed)) or download(packed))
    net = fresh()
    watch = Monitor(net, every=1)
    train(net, 3, watch=watch)
    assert len(moved) == 3
    assert all(sample.parameters["fc.bias"].grad_norm for sample in watch.history)


def test_layers_that_share_a_weight_both_have_its_figures():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    watch, optimizer = Monitor(net, every=1), torch.optim.SGD(net.parameters(), 0.1)
    with watch.step():
        net(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
    (sample,) = watch.history
    assert sample.parameters["0.weight"].grad_norm > 0
    assert sample.parameters["0.weight"] == sample.parameters["1.weight"]


def test_one_step_at_a_time():
    net = nn.Linear(2, 2)
    watch = Monitor(net, every=2)
    for _ in range(2):
        with watch.step(), pytest.raises(OptionError, match="a step of this monitor is already open"), watch.step():
            pass
    with watch.step():
        net(torch.ones(1, 2))
    assert watch.history.steps == [0, 2]


def test_layers_and_bad_input():
    net = nn.Sequential(nn.Flatten(), nn.ReLU())
    watch = Monitor(net, every=1)  # nothing that learns: all leaves
    with watch.step():
        net(torch.zeros(1, 2, 2))
    assert list(watch.history[0].layers) == ["0", "1"]
    assert watch.history[0].parameters == {}
    with pytest.raises(LayerError, match="no layer 'conv9'"):
        Monitor(fresh(), ["conv9"])
    with pytest.raises(OptionError, match=r"every must be at least 1 .*, got 0"):
        Monitor(fresh(), every=0)
    with pytest.raises(OptionError, match="bins must be an even number"):
        Monitor(fresh(), bins=3)
    with pytest.raises(OptionError, match="keep must be an integer"):
        Monitor(fresh(), keep=1)
    with pytest.raises(DtypeError, match=r"model must be a torch\.nn\.Module"):
        Monitor("net")


def test_the_model_can_still_be_copied():
    net = fresh()
    train(net, 2, watch=Monitor(net, every=1))
    assert copy.deepcopy(net).state_dict().keys() == net.state_dict().keys()


def test_a_step_may_have_a_number():
    net = fresh()
    watch = Monitor(net, every=10)
    for number in (35, 40, 41, 50):
        with watch.step(number):
            net(data(1)[0][0])
    with watch.step():  # 51
        pass
    assert watch.history.steps == [40, 50]
    there = "samples of steps 50 to 50 exist already; those from step 50 on"
    with pytest.warns(FeatvizWarning, match=there) as told, watch.step(50):
        net(data(1)[0][0])
    assert told[0].filename == __file__
    assert watch.history.steps == [40, 50]
    with pytest.raises(OptionError, match="the number of a step must be an integer from 0 on, got -1"), watch.step(-1):
        pass


def test_a_state_is_gone_on_from():
    net = fresh()
    first = Monitor(net, every=2)
    train(net, 5, watch=first)
    state = torch.load(saved(first.state_dict()), weights_only=True)
    again = Monitor(net, every=2)
    again.load_state_dict(state)
    assert list(again.history) == list(first.history)
    with again.step():  # 5
        pass
    with again.step():  # 6
        net(data(1)[0][0])
    assert again.history.steps == [0, 2, 4, 6]


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_what_is_seen_is_given_to_sinks():
    class Kept:
        def __init__(self):
            self.records, self.closed = [], False

        def write(self, record):
            self.records.append(record)

        def close(self):
            self.closed = True

    net, sinks = fresh(), [Kept(), Kept()]
    with Monitor(net, every=2, to=sinks, probe=data(1)[0][0]) as watch:
        train(net, 5, watch=watch)
    for sink in sinks:
        assert [record.sample for record in sink.records] == list(watch.history)
        assert sink.closed
        pictures = sink.records[1].pictures
        assert list(pictures) == ["kernels/conv", "kernels/again", "maps/conv", "maps/again#1", "maps/again#2"]
        assert len({id(each) for record in sink.records for each in record.pictures.values()}) == 15
    scales = [record.pictures["maps/conv"].legend.scale for record in sinks[0].records]
    assert len({(scale.vmin, scale.vmax) for scale in scales}) == 1


def test_an_exception_in_the_loop_loses_nothing():
    written = []

    class Slow:
        def write(self, record):
            time.sleep(0.02)
            written.append(record.step)

        def close(self):
            written.append("closed")

    net = fresh()

    def loop():
        with Monitor(net, every=1, to=Slow()) as watch:
            train(net, 4, watch=watch)
            raise ValueError("the loop fails")

    with pytest.raises(ValueError, match="the loop fails"):
        loop()
    assert written == [0, 1, 2, 3, "closed"]


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="looks at /proc")
@pytest.mark.slow
def test_ten_thousand_samples_need_no_more_memory():
    """All of them would be more than 30 MB."""

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), 1e-6)
    watch, x, grown = Monitor(net, every=1, keep=64), torch.ones(1, 2), []
    for step in range(10_001):
        with watch.step():
            net(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        if step % 1000 == 0:
            grown.append(resident())
    print("MB after each 1,000 samples:", *(f"{each:.0f}" for each in grown))
    assert len(watch.history) <= 64
    assert (watch.history.steps[0], watch.history.steps[-1]) == (0, 10_000)
    assert grown[-1] - grown[1] < 8


def step_of(net, watch, optimizer, x, number=None):
    with watch.step(number):
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_what_is_put_in_anothers_place_is_watched():
    net, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(2, 3)
    watch = Monitor(net, every=1)
    step_of(net, watch, torch.optim.SGD(net.parameters(), 0.01), x)
    net[0].weight = nn.Parameter(100 * net[0].weight.detach())
    net[2] = nn.Linear(3, 5)
    step_of(net, watch, torch.optim.SGD(net.parameters(), 1e-9), x)
    first, second = watch.history
    assert math.isclose(second.parameters["0.weight"].norm, 100 * first.parameters["0.weight"].norm, rel_tol=1e-5)
    assert second.parameters["0.weight"].grad_norm is not None
    assert (first.layers["2"].channels, second.layers["2"].channels) == (2, 5)


def test_what_is_renamed_is_watched():
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.ModuleDict()})
    watch = Monitor(net, every=1)
    for step, (name, after) in enumerate([("a", "b.c"), ("b.c", "b.d"), ("b.d", "a")]):
        with watch.step():
            net.get_submodule(name)(torch.ones(2, 3))
        assert set(watch.history[step].parameters) == {f"{name}.weight", f"{name}.bias"}
        assert list(watch.history[step].layers) == [name]
        parents = [net.get_submodule(path.rpartition(".")[0]) for path in (name, after)]
        parents[1][after[-1]] = parents[0].pop(name[-1])


def test_a_probe_is_what_it_was_when_it_was_given():
    class Works(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            x -= 0.5
            return self.conv(x)

    net, probe = Works(), torch.randn(1, 1, 6, 6)
    kept = probe.clone()
    watch = Monitor(net, every=1, probe=probe)
    for _ in range(3):
        with watch.step():
            net(torch.ones(1, 1, 6, 6))
        assert torch.equal(probe, kept)
        probe.zero_()
        kept.zero_()
    first, *others = [frame.values for frame in watch._log.frames["maps/conv"]._held]
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_trainings_own_error_is_the_one_to_see(monkeypatch, error):
    net = fresh()
    watch = Monitor(net, every=1)
    monkeypatch.setattr(watch, "_look", lambda *_: 1 // 0)
    with pytest.raises(error), watch.step():
        raise error
    with pytest.raises(ZeroDivisionError), watch.step():
        pass


def test_parameters_that_are_no_floats_have_no_figures():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    watch = Monitor(net, every=1)
    with watch.step():
        net[1](torch.ones(1, 2))
    assert "0.weight" not in watch.history[0].parameters
    assert "1.weight" in watch.history[0].parameters


def test_of_a_recurrent_layer_the_first_tensor_counts():
    net = nn.Sequential(nn.LayerNorm(3), nn.LSTM(3, 4))
    watch = Monitor(net, every=1)
    x = torch.randn(2, 1, 3)
    with watch.step():
        output, _ = net(x)
    layers = watch.history[0].layers
    assert list(layers) == ["0", "1"]
    assert layers["1"].mean == pytest.approx(output.mean().item(), abs=1e-6)


def test_layers_without_figures_are_named_once():
    class Named(nn.Module):
        def forward(self, x):
            return {"x": x}

    net = nn.Sequential(nn.Linear(2, 2), Named())
    watch = Monitor(net, "*", every=1)
    with (
        pytest.warns(FeatvizWarning, match="the monitor has no figures of layer '1': it returned a dict"),
        watch.step(),
    ):
        net(torch.ones(1, 2))
    with watch.step():
        net(torch.ones(1, 2))
    assert list(watch.history[0].layers) == list(watch.history[1].layers) == ["0"]


def test_a_model_may_hold_its_monitor():
    net = fresh()
    net.watch = Monitor(net, every=1, probe=data(1)[0][0])
    train(net, 2, watch=net.watch)
    assert net.watch.history.steps == [0, 1]
    assert copy.deepcopy(net).watch is net.watch


def test_steps_that_count_on_by_several():
    net = nn.Linear(2, 2)
    watch = Monitor(net, every=4)
    for number in (1, 3, 5, 7, 9, np.int64(11)):
        with watch.step(number):
            net(torch.ones(1, 2))
    assert watch.history.steps == [5, 9]
    for number in (1.5, "2", torch.tensor(1.0), -1):
        with (
            pytest.raises(OptionError, match="the number of a step must be an integer from 0 on, got "),
            watch.step(number),
        ):
            pass


@pytest.mark.filterwarnings("ignore:samples of steps:torch_featviz.errors.FeatvizWarning")
def test_going_back_a_film_forgets_what_came_after():
    net = nn.Conv2d(1, 1, 2)
    watch = Monitor(net, every=1)
    for number in (0, 1, 2, 3, 1, 2):
        with watch.step(number):
            net(torch.ones(1, 1, 3, 3))
    assert watch.history.steps == watch.film("").steps == [0, 1, 2]


@given(st.integers(2, 6), st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_a_resumed_history_is_as_thin_as_one_that_never_stopped(keep, parts):
    whole, history, step = History(keep), History(keep), 0
    for part in parts:
        again = History(keep)
        again.go_on_from(list(history), **history.thinning())
        history = again
        for _ in range(part):
            for each in (whole, history):
                each.append(Sample(step, {}, {}))
            step += 1
    assert history.steps == whole.steps


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        ({"kernel/conv": Scale()}, "'maps/<layer>' or 'why/<method>', got 'kernel/conv'"),
        ({"kernels/nowhere": Scale()}, "got 'kernels/nowhere'"),
        ({"kernels/conv": "x"}, "the scale of 'kernels/conv' must be a Scale that all frames share"),
        ({"maps/conv": Scale(per="filter")}, "must be a Scale that all frames share"),
    ],
)
def test_scales_that_no_film_could_have(scales, said):
    with pytest.raises(OptionError, match=said):
        Monitor(fresh(), scales=scales)


def test_a_fused_optimizers_gradients_are_unscaled():
    figures = []
    for fused in (False, True):
        net = fresh()
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2, fused=fused)
        scaler, watch = torch.amp.GradScaler("cpu", init_scale=1024.0), Monitor(net, every=1)
        ((x, y),) = data(1)
        torch.manual_seed(7)
        with watch.step():
            scaler.scale(nn.functional.cross_entropy(net(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
        figures.append(watch.history[0].parameters["fc.weight"])
    assert math.isclose(figures[0].grad_norm, figures[1].grad_norm, rel_tol=1e-5)


def test_an_empty_parameter_has_no_histogram():
    net = nn.Linear(2, 2)
    net.register_parameter("nothing", nn.Parameter(torch.zeros(0, 3)))
    watch, optimizer = Monitor(net, every=1), torch.optim.SGD(net.parameters(), 0.1)
    with watch.step():
        (net(torch.ones(1, 2)).sum() + net.nothing.sum()).backward()
        optimizer.step()
    figures = watch.history[0].parameters["nothing"]
    assert (figures.size, figures.norm, figures.grad_norm, figures.grad_histogram) == (0, 0.0, 0.0, None)
