"""What capture is proven to leave alone on a model, and that each lie about it is caught."""

import os
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import torch_featviz as fv
from tests import test_untouched as calls
from torch_featviz.capture.activations import Activations
from torch_featviz.capture.records import Records
from torch_featviz.capture.session import Capture
from torch_featviz.prove import runs
from torch_featviz.prove.runs import EVAL, MODES
from torch_featviz.prove.subject import Subject
from torch_featviz.prove.untouched import WORDS, untouched

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    relu = nn.ReLU(inplace=True)  # called twice
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), relu, nn.Conv2d(4, 4, 3), relu)
    return nn.Sequential(body, nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))


def proven(model, images=IMAGES, **given):
    return {claim.name: claim for claim in fv.prove(model, images, **given).claims}


def states(claims):
    return {name: claims[name].holds for name in WORDS if name in claims}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """These claims alone, in two modes, which show it; the others are tested by themselves."""
    monkeypatch.setattr("torch_featviz.prove.untouched.MODES", MODES[:2])
    monkeypatch.setattr("torch_featviz.prove.proving.CHECKS", (untouched,))


# What holds


def test_all_of_it_holds_of_an_ordinary_model():
    assert states(proven(net())) == dict.fromkeys(WORDS, True)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_each_mode_holds_and_costs_no_more_than_was_said(mode, monkeypatch):
    monkeypatch.setattr("torch_featviz.prove.untouched.MODES", (mode,))
    subject = Subject(calls.make(), calls.IMAGES)
    claims = untouched(subject)
    assert {claim.name: claim.holds for claim in claims} == {
        name: True for name in WORDS if mode.gradients or name != "gradients"
    }
    assert (subject.forwards, subject.backwards) == (4, 2 * mode.gradients)
    assert all(mode.name in claim.found for claim in claims[:-1])


def test_what_it_cost_is_what_was_run():
    model, ran = net(), []
    model[3].forward = lambda x, inner=model[3].forward: ran.append(torch.is_grad_enabled()) or inner(x)
    proof = fv.prove(model, IMAGES)
    first = proof.claims[0]
    assert (first.forwards, first.backwards) == (len(ran), 2) == (8, 2)
    assert first.seconds > 0


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Conv2d(3, 4, 3),
        lambda: torchvision.models.squeezenet1_1(num_classes=3),
        lambda: torchvision.models.resnet18(num_classes=3),
    ],
    ids=["one layer", "squeezenet", "resnet18"],
)
def test_it_holds_of_models_as_they_are_published(build):
    claims = proven(build(), torch.rand(2, 3, 32, 32))
    assert states(claims) == dict.fromkeys(WORDS, True)


def test_further_arguments_are_handed_on():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x, factor, *, shift):
            return self.conv(x) * factor + shift

    claims = proven(Scaled(), additional_forward_args=torch.tensor(2.0), keywords={"shift": 3})
    assert states(claims) == dict.fromkeys(WORDS, True)


class Reading(nn.Module):
    """Returns its own buffer, and writes to it at the next call."""

    def __init__(self, write=torch.Tensor.copy_):
        super().__init__()
        self.register_buffer("memory", torch.zeros(2, 3, 8, 8))
        self.write = write
        self.last = 0.0

    def forward(self, x):
        self.last += 1.0
        with torch.no_grad():
            self.write(self.memory, x + self.last)
        return self.memory


def test_a_layer_that_returns_its_buffer_is_refused_in_time_and_the_buffer_put_back():
    model = nn.Sequential(Reading(), nn.Conv2d(3, 2, 3))
    claims = proven(model)
    assert states(claims) == dict.fromkeys(WORDS, True)
    assert "refused: 0" in claims["kept values"].found
    assert not model[0].memory.any()
    assert model[0].last == 0


# What could not be checked


class Noisy(nn.Module):
    """Random, and from no generator."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        noise = int.from_bytes(os.urandom(4), "big")
        self.seen += noise
        return self.conv(x) * (1 + noise)


def test_a_model_that_is_never_twice_the_same_could_not_be_checked_but_for_what_was_captured():
    claims = proven(Noisy())
    assert states(claims) == {
        "outputs": None,
        "gradients": None,
        "state": None,
        "captured values": True,
        "kept values": True,
        "restored": True,
    }
    assert "differs from itself: values differ by up to" in claims["outputs"].found
    assert "seen" in claims["state"].found


def test_gradients_that_are_never_twice_the_same_could_not_be_checked():
    class Uneven(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * int.from_bytes(os.urandom(4), "big")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return Uneven.apply(self.conv(x))

    subject = Subject(Net(), IMAGES)
    claims = {claim.name: claim for claim in untouched(subject)}
    assert claims["outputs"].holds
    assert claims["gradients"].holds is None
    assert (subject.forwards, subject.backwards) == (8, 3)  # one backward more, which tells


def test_a_mode_that_the_model_does_not_run_in_is_named():
    class Strict(nn.Module):
        def forward(self, x):
            if self.training:
                raise ValueError("no targets")
            return x

    claims = proven(nn.Sequential(nn.Conv2d(3, 4, 8), Strict()))
    assert claims["outputs"].holds
    assert "not checked in train (the model does not run so: ValueError: no targets)" in claims["outputs"].found
    assert "gradients" not in claims
    assert claims["state"].found == "eval; not checked in train"


def test_one_image_is_enough_for_batch_norm_of_single_places():
    claims = proven(nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4)), IMAGES[:1])
    assert states(claims) == dict.fromkeys(WORDS, True)


def test_a_model_that_does_not_take_other_images_keeps_what_was_captured():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            if not torch.equal(x, IMAGES):
                raise ValueError("strange")
            return self.conv(x)

    claims = proven(Net())
    assert claims["kept values"].holds is None
    assert "it does not run on other images: ValueError: strange" in claims["kept values"].found


def test_a_caller_in_inference_mode_changes_nothing():
    model = net()
    with torch.inference_mode():
        claims = proven(model, IMAGES.clone())
    assert states(claims) == dict.fromkeys(WORDS, True)


def test_a_model_without_gradients_has_none_to_compare():
    assert proven(nn.Sequential(nn.Flatten()), IMAGES.long().view(2, 3, 8, 8))["gradients"].holds is None


def test_a_compiled_model_is_no_further_from_itself_than_from_eager_mode():
    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.conv(x)

    claims = proven(torch.compile(Rounded(), backend="eager"))
    assert states(claims) == {"outputs": True, "state": True, "captured values": None, "restored": True}
    assert "from the bare compiled model" in claims["outputs"].found


# Lies


def on_exit(monkeypatch, effect):
    """A capture that does something more to the model when it ends."""
    leave = Capture.__exit__

    def exit_(self, *error):
        leave(self, *error)
        effect(self._model)

    monkeypatch.setattr(Capture, "__exit__", exit_)


def again(model):
    model[0][1].running_mean.mul_(0.9).add_(0.1)
    model[0][1].num_batches_tracked += 1


LEFT_BEHIND = {
    "statistics advanced twice": (again, "0.1._buffers.running_mean"),
    "a hook": (lambda model: model[0][0].register_forward_hook(lambda *_: None), "0.0._forward_hooks"),
    "a stand-in": (lambda model: model[3].__dict__.update(forward=model[3].forward), "3.forward"),
    "a buffer made anew": (lambda model: setattr(model[0][1], "running_var", torch.ones(4)), "running_var"),
    "a weight": (lambda model: model[3].bias.data.add_(1), "3._parameters.bias"),
    "a gradient": (lambda model: setattr(model[3].bias, "grad", torch.ones(3)), "bias.grad"),
    "a training flag": (lambda model: setattr(model[2], "training", not model[2].training), "2.training"),
    "an attribute": (lambda model: setattr(model[2], "seen", 1), "2.seen"),
    "another module": (lambda model: model.add_module("4", nn.Identity()), "_modules.4"),
    "random numbers of torch": (lambda model: torch.rand(1), "random numbers of torch"),
    "random numbers of numpy": (lambda model: np.random.rand(), "random numbers of numpy"),
    "random numbers of Python": (lambda model: random.random(), "random numbers of Python"),
    "gradients disabled": (lambda model: torch.set_grad_enabled(False), "gradients are enabled"),
}


@pytest.mark.parametrize("lie", LEFT_BEHIND)
def test_what_a_capture_leaves_behind_is_found_and_put_back(lie, monkeypatch):
    effect, where = LEFT_BEHIND[lie]
    model = net()
    objects, numbers = calls.structure(model), told(model)
    on_exit(monkeypatch, effect)
    try:
        claims = proven(model)
        assert claims["state"].holds is False
        assert where in claims["state"].found
    finally:
        torch.set_grad_enabled(True)
    assert claims["restored"].holds is (lie != "gradients disabled")
    assert calls.structure(model) == objects
    assert all(map(torch.equal, told(model), numbers))


def told(model):
    return [*(tensor.detach().clone() for tensor in model.state_dict().values()), torch.get_rng_state()]


def test_outputs_that_capture_changes_are_found(monkeypatch):
    enter = Capture.__enter__

    def changed(self):
        acts = enter(self)
        forward = self._model.forward
        self._model.forward = lambda *args: forward(*args) * (1 + 2**-23)
        return acts

    monkeypatch.setattr(Capture, "__enter__", changed)
    claims = proven(net())
    assert claims["outputs"].holds is False
    assert "values differ by up to" in claims["outputs"].found


def test_gradients_that_capture_changes_are_found(monkeypatch):
    enter = Capture.__enter__

    def changed(self):
        acts = enter(self)
        forward = self._model.forward

        def doubled(*args):
            output = forward(*args)
            if output.requires_grad:
                output.register_hook(lambda gradient: gradient * 2)
            return output

        self._model.forward = doubled
        return acts

    monkeypatch.setattr(Capture, "__enter__", changed)
    claims = proven(net())
    assert (claims["outputs"].holds, claims["gradients"].holds) == (True, False)
    assert "0.0.bias, 0.0.weight, 0.1.bias and" in claims["gradients"].found


def test_a_write_after_the_return_that_capture_does_not_see_is_found(monkeypatch):
    """The batch norm's output is what `ReLU(inplace=True)` made of it."""
    monkeypatch.setattr("torch_featviz.capture.inplace.Watch.before_write", lambda *_: None)
    claims = proven(net())
    assert "refused" in claims["kept values"].found  # it is not told as true
    read_whatever_it_is(monkeypatch)
    claims = proven(net())
    assert claims["captured values"].holds is False
    assert "'0.1': values differ by up to" in claims["captured values"].found


def read_whatever_it_is(monkeypatch):
    monkeypatch.setattr(Records, "read", lambda self, calls, position: (calls[position][1].detach(), True))


def test_an_alias_of_what_is_overwritten_later_is_found(monkeypatch):
    read_whatever_it_is(monkeypatch)
    claims = proven(nn.Sequential(Reading(), nn.Conv2d(3, 2, 3)))
    assert claims["captured values"].holds
    assert claims["kept values"].holds is False
    assert "'0': values differ" in claims["kept values"].found


def test_a_model_that_overwrites_behind_the_back_of_torch_is_found():
    def write(memory, values):
        memory.data.copy_(values)

    claims = proven(nn.Sequential(Reading(write), nn.Conv2d(3, 2, 3)))
    assert claims["captured values"].holds
    assert claims["kept values"].holds is False


@pytest.mark.parametrize("lost", ["0.2", "0.0", "3"])
def test_a_call_that_capture_loses_is_found(lost, monkeypatch):
    latest = Records.latest

    def short(self, *, running):
        found = latest(self, running=running)
        last = max(i for i, record in enumerate(found) if record[0] == lost)
        return found[:last] + found[last + 1 :]

    monkeypatch.setattr(Records, "latest", short)
    claims = proven(net())
    ran, captured = ("2 times", "once") if lost == "0.2" else ("once", "0 times")
    assert f"'{lost}' ran {ran} and was captured {captured}" in claims["captured values"].found
    assert claims["captured values"].holds is False


def test_calls_of_one_layer_that_are_swapped_are_found(monkeypatch):
    monkeypatch.setattr(Activations, "calls", lambda self, name, inner=Activations.calls: inner(self, name)[::-1])
    claims = proven(net())
    assert "'0.2', call 1: 2 4 6 6, float32 became 2 4 4 4, float32" in claims["captured values"].found


def test_a_hook_that_tampers_after_capture_has_looked_is_found():
    class Sly(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            hook = self.conv.register_forward_hook(lambda _module, _given, output: output + 1)
            output = self.conv(x)
            hook.remove()
            return output

    claims = proven(Sly())
    assert claims["captured values"].holds is False
    assert "'conv': values differ by up to 1" in claims["captured values"].found


def test_a_hook_that_was_there_before_is_no_lie():
    model = net()
    model[0][0].register_forward_hook(lambda _module, _given, output: output + 1)
    assert states(proven(model)) == dict.fromkeys(WORDS, True)


def test_a_capture_that_raises_is_a_fault_and_one_that_refuses_is_none(monkeypatch):
    class Raises(runs.Look):
        error = ValueError("lost")

        def __enter__(self):
            raise self.error

    monkeypatch.setattr("torch_featviz.prove.untouched.Look", Raises)
    assert proven(net())["outputs"].holds is False
    Raises.error = fv.errors.LayerError("refused")
    assert proven(net())["outputs"].holds is None


def test_a_proof_prints_a_line_for_each_claim():
    proof = fv.prove(net(), IMAGES)
    first, *lines, cost = str(proof).splitlines()
    assert first == "Sequential: 6 of 6 claims hold"
    assert len(lines) == len(proof.claims)
    assert lines[0] == "holds        Outputs are the same with capture as without: eval, train"
    assert cost.startswith("8 forwards, 2 backwards, ")
    first, *others = proof.claims
    unknown = replace(others[0], holds=None, found="eval: <lost>")
    wrong = replace(proof, claims=[unknown, *others, replace(first, holds=False, found="train: no")])
    assert not wrong.holds
    lines = str(wrong).splitlines()
    assert lines[0] == "Sequential: 5 of 7 claims hold, 1 FAIL, 1 could not be checked"
    assert lines[1] == "FAILS        Outputs are the same with capture as without: train: no"
    assert lines[-2] == "not checked  Gradients of input and parameters are the same: eval: <lost>"
    assert "eval: &lt;lost&gt;" in wrong._repr_html_()
    assert not replace(proof, claims=[unknown]).holds


def test_no_model_is_refused():
    with pytest.raises(fv.errors.DtypeError, match=r"model must be a torch\.nn\.Module"):
        fv.prove("resnet18", IMAGES)
    with pytest.raises(fv.errors.DtypeError, match="images must be a tensor"):
        fv.prove(net(), "cat.jpg")


def test_images_that_the_model_does_not_take_are_refused_and_its_own_error_passes():
    with pytest.raises(fv.errors.ShapeError, match="Sequential does not accept inputs of shape"):
        fv.prove(net(), IMAGES[:, :2])
    model = calls.make(fails=True)
    with pytest.raises(calls.Tired):
        fv.prove(model, calls.IMAGES)


def test_the_first_mode_is_the_one_of_compiled_models():
    assert MODES[0] is EVAL
