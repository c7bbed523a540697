"""What capture costs, against hooks, the bare forward, and a forward unrolled by hand; all within one run.

pytest benchmarks/test_capture.py --benchmark-enable -s
"""

import copy
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from benchmarks.peers import Functional
from benchmarks.ways import torchlens
from torch_featviz.bench import added, paired, settled
from torch_featviz.capture import Moments, capture
from torch_featviz.zoo import card

LEAVES = 200

# At most; the first two as shares of what a hook adds, the others as ratios to a whole forward, or to a truncated one.
BUDGET = {
    "per call": 0.35,
    "whole block": 0.5,
    "to bare": 1.01,
    "to unrolled": 1.005,
    "every 100": 1.005,
    "stop": 1.05,
    "inference mode": 1.1,  # to the same under no_grad
    "small": 1.5,  # to hooks
    "to least": 1.02,
}
TORCHLENS = 20  # times less is added with ops=True


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def leaves() -> nn.Sequential:
    return nn.Sequential(*(nn.ReLU() for _ in range(LEAVES)))


def hooked(net: nn.Module) -> list:
    """Hooks as one writes them by hand: each keeps its module's output."""
    kept = {}

    def keep(module, _inputs, output):
        kept[module] = output

    return [module.register_forward_hook(keep) for module in net]


def share_of(costs) -> float:
    """What the second way adds, as a share of what the first one adds."""
    return costs[1].median / costs[0].median


def test_a_captured_layer_costs_a_third_of_a_hook(benchmark):
    bare, with_hooks, captured, x = leaves(), leaves(), leaves(), torch.randn(1, 8)
    hooked(with_hooks)
    with capture(captured):
        captured(x)  # watched once; what was learnt stays with the model
    with capture(captured):
        benchmark(captured, x)
        costs = settled(
            lambda: added(lambda: bare(x), lambda: with_hooks(x), lambda: captured(x), rounds=401),
            lambda costs: share_of(costs) <= BUDGET["per call"],
        )
    share = share_of(costs)
    print(f"\nadded per layer: hook {costs[0].micro(LEAVES)}, capture {costs[1].micro(LEAVES)}: {share:.3f}")
    benchmark.extra_info["of a hook"] = share
    assert share <= BUDGET["per call"], f"{share:.3f} of a hook"


def test_a_whole_block_costs_half_of_registering_and_removing_hooks(benchmark):
    bare, with_hooks, captured, x = leaves(), leaves(), leaves(), torch.randn(1, 8)

    def hooks_on_and_off():
        handles = hooked(with_hooks)
        with_hooks(x)
        for handle in handles:
            handle.remove()

    def block():
        with capture(captured):
            captured(x)

    benchmark(block)
    costs = settled(
        lambda: added(lambda: bare(x), hooks_on_and_off, block, rounds=401),
        lambda costs: share_of(costs) <= BUDGET["whole block"],
    )
    share = share_of(costs)
    print(f"\nadded per layer: hooks {costs[0].micro(LEAVES)}, block {costs[1].micro(LEAVES)}: {share:.3f}")
    benchmark.extra_info["of hooks on and off"] = share
    assert share <= BUDGET["whole block"], f"{share:.3f} of hooks on and off"


@pytest.mark.parametrize("inside", [False, True], ids=["ordinary input", "input made in inference mode"])
def test_inference_mode_costs_no_more_than_no_grad(benchmark, inside):
    with torch.inference_mode(inside):
        x = torch.randn(1, 8)
    captured, other = leaves(), leaves()

    def in_inference_mode():
        with torch.inference_mode():
            captured(x)

    with capture(captured), capture(other):
        benchmark(in_inference_mode)
        ratio = settled(
            lambda: paired(in_inference_mode, lambda: other(x), rounds=401),
            lambda ratio: ratio.median <= BUDGET["inference mode"],
        )
    print(f"\ncapture in inference mode: {ratio} of capture under no_grad")
    benchmark.extra_info["of no_grad"] = str(ratio)
    assert ratio.within(BUDGET["inference mode"]), str(ratio)


def in_a_row(layers, x, keep):
    """Each layer as the network runs it; what an in-place layer is about to overwrite has to be cloned."""
    for layer, following in pairwise((*layers, None)):
        x = layer(x)
        keep(x.clone() if getattr(following, "inplace", False) else x)
    return x


def alexnet_unrolled(net, x, keep):
    x = net.avgpool(in_a_row(net.features, x, keep))
    keep(x)
    return in_a_row(net.classifier, torch.flatten(x, 1), keep)


def cifar_unrolled(net, x, keep):
    return in_a_row(net.classifier, torch.flatten(in_a_row(net.features, x, keep), 1), keep)


def resnet_unrolled(net, x, keep):
    x = in_a_row([net.conv1, net.bn1, net.relu, net.maxpool], x, keep)
    for block in (*net.layer1, *net.layer2, *net.layer3, *net.layer4):
        y = block.bn2(in_a_row([block.conv1, block.bn1, block.relu, block.conv2], x, keep))
        keep(y.clone())
        y += x if block.downsample is None else in_a_row(block.downsample, x, keep)
        x = block.relu(y)
        keep(x)
    x = net.avgpool(x)
    keep(x)
    x = net.fc(torch.flatten(x, 1))
    keep(x)
    return x


NETS = {
    "alexnet": (torchvision.models.alexnet, (1, 3, 224, 224), alexnet_unrolled),
    "cifar_cnn_large": (card("cifar_cnn_large").build, (1, 3, 32, 32), cifar_unrolled),
    "resnet18": (torchvision.models.resnet18, (1, 3, 224, 224), resnet_unrolled),
}


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("name", NETS)
def test_all_leaves_of_a_real_network(benchmark, name, batch):
    """Holding memory has its own cost, so the measure is a forward that holds the same outputs, written by hand."""
    build, size, unroll = NETS[name]
    bare, x = build().eval(), torch.randn(batch, *size[1:])
    captured = copy.deepcopy(bare, {id(tensor): tensor for tensor in bare.state_dict(keep_vars=True).values()})

    kept = []  # until the next forward, as a capture does

    def by_hand():
        kept.clear()
        return unroll(bare, x, kept.append)

    with capture(captured) as acts:
        captured(x)
        captured(x)
        by_hand()
        assert all(torch.equal(a, b) for a, b in zip(acts.values(), kept, strict=True))
        benchmark.pedantic(captured, (x,), rounds=5)
        rounds = max(51 // batch, 7, round(1.0 / benchmark.stats.stats.median))
        to_bare = paired(lambda: captured(x), lambda: bare(x), rounds=rounds)
        to_unrolled = settled(
            lambda: paired(lambda: captured(x), by_hand, rounds=rounds),
            lambda ratio: to_bare.within(BUDGET["to bare"]) or ratio.within(BUDGET["to unrolled"]),
        )
    print(f"\n{name}, batch {batch}: {to_bare} of bare, {to_unrolled} of unrolled by hand")
    benchmark.extra_info.update({"of bare": str(to_bare), "of unrolled": str(to_unrolled)})
    within = to_bare.within(BUDGET["to bare"]) or to_unrolled.within(BUDGET["to unrolled"])
    assert within, f"{to_bare} of bare, {to_unrolled} of unrolled by hand"


def resnet_out_of_place(net, x, keep):
    """Nothing is copied: what would overwrite an output writes elsewhere. All it costs is to have that memory."""

    def kept(x):
        keep(x)
        return x

    x = kept(net.maxpool(kept(F.relu(kept(net.bn1(kept(net.conv1(x))))))))
    for block in (*net.layer1, *net.layer2, *net.layer3, *net.layer4):
        y = kept(F.relu(kept(block.bn1(kept(block.conv1(x))))))
        y = kept(block.bn2(kept(block.conv2(y))))
        if block.downsample is not None:
            x = kept(block.downsample[1](kept(block.downsample[0](x))))
        x = kept(F.relu_(y + x))
    return kept(net.fc(torch.flatten(kept(net.avgpool(x)), 1)))


def test_all_leaves_cost_what_holding_them_does(benchmark):
    """ResNet-18, batch 1, one thread."""
    bare, x, kept, threads = (
        torchvision.models.resnet18().eval(),
        torch.randn(1, 3, 224, 224),
        [],
        torch.get_num_threads(),
    )
    captured = copy.deepcopy(bare, {id(tensor): tensor for tensor in bare.state_dict(keep_vars=True).values()})

    def by_hand():
        kept.clear()
        return resnet_out_of_place(bare, x, kept.append)

    torch.set_num_threads(1)
    try:
        with capture(captured) as acts:
            for run in (captured, captured, lambda _: by_hand()):
                run(x)
            assert len(kept) == len(acts)
            assert all(torch.equal(a, b) for a, b in zip(acts.values(), kept, strict=True))
            benchmark.pedantic(captured, (x,), rounds=5)
            to_bare = [paired(each, lambda: bare(x), rounds=80) for each in (lambda: captured(x), by_hand)]
            ratio = settled(
                lambda: paired(lambda: captured(x), by_hand, rounds=80), lambda ratio: ratio.within(BUDGET["to least"])
            )
    finally:
        torch.set_num_threads(threads)
    print(f"\nall leaves: {to_bare[0]} of bare, holding alone {to_bare[1]}; to that {ratio}")
    assert ratio.within(BUDGET["to least"]), str(ratio)


def test_moments_are_ahead_of_hooks_that_compute_the_same(benchmark):
    net, x = card("cifar_cnn_large").build().eval(), torch.randn(128, 3, 32, 32)
    twin = copy.deepcopy(net)
    figures = {}

    def summed_up(module, _inputs, output):
        sums = figures.setdefault(module, [0.0] * 6)
        values = output.detach().double()
        for i, figure in enumerate(
            (
                values.sum((0, 2, 3)),
                values.square().sum((0, 2, 3)),
                (output == 0).sum((0, 2, 3)),
                output.isnan().sum((0, 2, 3)),
                output.isinf().sum((0, 2, 3)),
            )
        ):
            sums[i] = sums[i] + figure
        sums[5] = torch.maximum(output.amax((0, 2, 3)), torch.as_tensor(sums[5]))

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(summed_up)
    with capture(twin, nn.Conv2d, into=Moments()):
        benchmark.pedantic(twin, (x,), rounds=3)
        ratio = settled(lambda: paired(lambda: twin(x), lambda: net(x), rounds=9), lambda ratio: ratio.high < 1)
    print(f"\nMoments of all convolutions, eager: {ratio} of the forward with hooks that compute the same")
    assert ratio.within(1.0), str(ratio)


def test_moments_of_many_small_layers(benchmark):
    nets = [nn.Sequential(*(nn.Linear(4, 4) for _ in range(2 * LEAVES))).eval() for _ in range(2)]
    x, figures = torch.randn(8, 4), {}

    def summed_up(module, _inputs, output):
        """With the fewest operators."""
        variance, mean = torch.var_mean(output, 0, correction=0)
        finite, zeros = output.isfinite().sum(0), (output == 0).sum(0)
        figures[module] = mean, variance.sqrt(), output.amin(0), output.amax(0), zeros, finite

    for layer in nets[0]:
        layer.register_forward_hook(summed_up)
    with capture(nets[1], into=Moments()):
        benchmark.pedantic(nets[1], (x,), rounds=3)
        ratio = settled(
            lambda: paired(lambda: nets[1](x), lambda: nets[0](x), rounds=15),
            lambda ratio: ratio.within(BUDGET["small"]),
        )
    print(f"\nMoments of {2 * LEAVES} layers of 4 features: {ratio} of hooks with the fewest operators for as much")
    assert ratio.within(BUDGET["small"]), str(ratio)


def test_calls_between_samples_cost_nothing(benchmark):
    net, x = card("cifar_cnn_large").build().eval(), torch.randn(1, 3, 32, 32)
    twin = copy.deepcopy(net)

    def hundred(model):
        for _ in range(100):
            model(x)

    with capture(twin, every=100):
        benchmark.pedantic(hundred, (twin,), rounds=1)
        ratio = settled(
            lambda: paired(lambda: hundred(twin), lambda: hundred(net), rounds=7), lambda ratio: ratio.median <= 1.005
        )
    print(f"\nevery=100: {ratio} of bare")
    assert ratio.within(BUDGET["every 100"]), str(ratio)


@pytest.mark.parametrize(("name", "layer"), [("alexnet", "features.5"), ("resnet18", "layer1")])
def test_a_stopped_forward_costs_what_was_run(benchmark, name, layer):
    build, size, _ = NETS[name]
    net, x = build().eval(), torch.randn(size)
    if name == "alexnet":
        truncated = net.features[:6]
    else:
        truncated = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
    twin = copy.deepcopy(net)
    with capture(twin, layer, stop=True) as acts:
        twin(x)
        assert twin(x) is None
        assert torch.equal(acts[layer], truncated(x))
        benchmark(twin, x)
        rounds = max(51, round(1.0 / benchmark.stats.stats.median))
        ratio = settled(
            lambda: paired(lambda: twin(x), lambda: truncated(x), rounds=rounds),
            lambda ratio: ratio.median <= BUDGET["stop"],
        )
    print(f"\nstop=True at {layer} of {name}: {ratio} of the network truncated there")
    assert ratio.within(BUDGET["stop"]), str(ratio)


def test_functional_calls_are_far_ahead_of_torchlens(benchmark):
    pytest.importorskip("torchlens")
    net, x = Functional().eval(), torch.randn(1, 3, 32, 32)
    twin = copy.deepcopy(net)
    with torchlens(copy.deepcopy(net), x, []) as log, capture(twin, ops=True) as acts:
        twin(x)
        benchmark.pedantic(twin, (x,), rounds=5)
        assert len(acts) > 14
        times = settled(lambda: times_ahead(net, x, log.call, lambda: twin(x)), lambda times: times >= TORCHLENS)
    print(f"\nops=True adds 1/{times:.0f} of what torchlens adds")
    assert times >= TORCHLENS, f"{times:.1f}"


def times_ahead(net, x, theirs, ours) -> float:
    their_cost, our_cost = added(lambda: net(x), theirs, ours, rounds=15)
    return their_cost.median / our_cost.median


def test_the_gate_can_fail(monkeypatch):
    """A budget that nothing can hold fails, so a green run means something."""
    monkeypatch.setitem(BUDGET, "per call", 0.0)
    with pytest.raises(AssertionError, match="of a hook"):
        test_a_captured_layer_costs_a_third_of_a_hook(_NoBenchmark())


class _NoBenchmark:
    def __init__(self):
        self.extra_info = {}

    def __call__(self, function, *args):
        return function(*args)
