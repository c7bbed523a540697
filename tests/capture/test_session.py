"""The life of a capture: what it yields, and that it leaves nothing behind."""

import copy
import gc
import io
import pickle
import time
from collections import namedtuple
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch
from torch import nn

from torch_featviz import Monitor
from torch_featviz.capture import Activations, Moments, capture
from torch_featviz.errors import LayerError, OptionError

Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Found:
    score: torch.Tensor
    label: str


class Several(nn.Module):
    """Every kind of output, a layer called three times, and one never called."""

    def __init__(self):
        super().__init__()
        self.body, self.again, self.unused = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.pair, self.table, self.many, self.found = (Lambda(f) for f in (pair, table, many, found))

    def forward(self, x):
        x = self.body(x)
        for _ in range(3):
            x = self.again(x)
        listed = self.many(x)
        listed.append("added by the caller")
        return self.found(self.table(self.pair(x)))


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def pair(x):
    return Pair(x, x + 1)


def table(pair):
    return {"a": pair.first, "b": (pair.second, None)}


def many(x):
    return [x, x * 2]


def found(table):
    return Found(table["a"].sum(), "cat")


def test_structures_are_kept_and_detached():
    model = Several()
    with capture(model) as acts:
        model(torch.ones(2, 3))
    assert isinstance(acts["pair"], Pair)
    assert acts["table"].keys() == {"a", "b"}
    assert acts["table"]["b"][1] is None
    assert isinstance(acts["found"], Found)
    assert acts["found"].label == "cat"
    assert len(acts["many"]) == 2
    for tensor in (
        acts["body"],
        acts["pair"].second,
        acts["table"]["b"][0],
        acts["found"].score,
        acts["many"][1],
    ):
        assert not tensor.requires_grad


def test_every_call_is_kept_under_its_own_key():
    model = Several()
    x = torch.ones(2, 3)
    with torch.no_grad(), capture(model) as acts:
        model(x)
        expected = [model.body.weight]  # noqa: F841 - readable inside the block
    with torch.no_grad():
        first = model.again(acts["body"])
    assert list(acts)[:4] == ["body", "again#1", "again#2", "again#3"]
    assert torch.equal(acts["again#1"], first)
    assert torch.equal(acts["again#2"], model.again(first).detach())
    assert next(value.data_ptr() for value in acts.calls("again")) == acts["again#1"].data_ptr()
    with pytest.raises(LayerError, match=r"layer 'again' ran 3 times: take one of 'again#1', 'again#2'"):
        acts["again"]
    assert "again" not in acts
    assert acts.get("again#9", 5) == 5


def test_layers_that_did_not_run_are_reported():
    model = Several()
    with capture(model, ["unused", "body"]) as acts:
        model(torch.ones(1, 3))
    assert acts.not_run == ["unused"]
    assert acts.calls("unused") == []
    with pytest.raises(LayerError, match="layer 'unused' did not run; the forward never called it"):
        acts["unused"]
    with pytest.raises(LayerError, match="layer 'pair' was not captured"):
        acts["pair"]
    with pytest.raises(LayerError, match="layer 'pair' was not captured"):
        acts.calls("pair")
    assert "did not run: unused" in str(acts)
    assert "body: 1 3, float32" in str(acts)


def test_the_latest_forward_is_kept():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with torch.no_grad(), capture(model) as acts:
        assert list(acts) == []
        for value in (1.0, 2.0, 3.0):
            x = torch.full((1, 2), value)
            model(x)
            assert torch.equal(acts["0"], torch.nn.functional.linear(x, *model[0].parameters()))
    assert list(acts) == ["0", "1"]
    assert isinstance(acts, Activations)


def test_a_part_called_alone_is_recorded_too():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True)), nn.Linear(2, 1))
    x = torch.randn(3, 2)
    with torch.no_grad(), capture(model) as acts:
        model[0](x)
    assert list(acts) == ["0.0", "0.1"]
    assert torch.equal(acts["0.0"], torch.nn.functional.linear(x, *model[0][0].parameters()))


def test_read_only():
    model = nn.Linear(1, 1)
    with capture(model) as acts:
        model(torch.ones(1, 1))
    assert list(acts) == [""]
    with pytest.raises(TypeError, match="does not support item assignment"):
        acts[""] = 1


class Boom(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["forward", "block"])
def test_nothing_is_left_behind_after_an_error(error, where, instance_state):
    model = nn.Sequential(nn.Linear(2, 2), nn.Identity(), nn.Linear(2, 2))
    if where == "forward":
        model[1] = Boom(error)
    before = instance_state(model)
    with pytest.raises(type(error)), capture(model) as acts:  # noqa: PT012 - both may raise
        model(torch.ones(1, 2))
        raise error
    assert instance_state(model) == before
    assert next(iter(acts)) == "0"


def test_an_interrupt_while_entering_leaves_nothing(monkeypatch, instance_state):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Tanh(), nn.Sigmoid())
    before = instance_state(model)
    from torch_featviz.capture import tap

    real, count = tap.function_of, []

    def interrupted(module, name):
        count.append(module)
        if len(count) == 3:
            raise KeyboardInterrupt
        return real(module, name)

    monkeypatch.setattr(tap, "function_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        capture(model).__enter__()
    assert instance_state(model) == before


def test_captures_nest_and_end_in_any_order(instance_state):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True), nn.Linear(2, 2))
    before = instance_state(model)
    x = torch.randn(1, 2)
    with torch.no_grad():
        captures = [capture(model) for _ in range(3)]
        acts = [c.__enter__() for c in captures]
        model(x)
        captures[0].__exit__(None, None, None)
        model(x * 2)
        captures[2].__exit__(None, None, None)
        model(x * 3)
        captures[1].__exit__(None, None, None)
        model(x * 4)
    assert instance_state(model) == before
    linear = lambda x: torch.nn.functional.linear(x, *model[0].parameters())
    for act, times in zip(acts, (1, 3, 2), strict=True):
        assert torch.equal(act["0"], linear(x * times))


def test_one_capture_can_be_entered_again():
    model, stack = nn.Linear(2, 2), ExitStack()
    again = capture(model)
    with stack:
        first, second = stack.enter_context(again), stack.enter_context(again)
        model(torch.ones(1, 2))
    assert torch.equal(first[""], second[""])


def test_a_forward_of_the_users_own_stays():
    model = nn.Sequential(nn.Linear(2, 2))
    own = lambda x: x + 1
    model[0].forward = own
    with capture(model) as acts:
        assert torch.equal(model(torch.zeros(1, 2)), torch.ones(1, 2))
    assert torch.equal(acts["0"], torch.ones(1, 2))
    assert model[0].forward is own


def test_a_hook_that_changes_the_output_comes_first():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda _m, _i, out: out * 0 + 7)
    with capture(model) as acts:
        model(torch.zeros(1, 2))
    assert torch.equal(acts["0"], torch.full((1, 2), 7.0))
    assert len(model[0]._forward_hooks) == 1


def test_keyword_and_missing_arguments_reach_the_layer():
    model = nn.Sequential(nn.Linear(2, 2))
    with capture(model) as acts:
        model[0](input=torch.ones(1, 2))
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            model[0]()
    assert acts["0"].shape == (1, 2)


@pytest.mark.parametrize("every", [True, False, 0, -1, 2.0, "2", None])
def test_every_counts_from_one(every):
    for make, counted in ((capture, "forwards"), (Monitor, "steps")):
        with pytest.raises(OptionError, match=rf"every must be at least 1 \(it counts {counted}; .*\), got {every!r}"):
            make(nn.Linear(2, 2), every=every)


def test_a_copy_made_meanwhile_is_a_model_of_its_own():
    model = nn.Sequential(nn.Linear(2, 2))
    x = torch.ones(1, 2)
    with capture(model) as acts:
        twin, thawed = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        torch.save(model, io.BytesIO())
        with torch.no_grad():
            for other in (twin, thawed):
                other[0].weight.zero_()
                other[0].bias.zero_()
        assert not twin(x).any()
        assert not thawed(x).any()
        assert list(acts) == []
        model(x)
    assert acts["0"].any()


def test_the_block_does_not_keep_the_graph_alive():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with capture(model) as acts:
        output = model(torch.ones(1, 2))
    assert output.requires_grad
    assert all(record[1].grad_fn is None for record in acts._recorder.records.calls)


def test_ddp_and_compiled_prefixes_may_be_given_or_left_out():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True)).eval()
    x = torch.randn(1, 1, 5, 5)
    with torch.no_grad():
        expected = model[0](x)
        for wrapped, prefix in (
            (nn.DataParallel(model), "module."),
            (torch.compile(model, backend="eager"), "_orig_mod."),
        ):
            for name in ("0", prefix + "0"):
                with capture(wrapped, name) as acts:
                    wrapped(x)
                assert list(acts) == ["0"]
                assert torch.equal(acts[prefix + "0"], expected)
                assert prefix + "0" in acts


def test_a_real_ddp(tmp_path):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    def layers():
        model = DistributedDataParallel(nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True)))
        with capture(model, ["module.0", "1"]) as acts:
            model(torch.ones(1, 2)).sum().backward()
        return list(acts)

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert layers() == ["0", "1"]
    finally:
        time.sleep(0.3)  # torch 2.6 waits for ever for threads that have not let go of their tensors yet
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_script_modules_are_refused():
    scripted = torch.jit.trace(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2))
    with pytest.raises(
        LayerError, match=r"ScriptModule and cannot be captured; capture the " r"original model, before torch\.jit"
    ):
        capture(nn.Sequential(scripted), "0")


def test_captum_sees_the_same():
    from captum.attr import LayerActivation

    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3))
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad(), capture(model) as acts:
        model(x)
    for name, layer in model.named_children():
        assert torch.equal(acts[name], LayerActivation(model, layer).attribute(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_dtypes_are_kept(dtype):
    model = nn.Sequential(nn.Identity())
    with capture(model) as acts:
        model(torch.ones(1, 2, dtype=dtype))
    assert acts["0"].dtype == dtype


def test_parts_called_alone_keep_their_latest_call():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with torch.no_grad(), capture(model) as acts:
        for value in range(50):
            latest = model[0](torch.full((1, 2), float(value)))
    assert list(acts) == ["0"]
    assert torch.equal(acts["0"], latest)


def test_training_does_not_grow():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    counts = []
    with capture(model) as acts:
        for step in range(60):
            model(torch.randn(3, 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert len(acts) == 3
            if step in (20, 59):
                gc.collect()
                counts.append(len(gc.get_objects()))
    assert counts[1] - counts[0] < 50  # fewer where garbage of earlier tests went meanwhile


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_forward_that_runs_again_is_no_second_call(reentrant):
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))

        def forward(self, x):
            return checkpoint(self.b, self.a(x), use_reentrant=reentrant)

    model = Net()
    for _ in range(2):
        with capture(model) as acts:
            output = model(torch.ones(2, 3))
            kept = acts["b.0"].clone()
            output.sum().backward()
        assert list(acts) == ["a", "b.0", "b.1"]
        assert torch.equal(acts["b.0"], kept)


def test_what_the_caller_overwrites_is_copied_once_that_was_seen():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Linear(3, 3))

        def forward(self, x):
            return torch.relu_(self.features(x))

    model, x = Whole(), -torch.ones(1, 3)
    expected = model.features(x).detach()
    with torch.no_grad(), capture(model.features, "0") as acts:
        model(x)
        with pytest.raises(LayerError, match="changed in place"):
            acts["0"]
        model(x)
        assert torch.equal(acts["0"], expected)


def test_an_input_made_in_inference_mode():
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4))
    with torch.inference_mode():
        x = torch.randn(2, 4)
    with torch.no_grad(), capture(model) as acts:
        for _ in range(2):
            model(x)
    assert torch.equal(acts["0"], x)


def test_a_compiled_model_does_not_pile_up():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    x = torch.randn(2, 4)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(x)
        with capture(compiled) as acts:
            for _ in range(5):
                compiled(x)
        assert list(acts) == ["0", "1"]
        assert torch.equal(acts["0"], model[0](x))


class Static(nn.Module):
    @staticmethod
    def forward(x):
        return x + 1


class Odd(nn.Module):
    def forward(this, self):
        return self * 2


@pytest.mark.parametrize("kind", [Static, Odd])
def test_forwards_that_are_no_plain_methods(kind):
    model = nn.Sequential(kind())
    with capture(model) as acts:
        output = model(torch.ones(1))
    assert torch.equal(acts["0"], output)


class Pair2(tuple):
    def __new__(cls, a, b):
        return super().__new__(cls, (a, b))


class Model(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


@pytest.mark.parametrize(
    "make", [lambda x: Pair2(x, x), lambda x: nn.BatchNorm2d(1), lambda x: MappingProxyType({"a": x})]
)
def test_an_odd_output_never_breaks_the_forward(make):
    model = nn.Sequential(Model(make))
    with capture(model) as acts:
        output = model(torch.ones(1))
    assert type(acts["0"]) is type(output)


def test_only_names_are_read():
    model = nn.Sequential(nn.Linear(1, 1))
    with capture(model) as acts:
        model(torch.ones(1, 1))
    with pytest.raises(
        LayerError, match=r"the key must be a layer name, got 0; list\(acts\) shows the layers that ran\."
    ):
        acts[0]


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.conv(self.conv(x))


def test_the_name_of_a_call_stands_for_its_layer():
    net, x = Twice(), torch.rand(1, 1, 4, 4)
    with capture(net, "conv#2") as acts:
        output = net(x)
    assert torch.equal(acts["conv#2"], output.detach())
    assert torch.equal(acts["conv#1"], net.conv(x).detach())
    with pytest.raises(LayerError, match="no layer 'conv#x'"):
        capture(net, "conv#x")
    for options in ({"stop": True}, {"into": Moments()}, {"into": [Moments()]}):
        with pytest.raises(OptionError, match=r"'conv#2' is a single call of a layer; .* Use 'conv', or leave out"):
            capture(net, ["conv#2"], **options)
