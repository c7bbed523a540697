"""What watching costs a training step of CifarCNN, batch 128, to the step alone, and to peers; all within one run.

pytest benchmarks/test_training.py --benchmark-enable -s
"""

import copy
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torch_featviz.bench import Ratio, added, paired, settled
from torch_featviz.training import Monitor
from torch_featviz.training.sinks import WandbSink
from torch_featviz.zoo import card

BUDGET = {
    "every step": 1.25,
    "every 10": 1.02,
    "every 100": 1.005,
    "between": 1.02,
    "peer": 1,
    "compiled": 1.25,
    "small": 2.8,
}


class Loop:
    """A network with its optimizer and one batch: `step()` is one step."""

    def __init__(self, net, shape=(128, 3, 32, 32)):
        self.net = self.called = net
        self.optimizer = torch.optim.SGD(net.parameters(), 1e-4)
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(shape, generator=g), torch.randint(10, shape[:1], generator=g)

    def step(self):
        loss = F.cross_entropy(self.called(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def watched(self, watch):
        """The same in a monitor's block."""

        def step():
            with watch.step():
                self.step()

        return step


@pytest.fixture
def loops():
    """The same training three times: bare, watched, and by a peer."""
    torch.manual_seed(0)
    net = card("cifar_cnn_large").build()
    return [Loop(copy.deepcopy(net)) for _ in range(3)]


def outputs_to(loop, look, layers):
    """Forward hooks that give each layer's output to `look`, for as long as the stack is open."""
    stack = ExitStack()
    for name in layers:
        handle = loop.net.get_submodule(name).register_forward_hook(lambda _m, _args, out, name=name: look(name, out))
        stack.callback(handle.remove)
    return stack


def by_hooks(loop, layers):
    """What a Monitor gives, as fastai's ActivationStats does it: by `.item()`, and each histogram to the CPU."""
    seen = []

    def look(_name, output):
        each = output.detach().transpose(0, 1).flatten(1)
        seen.append([each.mean().item(), each.std().item(), each.min().item(), each.max().item()])
        seen.append([(each == 0).float().mean().item(), (each.amax(1) <= 0).sum().item(), each.isfinite().all().item()])
        seen.append(each.histc(64, -10, 10).cpu())

    with outputs_to(loop, look, layers):
        F.cross_entropy(loop.net(loop.x), loop.y).backward()
    parameters = [p for name in layers for p in loop.net.get_submodule(name).parameters()]
    before = [p.detach().clone() for p in parameters]
    for p in parameters:
        seen.append([p.grad.norm().item(), p.grad.histc(64).cpu()])
    loop.optimizer.step()
    for p, old in zip(parameters, before, strict=True):
        seen.append([((p.detach() - old).norm() / old.norm()).item(), p.detach().norm().item()])
    loop.optimizer.zero_grad()
    return seen


def by_tensorboard(loop, layers, writer):
    """Histograms of outputs and gradients, and a few scalars, as TensorBoard's tutorials write them."""

    def look(name, output):
        writer.add_histogram(f"values/{name}", output.detach())
        writer.add_scalar(f"std/{name}", output.detach().std().item())
        writer.add_scalar(f"zeros/{name}", (output == 0).float().mean().item())

    with outputs_to(loop, look, layers):
        F.cross_entropy(loop.net(loop.x), loop.y).backward()
    for name in layers:
        for part, p in loop.net.get_submodule(name).named_parameters():
            writer.add_histogram(f"gradients/{name}.{part}", p.grad)
            writer.add_scalar(f"norm/{name}.{part}", p.grad.norm().item())
    loop.optimizer.step()
    loop.optimizer.zero_grad()


def layers_of(net):
    return [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]


def test_every_step(loops):
    """And, from that and what a block costs between samples, one step in 10 and in 100."""
    bare, watched, hooked = loops
    watch = Monitor(watched.net, nn.Conv2d, every=1)
    seen = watched.watched(watch)
    ratio = settled(lambda: paired(seen, bare.step, rounds=7), lambda ratio: ratio.median <= 1.2)
    print(f"\nevery step watched: {ratio} of the bare step")
    for check, name in ((False, "unchecked"), (True, "checked")):
        between = share_between(bare, check)
        for every in (10, 100):
            of_all = Ratio(*(1 + ((each - 1) + (every - 1) * between) / every for each in ratio))
            share = between * (1 - 1 / every)
            print(f"{name}, every={every}: {of_all} of the bare steps, of which {share:.1g} between samples")
            assert of_all.within(BUDGET["checked" if check and every == 100 else f"every {every}"])
    layers = list(watch.history[0].layers)
    hooks = settled(lambda: paired(seen, lambda: by_hooks(hooked, layers), rounds=5), lambda ratio: ratio.median <= 1)
    print(f"every step watched: {hooks} of hooks that give as much")
    assert layers == layers_of(bare.net)
    assert ratio.within(BUDGET["every step"]), str(ratio)
    assert hooks.within(BUDGET["peer"]), str(hooks)


def test_every_step_of_a_small_network():
    """Where no operator takes longer than the call of it, Python counts: four layers, 32 images of 8×8.

    The block of an empty step alone costs two thirds of a bare one.
    """
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 10))
    bare, watched, hooked = (Loop(copy.deepcopy(net), (32, 1, 8, 8)) for _ in range(3))
    watch = Monitor(watched.net, every=1)
    seen = watched.watched(watch)
    seen()
    names = list(watch.history[0].layers)
    assert names == ["0", "2", "5", "7"]
    to_bare = [paired(each, bare.step, rounds=101) for each in (seen, lambda: by_hooks(hooked, names))]
    ratio = settled(
        lambda: paired(seen, lambda: by_hooks(hooked, names), rounds=101), lambda ratio: ratio.within(BUDGET["small"])
    )
    print(f"\nevery step of a small network: {ratio} of hooks; to the bare step {to_bare[0]}, hooks {to_bare[1]}")
    assert ratio.within(BUDGET["small"]), str(ratio)


def share_between(bare, check):
    """What a step that is not looked at adds, as a share of the bare step: its block, and the norm of its gradients."""
    watch = Monitor(bare.net, nn.Conv2d, every=10**9, check_finite=check)
    with watch.step():
        bare.step()
    F.cross_entropy(bare.net(bare.x), bare.y).backward()

    def block():
        with watch.step():
            watch._recorder.measure(bare.optimizer)

    (cost,) = added(lambda: None, lambda: [block() for _ in range(20)], rounds=51)
    bare.optimizer.zero_grad()
    (step,) = added(lambda: None, bare.step, rounds=5)
    print(f"the block of a step between: {cost.micro(20)}")
    return cost.median / 20 / step.median


def test_between_two_looks(loops):
    """With a loss that is logged, and the norm of all gradients, at every step."""
    bare, watched, _ = loops
    watch = Monitor(watched.net, every=10**9)

    def seen():
        with watch.step() as step:
            step.log(loss=watched.step())

    seen()
    ratio = settled(lambda: paired(seen, bare.step, rounds=9), lambda ratio: ratio.within(BUDGET["between"]))
    print(f"\nbetween two looks: {ratio} of the bare step")
    assert ratio.within(BUDGET["between"]), str(ratio)


def test_beside_tensorboard(loops, tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    _, watched, peer = loops
    layers = layers_of(watched.net)
    with (
        tensorboard.SummaryWriter(tmp_path / "a") as ours,
        tensorboard.SummaryWriter(tmp_path / "b") as theirs,
        Monitor(watched.net, nn.Conv2d, every=1, to=ours) as watch,
    ):
        ratio = settled(
            lambda: paired(watched.watched(watch), lambda: by_tensorboard(peer, layers, theirs), rounds=5),
            lambda ratio: ratio.median <= BUDGET["peer"],
        )
    print(f"\nevery step to TensorBoard: {ratio} of add_histogram and add_scalar")
    assert ratio.within(BUDGET["peer"]), str(ratio)


def test_beside_wandb_watch(loops, tmp_path, monkeypatch):
    """`run.watch(log="all")` gives histograms of gradients and parameters, and nothing of what layers return."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    _, watched, peer = loops
    settings = {"mode": "offline", "dir": tmp_path}
    with wandb.init(**settings) as theirs, wandb.init(**settings, reinit="create_new") as ours:
        theirs.watch(peer.net, log="all", log_freq=1)

        def step():
            peer.step()
            theirs.log({})

        with Monitor(watched.net, nn.Conv2d, every=1, to=WandbSink(ours)) as watch:
            ratio = settled(
                lambda: paired(watched.watched(watch), step, rounds=5), lambda ratio: ratio.median <= BUDGET["peer"]
            )
        theirs.unwatch()
    print(f"\nevery step to W&B: {ratio} of wandb.watch(log='all')")
    assert ratio.within(BUDGET["peer"]), str(ratio)


def test_compiled(loops):
    bare, watched, _ = loops
    torch._dynamo.reset()
    bare.called = torch.compile(bare.net)
    watched.called = torch.compile(watched.net)
    watch = Monitor(watched.called, nn.Conv2d, every=1)
    seen = watched.watched(watch)
    seen()
    ratio = settled(lambda: paired(seen, bare.step, rounds=5), lambda ratio: ratio.median <= BUDGET["compiled"])
    print(f"\nevery step watched, compiled: {ratio} of the compiled step")
    assert list(watch.history[0].layers) == layers_of(bare.net)
    assert ratio.within(BUDGET["compiled"]), str(ratio)
