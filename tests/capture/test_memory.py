"""Capture in long runs: the process does not grow, and nothing is held that is not in the mapping."""

import gc
import os
import weakref
from itertools import pairwise

import pytest
import torch
from torch import nn

from torch_featviz.capture import Moments, Ring, capture, inplace, tap
from torch_featviz.capture import compiled as compiled_room


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True)
def _one_thread():
    """In many tiny steps threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def training(compiled=False):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(392, 4)
    )
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    x, y = torch.randn(16, 1, 16, 16), torch.randint(0, 4, (16,))

    if compiled:
        net.compile(backend="aot_eager")

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    return net, step


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="looks at /proc")
@pytest.mark.parametrize(
    "way",
    [
        "a block a step",
        *(pytest.param(way, marks=pytest.mark.slow) for way in ("one block", "Moments", "Ring", "gradients", "every")),
        "compiled",
    ],
)
def test_a_thousand_training_steps_do_not_grow_the_process(way):
    torch._dynamo.reset()
    net, step = training(compiled=way == "compiled")
    options = {"Moments": {"into": Moments()}, "Ring": {"into": Ring(3)}, "gradients": {"of": "grad"}}.get(way, {})

    def steps(n):
        if way in ("a block a step", "compiled"):
            for _ in range(n):
                with capture(net):
                    step()
        else:
            with capture(net, every=10 if way == "every" else 1, **options):
                for _ in range(n):
                    step()

    steps(200)
    gc.collect()
    sizes, objects = [resident()], len(gc.get_objects())
    for _ in range(4):
        steps(50 if way == "compiled" else 250)
        gc.collect()
        sizes.append(resident())
    grown = min(after - before for before, after in pairwise(sizes))  # one small output a step would be 8 MB
    assert grown < 2**19, f"{sizes} bytes"
    assert len(gc.get_objects()) - objects < 100


def test_outputs_of_earlier_forwards_and_after_the_mapping_are_let_go():
    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), torch.randn(2, 4)
    with torch.no_grad(), capture(net) as acts:
        net(x)
        net(x)
        first = weakref.ref(acts["0"])
        net(x)
        assert first() is None
        last = weakref.ref(acts["0"])
    assert last() is not None
    del acts
    gc.collect()
    assert last() is None


def test_what_was_learnt_goes_with_the_model():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    learnt, codes = len(inplace._learnt), len(compiled_room._codes)
    for _ in range(20):
        with capture(net) as acts:
            net(torch.randn(2, 4))
    assert len(inplace._learnt[net]) == 1
    assert len(compiled_room._codes[net]) == 1
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None, "the mapping does not keep the model"
    assert acts["1"].shape == (2, 4)
    assert (len(inplace._learnt), len(compiled_room._codes)) == (learnt, codes)


X = torch.randn(8, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3))
    return nn.Sequential(body, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(512, 3))


@pytest.mark.parametrize("compile_it", [False, True])
@pytest.mark.parametrize("options", [{}, {"of": "grad"}])
def test_tensors_die_with_what_read_them(compile_it, options):
    model = network()
    fast = torch.compile(model, backend="aot_eager") if compile_it else model
    last = []
    for _ in range(3):
        with capture(fast, **options) as acts:
            fast(X).sum().backward()
        if compile_it:
            gc.collect()  # what compiling left
        assert all(alive() is None for alive in last)
        last = [weakref.ref(value) for value in acts.values()]
        assert len(last) == 7
    del acts
    assert all(alive() is None for alive in last)


def test_inside_a_block_the_last_forward_dies_with_the_next():
    model = network()
    with capture(model) as acts:
        model(X)
        last = [weakref.ref(record[1]) for record in acts._recorder.records.calls]
        model(X)
        assert all(alive() is None for alive in last)


@pytest.mark.parametrize("compile_it", [False, True])
def test_what_is_remembered_goes_with_the_model_and_does_not_grow(compile_it):
    torch._dynamo.reset()
    gc.collect()
    sizes = lambda: (len(inplace._learnt), len(compiled_room._codes), len(tap._open))
    before = sizes()
    model = network()
    fast = torch.compile(model, backend="eager") if compile_it else model
    for _ in range(20):
        with capture(fast), capture(fast, "0.0", of="grad"), capture(fast, "1", every=2):
            fast(X)
    assert len(inplace._learnt.get(model, ())) <= 3
    assert len(compiled_room._codes[model]) <= 6
    assert tap._open == {}
    alive = weakref.ref(model)
    del model, fast
    torch._dynamo.reset()
    gc.collect()
    assert alive() is None
    assert sizes() == before


def test_forwards_that_others_put_meanwhile_keep_nothing():
    """A wrapper around our stand-in is somebody's own to take away; when it goes, all of ours goes."""
    model = network()
    records = []
    for _ in range(3):
        with capture(model) as acts:
            inner = model[1].forward
            model[1].forward = lambda x, inner=inner: inner(x)
            model(X)
        records.append(weakref.ref(acts._recorder))
        assert "forward" in vars(model[1])
        del model[1].forward, inner, acts
    gc.collect()
    assert [r() for r in records] == [None] * 3
    assert tap._open == {}


def test_a_replaced_forward_stays():
    model = network()
    own = lambda x: x
    with capture(model, "1"):
        model[1].forward = own
    assert model[1].forward is own
    with capture(model, "1") as acts:
        model(X)
    assert model[1].forward is own
    assert acts["1"].shape == (8, 8, 8, 8)


def test_captures_that_end_in_another_order_keep_nothing(instance_state):
    model = network()
    before = instance_state(model)
    recorders = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2), (1, 2, 0)):
        captures = [capture(model) for _ in range(3)]
        recorders += [weakref.ref(c.__enter__()._recorder) for c in captures]
        model(X)
        for i in order:
            captures[i].__exit__(None, None, None)
        assert instance_state(model) == before
    del captures
    gc.collect()
    assert [r() for r in recorders] == [None] * 12


def test_a_compiled_forward_finds_the_outputs_of_the_last_one_gone():
    held, alive = [], []

    def backend(graph, _inputs):
        def run(*args):
            alive.append([output() is not None for output in held])
            return graph.forward(*args)

        return run

    model = torch.compile(nn.Sequential(nn.Conv2d(1, 4, 3)).eval(), backend=backend)
    with torch.no_grad(), capture(model, "0") as acts:
        model(torch.zeros(1, 1, 8, 8))
        held.append(weakref.ref(acts["0"]))
        assert held[0]() is not None
        model(torch.zeros(1, 1, 8, 8))
    assert alive == [[], [False]]
