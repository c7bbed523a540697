"""One forward of the user's own model, and a backward: from the same state each time, in one of the ways to run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_featviz.capture import Activations, capture
from torch_featviz.errors import LayerError
from torch_featviz.model.inputs import Inputs, device_of
from torch_featviz.model.layers import layer_names, split_call
from torch_featviz.model.untouched import set_training
from torch_featviz.model.values import tensors

from .bits import apart, same
from .state import State
from .subject import Subject
from .witness import Witness


class Mode(NamedTuple):
    """One way to run a model.

    Args:
        name: what a claim calls it.
        training: the flag of all modules.
        gradients: whether a backward follows.
        around: what the forward is run in.
    """

    name: str
    training: bool
    gradients: bool
    around: Callable[[nn.Module], AbstractContextManager[Any]]


@contextmanager
def _autocast(model: nn.Module) -> Iterator[None]:
    with torch.enable_grad(), torch.autocast(device_of(model).type, torch.bfloat16):
        yield


EVAL = Mode("eval", False, False, lambda _: torch.no_grad())
MODES = (
    EVAL,
    Mode("train", True, True, lambda _: torch.enable_grad()),
    Mode("inference mode", False, False, lambda _: torch.inference_mode()),
    Mode("autocast", False, True, _autocast),
)


class Ran(NamedTuple):
    """What one forward led to.

    Args:
        outputs: copies of all tensors that the model returned.
        gradients: by what they are of, or why there are none.
        changes: what it changed, see `State`.
        began: what could not be put back before it began.
    """

    outputs: list[Tensor]
    gradients: dict[str, Tensor | None] | str
    changes: dict[str, Any]
    began: frozenset[str]


class Look:
    """A capture of all layers beside a witness of what they return.

    Args:
        model: whose layers; of those that only run together the innermost are captured.
    """

    def __init__(self, model: nn.Module) -> None:
        self.witness = Witness(model)
        try:
            self._capture = capture(model, layer_names(model) or None)
        except LayerError:
            self._capture = capture(model)
        self.layers = dict.fromkeys(self._capture.chosen)  # in order
        self.acts: Activations
        self.wrong: list[str] = []  # as soon as the forward is over

    def __enter__(self) -> Look:
        self.acts = self._capture.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._capture.__exit__(*error)

    @property
    def count(self) -> str:
        """In words, of how many calls captured values were compared."""
        calls = sum(name in self.layers for name, _ in self.witness.calls)
        return "1 call" if calls == 1 else f"{calls} calls"

    def compare(self) -> tuple[list[str], list[str]]:
        """What differs now between capture and witness, in words, and the layers whose values capture refuses."""
        wrong, refused = [], []
        ran = [name for name, _ in self.witness.calls if name in self.layers]
        held = [split_call(key)[0] for key in self.acts]
        for name in self.layers:
            returned = self.witness.of(name)
            if held.count(name) != len(returned):
                wrong.append(f"{_layer(name)} ran {_times(len(returned))} and was captured {_times(held.count(name))}")
                continue
            try:
                values = [list(tensors(value)) for value in self.acts.calls(name)]
            except LayerError:
                refused.append(name)
                continue
            for call, (one, other) in enumerate(zip(returned, values, strict=True), 1):
                if not same(one, other):
                    which = f", call {call}" if len(returned) > 1 else ""
                    wrong.append(f"{_layer(name)}{which}: {apart(one, other)}")
        if not wrong and held != ran:
            wrong.append("calls are not in the order in which layers returned")
        return wrong, refused


def _layer(name: str) -> str:
    return repr(name) if name else "the model"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def run(subject: Subject, mode: Mode, state: State, *, backward: bool = False, look: Look | None = None) -> Ran:
    """Run the model in the state in which it was.

    Args:
        subject: whose arguments are copied.
        mode: how.
        state: from which each run begins.
        backward: whether gradients are wanted.
        look: what looks on meanwhile.
    """
    state.restore()
    began = frozenset(state.changes())
    set_training(subject.model, mode.training)
    with look or nullcontext():
        with mode.around(subject.model):
            inputs = _arguments(subject, mode)
            image = inputs.images
            if backward and image.is_floating_point():
                inputs = inputs.with_images(image.requires_grad_().clone())  # a copy that a layer may write to
            with look.witness.watching() if look else nullcontext():
                output = subject.forward(inputs=inputs)
            outputs = list(tensors(output))
            copies = [tensor.detach().clone() for tensor in outputs]
            if look:
                look.wrong, _ = look.compare()
        gradients = _gradients(subject, image, outputs) if backward else ""
    return Ran(copies, gradients, state.changes(), began)


def run_on(subject: Subject, mode: Mode) -> Exception | None:
    """One forward more, of other images, in whatever state the last one left the model; what it raised."""
    with mode.around(subject.model):
        inputs = _arguments(subject, mode)
        images = inputs.images.flip(-1)
        try:
            subject.forward(inputs=inputs.with_images(images / 2 if images.is_floating_point() else images))
        except Exception as error:
            return error
    return None


def _arguments(subject: Subject, mode: Mode) -> Inputs:
    """Copies of what the model is given; one image is given twice in training, as batch norm wants of single places."""
    images = subject.inputs.images
    if mode.training and images.dim() > 1 and len(images) == 1:
        return subject.inputs.rows(torch.zeros(2, dtype=torch.long, device=images.device)).copied()
    return subject.inputs.copied()


def _gradients(subject: Subject, image: Tensor, outputs: list[Tensor]) -> dict[str, Tensor | None] | str:
    """Of a weighted sum of the outputs; no `.grad` is written to, and no hook that waits for one runs."""
    wanted: dict[str, Tensor] = dict(subject.model.named_parameters())
    wanted = {name: tensor for name, tensor in {**wanted, "the input": image}.items() if tensor.requires_grad}
    ends = [tensor for tensor in outputs if tensor.requires_grad]
    if not ends or not wanted:
        return "no output depends on anything with a gradient"
    weights = [torch.arange(end.numel(), device=end.device).cos().to(end.dtype).view(end.shape) for end in ends]
    subject.spent(backwards=1)
    try:
        found = torch.autograd.grad(ends, [*wanted.values()], weights, allow_unused=True)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return dict(zip(wanted, found, strict=True))
