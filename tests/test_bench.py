"""What watching costs: the arithmetic on clocks that do not tick by themselves, memory by hand, and nothing changed."""

import copy
import gc
import json
import sys

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from torch_featviz import bench
from torch_featviz.bench import Added, Overhead, Ratio, added, overhead, paired, peak_memory, settled
from torch_featviz.errors import DtypeError, LayerError, OptionError
from torch_featviz.zoo import card

MAP = 1 * 4 * 8 * 8 * 4  # bytes of one map of `chain`


class Clock:
    """Goes on only when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def takes(self, *seconds):
        """A call that takes so long: the first time, the second time, and so on, round and round."""
        state = {"call": -1}

        def call():
            state["call"] += 1
            self.now += seconds[state["call"] % len(seconds)]

        return call


def chain(*kinds):
    return nn.Sequential(*(kind() for kind in kinds)).eval()


def image():
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


# --- timing


@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=300))
def test_interval_is_scipys(values):
    middle, low, high = bench._median(values)
    expected = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    assert (low, high) == (expected.low, expected.high)
    assert low <= middle <= high


@pytest.mark.parametrize("n", [*range(6, 60), 101, 401, 6000])
def test_interval_covers_95_percent_and_no_narrower_one_does(n):
    _, low, high = bench._median(list(range(n)))
    covered = lambda low, high: stats.binom.cdf(high, n, 0.5) - stats.binom.cdf(low, n, 0.5)
    assert covered(low, high) >= 0.95 > covered(low + 1, high - 1)


@pytest.mark.parametrize("n", range(1, 6))
def test_few_rounds_give_all_that_was_seen(n):
    assert bench._median(list(range(n)))[1:] == (0, n - 1)


@settings(max_examples=10, deadline=None)  # each collects garbage
@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 30))
def test_paired_is_the_ratio(a, b, rounds):
    clock = Clock()
    ratio = paired(clock.takes(a), clock.takes(b), rounds=rounds, timer=clock)
    assert tuple(ratio) == pytest.approx((a / b,) * 3)


def test_a_machine_that_slows_down_bends_no_ratio():
    clock, speed = Clock(), [1.5**i for i in range(16)]
    ratio = paired(clock.takes(*(3 * s for s in speed)), clock.takes(*(2 * s for s in speed)), timer=clock)
    assert tuple(ratio) == pytest.approx((1.5,) * 3)


def test_paired_interval_is_of_the_ratios():
    clock = Clock()  # the first call is the warm-up
    ratio = paired(clock.takes(99, *range(10, 17)), clock.takes(1), rounds=7, timer=clock)
    assert ratio == Ratio(13, 10, 16)


def test_added_is_the_difference():
    clock = Clock()
    costs = added(clock.takes(10), clock.takes(10.5), clock.takes(13), rounds=9, timer=clock)
    assert costs == [Added(0.5, 0.5, 0.5), Added(3, 3, 3)]


@pytest.mark.parametrize(
    ("calls", "order"), [(2, "ab ba ab ba ab"), (3, "abc bca cab abc bca")], ids=["turned", "rotated"]
)
def test_order_is_turned_round(calls, order):
    said = []
    ways = [lambda name=name: said.append(name) for name in "abc"[:calls]]
    added(*ways, rounds=4)
    assert "".join(said) == order.replace(" ", "")


@pytest.mark.parametrize("rounds", [0, -1])
def test_rounds_are_at_least_one(rounds):
    with pytest.raises(OptionError, match=f"rounds must be at least 1, got {rounds}"):
        paired(int, int, rounds=rounds)
    with pytest.raises(OptionError, match=f"rounds must be at least 1, got {rounds}"):
        added(int, int, rounds=rounds)
    with pytest.raises(OptionError, match=f"rounds must be at least 1, got {rounds}"):
        overhead(chain(nn.ReLU), image(), rounds=rounds)


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_and_traces_are_off_while_timing_and_put_back(collecting):
    seen = []

    def call():
        seen.append((gc.isenabled(), sys.gettrace()))
        if len(seen) == 4:
            raise KeyboardInterrupt

    def tracer(*_):
        return None

    was_on, trace = gc.isenabled(), sys.gettrace()
    (gc.enable if collecting else gc.disable)()
    sys.settrace(tracer)
    try:
        with pytest.raises(KeyboardInterrupt):
            paired(call, call)
        after = gc.isenabled(), sys.gettrace()
    finally:
        sys.settrace(trace)
        (gc.enable if was_on else gc.disable)()
    assert after == (collecting, tracer)
    assert seen[2:] == [(False, None)] * 2


@given(st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_settled_is_the_first_within_or_the_last(said):
    asked = iter(said)
    result = settled(lambda: next(asked), lambda value: value < 5)
    assert result == next((value for value in said if value < 5), said[-1])


@given(st.floats(0.5, 2), st.floats(0.5, 2))
def test_within_asks_the_low_end(low, budget):
    assert Ratio(low + 1, low, low + 2).within(budget) == (low <= budget)


# --- memory


def test_peak_of_a_chain_by_hand():
    x = torch.zeros(1000, 1000)
    assert peak_memory(lambda: None) == 0
    assert peak_memory(lambda: x.view(-1)) == 0
    assert peak_memory(lambda: x.exp()) == 4_000_000
    assert peak_memory(lambda: x.exp().exp().exp().exp()) == 8_000_000
    assert peak_memory(lambda: [x.exp(), x.exp(), x.exp()]) == 12_000_000
    assert peak_memory(lambda: [x.exp()[:500].clone().exp(), x.exp()]) == 8_000_000 - 2_000_000


def test_what_was_there_before_is_not_in_the_peak():
    there = [torch.zeros(1000, 1000)]
    kept = []
    peak_memory(lambda: kept.append(torch.zeros(1000, 1000)))  # the profiler knows this one

    def swap():
        there.clear()
        kept.clear()
        return torch.zeros(10, 1000)

    assert peak_memory(swap) == 40_000


def test_peak_where_the_device_does_not_tell():
    assert peak_memory(lambda: None, device="meta") is None


@pytest.mark.parametrize(
    ("kinds", "layers", "held", "over_bare"),
    [
        ([nn.ReLU] * 5, None, 4, 3),  # all but the result; the bare forward has two at a time
        ([nn.ReLU] * 5, ["1", "3"], 2, 1),  # while the last layer runs: what "1" gave, its own input and its result
        ([nn.ReLU] * 5, "4", 0, 0),  # the result is the caller's
        ([nn.Identity, nn.ReLU, nn.ReLU], "0", 0, 0),  # the argument too
        ([nn.ReLU, nn.Flatten, nn.Identity, nn.ReLU], ["0", "1", "2"], 1, 0),  # one memory, seen three times
        ([nn.ReLU, lambda: nn.ReLU(inplace=True)], "0", 1, 1),  # what is overwritten is copied
    ],
)
def test_bytes_by_hand(kinds, layers, held, over_bare):
    with torch.no_grad():
        cost = overhead(chain(*kinds), image(), layers, rounds=1)
    assert cost.bytes_held == held * MAP
    assert cost.peak_over_bare == over_bare * MAP


def test_a_whole_storage_is_held_where_a_part_of_it_is_captured():
    class Part(nn.Module):
        def forward(self, x):
            return x.exp()[:, :1]

    with torch.no_grad():
        assert overhead(chain(Part, nn.ReLU), image(), "0", rounds=1).bytes_held == MAP


NETS = {
    "alexnet": (torchvision.models.alexnet, 224),
    "cifar_cnn": (card("cifar_cnn").build, 32),
    "resnet18": (torchvision.models.resnet18, 224),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_the_peak_is_at_most_the_bare_one_and_what_is_held(name, grad):
    build, size = NETS[name]
    model, x = build().eval(), torch.zeros(1, 3, size, size)
    with torch.set_grad_enabled(grad):
        bare = peak_memory(lambda: model(x))
        cost = overhead(model, x, rounds=1)
    assert cost.bytes_held > 0
    assert bare + cost.peak_over_bare <= (bare + cost.bytes_held) * 1.01


# --- the whole


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout())


def test_overhead_counts_calls_and_takes_rounds():
    relu = nn.ReLU()
    cost = overhead(nn.Sequential(relu, nn.Tanh(), relu), image(), nn.ReLU, rounds=7)
    assert cost.calls == 2
    assert cost.device == "cpu"
    assert cost.ratio.low <= cost.ratio.median <= cost.ratio.high
    assert cost.per_layer.low <= cost.per_layer.median <= cost.per_layer.high


def test_overhead_times_the_second_of_two_forwards_inside_and_outside(monkeypatch):
    runs, clock = [], Clock()

    class Spy(nn.Module):
        def forward(self, x):
            runs.append("forward" in vars(model))  # whether something stands in for it
            clock.now += (5 if runs[-1] else 4) if len(runs) > 1 and runs[-2] == runs[-1] else 1000
            return x.exp()

    model = nn.Sequential(Spy())
    timed = bench._timed
    monkeypatch.setattr(bench, "_timed", lambda call: timed(call, clock))
    monkeypatch.setattr(bench, "peak_memory", lambda call, device: None)
    cost = overhead(model, image(), rounds=6)
    assert cost.ratio == Ratio(1.25, 1.25, 1.25)
    assert cost.per_layer == Added(1, 1, 1)
    assert cost.peak_over_bare is None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_model_is_as_it_was(training, mode):
    model = small().train(training)
    before, inside = copy.deepcopy(model.state_dict()), {name: dict(vars(m)) for name, m in model.named_modules()}
    x, random = image(), torch.get_rng_state()
    pixels = x.clone()
    with mode():
        overhead(model, x, rounds=2)
        with bench.captured_forward(model, x, None) as forward:
            forward()
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, pixels)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: dict(vars(m)) for name, m in model.named_modules()} == inside
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_is_as_it_was_after_an_exception():
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1  # a new tensor, where BatchNorm writes into the old one
            if self.calls == 6:
                raise RuntimeError("tired")
            return x + torch.rand(())

    model = nn.Sequential(Breaks())
    random = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="tired"):
        overhead(model, image(), rounds=9)
    assert model[0].calls == 0
    assert torch.equal(torch.get_rng_state(), random)
    assert "forward" not in vars(model)


def test_several_arguments_are_a_tuple():
    cost = overhead(nn.Sequential(nn.Bilinear(3, 3, 2))[0], (torch.zeros(1, 3), torch.ones(1, 3)), rounds=1)
    assert (cost.calls, cost.bytes_held) == (1, 0)


def test_a_compiled_model_is_compiled_once_bare_and_once_captured():
    compilations = []

    def backend(graph, _inputs):
        compilations.append(graph)
        return graph.forward

    torch._dynamo.reset()  # other tests of this process may have used up how often a forward is compiled
    model = small().eval()
    with torch.no_grad():
        cost = overhead(torch.compile(model, backend=backend), image(), rounds=3)
    torch._dynamo.reset()
    assert cost.calls == 4
    assert len(compilations) == 2


def test_captured_forward_is_captured():
    model = small()
    with bench.captured_forward(model, image(), "0") as forward:
        assert "forward" in vars(model[0])
        assert forward().shape == (1, 4, 6, 6)
    assert "forward" not in vars(model[0])


def test_wrong_asks():
    with pytest.raises(LayerError, match="no layer '7'"):
        overhead(small(), image(), "7")
    with pytest.raises(DtypeError, match="Module"):
        overhead(len, image())
    with pytest.raises(TypeError, match="no_such_option"):
        overhead(small(), image(), no_such_option=1)


def test_nothing_ran():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.ReLU()

        def forward(self, x):
            return x

    with pytest.raises(LayerError, match="no captured layer ran in this forward: unused"):
        overhead(Lazy(), image(), "unused")


def test_an_overhead_says_all_in_a_line_and_in_plain_numbers():
    cost = Overhead(Ratio(1.04, 1.03, 1.06), Added(2e-6, 1e-6, 3e-6), 20, 4_340_000, 3_240_000, "cpu")
    assert str(cost) == (
        "1.04 (1.03 to 1.06) of the bare forward, 2.00 (1.00 to 3.00) us for each of 20 layer calls, "
        "4.34 MB held, peak +3.24 MB"
    )
    plain = json.loads(json.dumps(cost.as_dict()))
    assert plain.pop("us_per_layer") == pytest.approx({"median": 2, "low": 1, "high": 3})
    assert plain == {
        "ratio": {"median": 1.04, "low": 1.03, "high": 1.06},
        "calls": 20,
        "bytes_held": 4_340_000,
        "peak_over_bare": 3_240_000,
        "device": "cpu",
    }
    assert cost.us_per_layer == pytest.approx(2)
    assert str(Overhead(*list(vars(cost).values())[:4], None, "mps")).endswith("held")
