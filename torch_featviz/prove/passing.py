"""What of an answer's gradient passes where: one forward, and backwards in which gradients are cut at some tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torch_featviz.capture import capture
from torch_featviz.model.layers import names_of, unwrap
from torch_featviz.model.run import hooked
from torch_featviz.model.values import tensors

from .judged import Unknown, Wrong, as_it_was
from .subject import Subject

FUNCTIONAL = "(a functional call)"
Edge: TypeAlias = tuple[Any, int]  # a node of autograd's graph, and the number of its output


class Noted(NamedTuple):
    """What a layer or a functional call returned."""

    name: str
    edge: Edge  # as it was then: what works in place comes later
    shape: tuple[int, ...]
    memory: int


class Met(NamedTuple):
    """What is known of the gradient that came to a tensor.

    Args:
        places: at how many places it is not 0, if the channels are on the first axis after the images', and if they
            are on the last; 0 where the tensor is no map of one image.
    """

    places: tuple[int, int] = (0, 0)
    axes: int = 0

    @classmethod
    def of(cls, gradient: Tensor) -> Met | None:
        """None where all of it is 0."""
        on = gradient != 0
        if not bool(on.any()):
            return None
        if gradient.dim() not in (3, 4, 5) or len(gradient) != 1:
            return cls()
        return cls((int(on[0].any(0).sum()), int(on[0].any(-1).sum())), gradient.dim())

    @property
    def may_be_live(self) -> bool:
        """More than one place, on whichever axis the channels are."""
        return max(self.places) > 1

    @property
    def is_live(self) -> bool:
        """More than one place, on either axis; of tokens more than two, since one of them may have no place."""
        return min(self.places) > 1 + (self.axes == 3)


class Passing:
    """One forward of the model itself on its first image, with what each layer returned.

    Args:
        subject: the model, which is as it was afterwards.
        layers: names of what is looked for, as `capture` gives them, functional calls as well.
    """

    def __init__(self, subject: Subject, layers: Sequence[str] = ()) -> None:
        self.noted: list[Noted] = []
        self.met: dict[int, Met] = {}
        self._cut: Collection[int] = ()
        self._flows: dict[Any, list[bool]] = {}  # of each node, whether a gradient goes on to each of the next
        net = unwrap(subject.model)
        names = names_of(net)
        called = [name for name in layers if name.partition("#")[0] not in names.values()]
        with as_it_was(net), ExitStack() as stack:
            one = subject.inputs.rows(slice(1)).copied()
            self.image = one.images.requires_grad_()
            note = lambda module, _given, output: self._note(names[module], output)
            stack.enter_context(hooked(names, after=note))
            acts: Any = {}
            if called:
                stack.enter_context(_Functions(self._note))
                acts = stack.enter_context(capture(net, [name.partition("#")[0] for name in called], ops=True))
            self.output = subject.forward(net, one)
            self._captured = {name: next(tensors(acts[name])) for name in called}

    def _note(self, name: str, output: Any) -> None:
        tensor = output if isinstance(output, Tensor) and output.requires_grad else None
        if tensor is None or not name or tensor.grad_fn is None:
            return
        edge = torch.autograd.graph.get_gradient_edge(tensor)
        tensor.register_hook(partial(self._pass, len(self.noted)))  # type: ignore[no-untyped-call]
        self.noted.append(Noted(name, (edge.node, edge.output_nr), tuple(tensor.shape), tensor.data_ptr()))

    def _pass(self, number: int, gradient: Tensor) -> Tensor | None:
        if (met := Met.of(gradient)) is not None:
            self.met[number] = met
        return torch.zeros_like(gradient) if number in self._cut else None

    def number(self, name: str) -> int:
        """Of a call by its name, as `capture` gives it."""
        if name in self._captured:
            kept = self._captured[name]
            same = [i for i, noted in enumerate(self.noted) if (noted.memory, noted.shape) == _place(kept)]
        else:
            layer, _, call = name.partition("#")
            same = [i for i, noted in enumerate(self.noted) if noted.name == layer][: int(call or 1)]
        if not same:
            raise Wrong(f"{name} is not among the calls of this forward")
        return same[-1]

    def backward(self, subject: Subject, answer: Tensor, cut: Collection[int] = ()) -> bool:
        """Whether any gradient of `answer` comes to the image if it is cut at these; `met` says what came to where."""
        if not answer.requires_grad:
            raise Unknown("no gradient reaches the model's output")
        self._cut, self.met, self._flows = cut, {}, {}
        self._root: Any = answer.grad_fn
        ends = {self.noted[i].edge for i in cut}
        with ExitStack() as stack, torch.inference_mode(False), torch.enable_grad():
            for node in _nodes(self._root, ends):
                stack.callback(node.register_hook(partial(self._flow, node)).remove)
            subject.spent(backwards=1)
            (gradient,) = torch.autograd.grad(answer, self.image, retain_graph=True, allow_unused=True)
        return gradient is not None and bool(gradient.any())

    def _flow(self, node: Any, onwards: Sequence[Tensor | None], _came: Any) -> None:
        self._flows[node] = [gradient is not None and bool((gradient != 0).any()) for gradient in onwards]

    def passes_beside(self, i: int) -> bool:
        """Whether a gradient of the last backward came to where it was cut, or to the image, beside a tensor."""
        ends = {self.noted[j].edge for j in self._cut}
        pending, seen = [self._root], {self._root}
        while pending:
            node = pending.pop()
            flows = self._flows.get(node, ())
            for edge, flow in zip(node.next_functions, flows, strict=False):
                if not flow or edge[0] is None or edge == self.noted[i].edge:
                    continue
                if edge in ends or getattr(edge[0], "variable", None) is self.image:
                    return True
                if edge[0] not in seen:
                    seen.add(edge[0])
                    pending.append(edge[0])
        return False

    def leads_on(self, i: int) -> bool:
        """Whether a gradient came to one of those where it was cut, from which a way beside the others leads on."""
        others = {self.noted[j].edge for j in self._cut if j != i}
        nodes = _nodes(self.noted[i].edge[0], others)
        return i in self.met and any(getattr(node, "variable", None) is self.image for node in nodes)


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)


def _nodes(root: Any, ends: Collection[Edge]) -> list[Any]:
    """All nodes that can be reached from one without going along an edge to one of `ends`."""
    nodes, seen = [root], {root}
    for node in nodes:  # which grows meanwhile
        for edge in node.next_functions:
            if edge[0] is not None and edge[0] not in seen and edge not in ends:
                seen.add(edge[0])
                nodes.append(edge[0])
    return nodes


class _Functions(TorchFunctionMode):
    """Notes what functional calls return."""

    def __init__(self, note: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self._note(FUNCTIONAL, output)
        return output
