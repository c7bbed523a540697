"""What `benchmarks/sweep.py` asks of one model, each answer held against one that is found in another way.

The other ways are hooks, gradients that are cut, impulses, and how a map has to lie; of `torch_featviz` they take only
the names that it gives to functional calls.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import re
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property, partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import torch_featviz as fv
from benchmarks import sweep_attention as others
from benchmarks.sweep_models import Built
from torch_featviz.errors import FeatvizError, LayerError

CHECKS = ("capture", "heatmap", "attention", "overview", "kernels", "summary", "shapes")
_TWO_D = (nn.Conv2d, nn.ConvTranspose2d)
FUNCTIONAL = "(a functional call)"
_KERNELS, _CHANNELS = 8, 3  # layers of a model whose kernels are looked at, and channels of each
_LARGEST, _ENTRIES = 5_000_000, 2**24  # weights of such a layer, and numbers that it is given at once


class Wrong(Exception):
    """What was answered is not so."""


class Partly(Exception):
    """What was answered is right, and some is refused with a reason."""


class Finding(NamedTuple):
    """How a model came out of one check.

    Args:
        state: `right`, `refused` with a reason, `partly` right and the rest refused, or `wrong`.
        text: what was answered, or the reason.
        grown: bytes of memory that the answer took at most.
    """

    state: str
    text: str
    grown: int = 0


def look_at(built: Built, checks: Sequence[str] = CHECKS) -> dict[str, Finding]:
    """All checks of one model, or some."""
    seen = _Witness(built)
    return {name: _judged(globals()[f"_{name}"], built, seen) for name in checks}


def _judged(check: Callable[[Built, _Witness, Memory], str], built: Built, seen: _Witness) -> Finding:
    memory = Memory()
    try:
        state, text = "right", check(built, seen, memory)
    except Wrong as error:
        state, text = "wrong", str(error)
    except Partly as error:
        state, text = "partly", str(error)
    except FeatvizError as error:
        state, text = "refused", str(error)
    except Exception as error:
        state, text = "wrong", f"{type(error).__name__}: {error}"
    return Finding(state, " ".join(text.split())[:600], memory.grown())


class Memory:
    """How far a process grows from here on, where Linux tells."""

    def __init__(self) -> None:
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before, self._grown = self._status("VmRSS"), 0

    def stop(self) -> None:
        """What comes now is not counted."""
        self._grown = self._grown or self._since()

    def grown(self) -> int:
        """Bytes, at most, until it was stopped or until now."""
        return self._grown or self._since()

    def _since(self) -> int:
        return max(1, self._status("VmHWM") - self._before)

    @staticmethod
    def _status(entry: str) -> int:
        with suppress(OSError):
            found = re.search(rf"{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text())
            return int(found[1]) * 1024 if found else 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Capture, beside hooks of our own


class _Witness:
    """What a model and its layers returned, as hooks saw it; the model is run when that is asked for."""

    def __init__(self, built: Built) -> None:
        self._built = built

    @cached_property
    def output(self) -> Any:
        """Of the model."""
        torch.manual_seed(1)
        with torch.no_grad():
            return _copied(self._built())

    @cached_property
    def calls(self) -> dict[str, list[Any]]:
        """Of each layer at each of its calls, in order."""
        calls: dict[str, list[Any]] = {}
        with ExitStack() as stack, torch.no_grad():
            for name, module in self._built.net.named_modules():
                calls[name] = []
                hook = lambda _module, _given, output, kept=calls[name]: kept.append(_copied(output))
                stack.callback(module.register_forward_hook(hook).remove)
            torch.manual_seed(1)
            self._built()
        return {name: kept for name, kept in calls.items() if kept}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what each layer returned first."""
        first = {name: next(_tensors(kept[0]), None) for name, kept in self.calls.items()}
        return {name: tuple(tensor.shape) for name, tensor in first.items() if tensor is not None}


def _copied(value: Any) -> Any:
    return [tensor.detach().clone() for tensor in _tensors(value)]


def _tensors(value: Any) -> Iterator[Tensor]:
    """All in a value, whatever it is."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _capture(built: Built, seen: _Witness, memory: Memory) -> str:
    before = {name: len(module._forward_hooks) for name, module in built.net.named_modules()}
    with torch.no_grad(), fv.capture(built.net, "*") as acts:
        torch.manual_seed(1)
        output = built()
    memory.stop()
    if not _same(_copied(output), seen.output):
        raise Wrong("the model returned something else")
    names = [name for name in filter(None, seen.calls) if name in {key.partition("#")[0] for key in acts}]
    if missing := sorted(set(seen.calls) - {*names, ""}):
        raise Wrong(f"not captured: {_list(missing)}")
    wrong = [name for name in names if not _same([_copied(value) for value in acts.calls(name)], seen.calls[name])]
    if wrong:
        raise Wrong(f"other values: {_list(wrong)}")
    if before != {name: len(module._forward_hooks) for name, module in built.net.named_modules()}:
        raise Wrong("hooks were left")
    return f"{sum(map(len, seen.calls.values()))} calls"


def _same(one: Any, other: Any) -> bool:
    """Whether tensors have the same bits, at any depth; nan is nan."""
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_quantized:
        return torch.equal(one.int_repr(), other.int_repr())
    return torch.allclose(one, other, 0, 0, equal_nan=True) if one.is_floating_point() else torch.equal(one, other)


# The map that a heatmap is drawn from, beside gradients that are cut


def _heatmap(built: Built, seen: _Witness, memory: Memory) -> str:
    refusal, found = None, None
    try:
        found = fv.attribute(built.net, built.images, additional_forward_args=built.args, keywords=built.keywords)
    except FeatvizError as error:
        refusal = error
    memory.stop()
    if found is not None and found.boxes is not None:
        return _boxes(built, seen, found)
    if not built.classes:
        if refusal is None:
            raise Wrong("drew what is of no class")
        raise refusal
    if found is None:
        if _Graph(built, []).reaches(set()):
            raise Wrong(str(refusal))
        return "no gradient, as is said"
    calls = [name for name in found.layers if name.partition("#")[0] not in seen.calls]
    graph = _Graph(built, calls, partial(_over_the_mask, built) if built.pixels else None)
    chosen = [graph.number(name) for name in found.layers]
    if graph.reaches(set(chosen)):
        raise Wrong(f"{found.where}: the answer passes beside it")
    if dead := [name for name, i in zip(found.layers, chosen, strict=True) if not graph.live(i, surely=False)]:
        raise Wrong(f"{_list(dead)}: one place at most")
    if built.pixels:
        return _of_pixels(built, calls, graph, chosen, found)
    before = {noted.node for noted in graph.noted[: max(chosen) + 1]}  # which may be handed on later
    for i, noted in enumerate(graph.noted[max(chosen) + 1 :], max(chosen) + 1):
        if noted.name != FUNCTIONAL and noted.node not in before and graph.live(i) and not graph.reaches({i}):
            raise Wrong(f"{found.where}, but {noted.name} {noted.shape} is later")
    if len(chosen) > 1:
        for i in chosen:
            if not graph.reaches(set(chosen) - {i}):
                raise Wrong(f"{found.where}: {graph.noted[i].name} is not needed")
    return found.where


def _boxes(built: Built, seen: _Witness, found: fv.Attribution) -> str:
    """Of a detector: no gradient of the best boxes' scores passes beside the maps, and each map is needed."""
    boxes = found.boxes
    if boxes is None or not len(boxes):
        return "no boxes, as is said"
    if not bool(found.heatmaps.flatten(1).any(1).all()):
        raise Wrong("a heatmap of a box is 0")
    calls = [name for name in found.layers if name.partition("#")[0] not in seen.calls]
    best = lambda output: sum(output[0]["scores"][: len(boxes)])
    graph = _Graph(built, calls, best)
    chosen = {graph.number(name) for name in found.layers}
    if graph.reaches(chosen):
        raise Wrong(f"{found.where}: a score passes beside it")
    for i in chosen:
        if not graph.reaches(chosen - {i}):
            raise Wrong(f"{found.where}: {graph.noted[i].name} is not needed")
    return f"{len(boxes)} boxes; {found.where}"


def _mask(built: Built, output: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Of a segmenter the scores of its largest class, the background last, and the rows and columns of its mask."""
    scores = next(tensor for tensor in _tensors(output) if tensor.dim() == 4)[0]
    labels = scores.argmax(0)
    counts = torch.bincount(labels.flatten(), minlength=len(scores)).tolist()
    first = 1 if "torchvision" in type(built.net).__module__ and any(counts[1:]) else 0  # 0 is the background
    largest = max(range(first, len(counts)), key=counts.__getitem__)
    return (scores[largest], *(labels == largest).nonzero(as_tuple=True))


def _over_the_mask(built: Built, output: Any) -> Tensor:
    scores, ys, xs = _mask(built, output)
    return scores[ys, xs].mean()


def _in_its_middle(built: Built, output: Any) -> Tensor:
    """The score of one pixel."""
    scores, ys, xs = _mask(built, output)
    i = int(((ys - ys.float().mean()) ** 2 + (xs - xs.float().mean()) ** 2).argmin())
    return scores[ys[i], xs[i]]


def _of_pixels(built: Built, calls: list[str], graph: _Graph, chosen: list[int], found: Any) -> str:
    """The maps of a segmenter: what each of them is needed for, and that no later one is coarser."""
    with torch.no_grad():
        _, ys, xs = _mask(built, built())
    mask = torch.zeros_like(found.mask)
    mask[0, ys, xs] = True
    if not torch.equal(found.mask, mask):
        raise Wrong(f"class {found.classes.tolist()} is explained, which is not the largest")
    for i in chosen:
        if not graph.meets(i, set(chosen) - {i}):
            raise Wrong(f"{found.where}: {graph.noted[i].name} is behind the others")
    end = min(chosen, key=lambda i: (_places(graph.noted[i].shape), -i))
    pixel = _Graph(built, calls, partial(_in_its_middle, built))
    for i, noted in enumerate(pixel.noted[end + 1 :], end + 1):
        if noted.name == FUNCTIONAL or len(noted.shape) != 4 or _places(noted.shape) > _places(graph.noted[end].shape):
            continue
        near = all(64 * side >= whole for side, whole in zip(noted.shape[2:], built.images.shape[2:], strict=True))
        if near and pixel.read(i) > 16:
            raise Wrong(f"{found.where}, but {noted.name} {noted.shape} is later, as coarse, and no score of a pixel")
    return str(found.where)


def _places(shape: tuple[int, ...]) -> int:
    """Of a map `1 c h w`, or of tokens `1 n c`."""
    return prod(shape[2:]) if len(shape) == 4 else shape[1]


class _Noted(NamedTuple):
    name: str
    node: Any  # of autograd's graph, as it was then
    shape: tuple[int, ...]
    memory: int


class _Graph:
    """One forward whose gradients can be cut at any layer, any number of times.

    Args:
        built: the model.
        calls: names of functional calls that are asked for, too.
        answer: what is differentiated; the highest of the first row of scores if it is not given.
    """

    def __init__(self, built: Built, calls: list[str], answer: Callable[[Any], Tensor] | None = None) -> None:
        self.noted: list[_Noted] = []
        self._cut: set[int] = set()
        self._gradients: dict[int, Tensor] = {}
        self._met: set[int] | None = None
        self._image = built.images.clone().requires_grad_()
        acts: Mapping[str, Any] = {}
        with ExitStack() as stack:
            for name, module in built.net.named_modules():
                hook = lambda _module, _given, output, name=name: self.note(name, output)
                stack.callback(module.register_forward_hook(hook).remove)
            if calls:
                stack.enter_context(_Functions(self))
                acts = stack.enter_context(fv.capture(built.net, [name.partition("#")[0] for name in calls], ops=True))
            output = built.net(self._image, *built.args, **built.keywords)
        self._captured = {name: next(_tensors(acts[name])) for name in calls}
        self._answer = (answer or _highest)(output)
        self.reaches(set())

    def note(self, name: str, output: Any) -> None:
        """Keep what a call returned, and a way to cut its gradient."""
        tensor = output if isinstance(output, Tensor) and output.requires_grad else None
        if tensor is None or not name or tensor.grad_fn is None:
            return
        number = len(self.noted)
        self.noted.append(_Noted(name, tensor.grad_fn, tuple(tensor.shape), tensor.data_ptr()))

        def cut(gradient: Tensor) -> Tensor | None:
            if self._met is not None and gradient.any():
                self._met.add(number)
            if not self._cut:
                self._gradients[number] = gradient
            return torch.zeros_like(gradient) if number in self._cut else None

        tensor.register_hook(cut)

    def reaches(self, cut: set[int]) -> bool:
        """Whether any gradient of the answer comes to the image where it is cut at these."""
        self._cut = cut
        (gradient,) = torch.autograd.grad(self._answer, self._image, retain_graph=True, allow_unused=True)
        return gradient is not None and bool(gradient.any())

    def meets(self, i: int, others: set[int]) -> bool:
        """Whether any gradient comes to one of them where it is cut at others."""
        self._met = met = set()
        self.reaches(others)
        self._met = None
        return i in met

    def read(self, i: int) -> int:
        """At how many places of a map `1 c h w` the answer has a gradient."""
        gradient = self._gradients.get(i)
        return 0 if gradient is None else int((gradient != 0).any(1).sum())

    def number(self, name: str) -> int:
        """Of a call by its name, as capture gives it."""
        if name in self._captured:
            kept = self._captured[name]
            same = [(noted.memory, noted.shape) == (kept.data_ptr(), tuple(kept.shape)) for noted in self.noted]
            if not any(same):
                raise Wrong(f"{name} is not among the calls of this forward")
            return len(same) - 1 - same[::-1].index(True)
        layer, _, call = name.partition("#")
        return [i for i, noted in enumerate(self.noted) if noted.name == layer][int(call or 1) - 1]

    def live(self, i: int, *, surely: bool = True) -> bool:
        """Whether the answer depends on more than one of its places; surely, whichever axis its channels are on.

        Of tokens that means three, since one of them may have no place.
        """
        gradient = self._gradients.get(i)
        if gradient is None or gradient.dim() not in (3, 4, 5) or len(gradient) != 1:
            return False
        on = gradient[0] != 0
        counts = int(on.any(0).sum()), int(on.any(-1).sum())
        return min(counts) > 1 + (gradient.dim() == 3) if surely else max(counts) > 1


def _highest(output: Any) -> Tensor:
    rows = next(tensor for tensor in _tensors(output) if tensor.dim() == 2)
    return rows[0, rows[0].argmax()]


class _Functions(TorchFunctionMode):
    """Notes what functional calls return."""

    def __init__(self, graph: _Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self._graph.note(FUNCTIONAL, output)
        return output


# Attention, beside softmaxes that are seen as functions, and what libraries tell


def _attention(built: Built, seen: _Witness, memory: Memory) -> str:
    noted = others.Functions.of(built)
    few = sum(map(others.on_a_grid, noted.values())) > others.LARGEST
    of = fv.Attention(queries=[0, -1]) if few else "attention"
    with torch.no_grad(), fv.capture(built.net, of=of) as att:
        torch.manual_seed(1)
        output = built()
    memory.stop()
    if not _same(_copied(output), seen.output):
        raise Wrong("the model returned something else")
    names = list(dict.fromkeys(key.partition("#")[0] for key in att))
    for name in names:
        for weights, expected in zip(att.calls(name), noted[name].weights, strict=True):
            if (off := others.astray(weights, expected)) > 1e-5:
                raise Wrong(f"{name}: {off:.2g} from the softmax in its forward")
    told = "" if few else _told(built, {name: att[name] for name in names if len(att.calls(name)) == 1})
    refused = _refused(built, {name: layer for name, layer in noted.items() if name not in names})
    if not names and refused:
        raise LayerError(refused[0])
    heads = others.heads_of([att.calls(name)[0] for name in names])
    text = f"{len(names)} layers × {heads} heads{told}{', two rows' if few else ''}" if names else "none"
    if refused:
        raise Partly(f"{text}, {len(refused)} refused: {refused[0]}")
    return text


def _refused(built: Built, noted: dict[str, others.Noted]) -> list[str]:
    """Why layers are refused if they are named; those are left out whose softmax is of something else."""
    reasons = []
    for name, layer in noted.items():
        if not (name or layer.surely):  # scores of classes, in the forward of the whole model
            continue
        try:
            with torch.no_grad(), fv.capture(built.net, name or type(built.net), of="attention") as att:
                built()
            att[name]
        except LayerError as error:
            if layer.surely or "computed no attention in its forward" not in str(error):
                reasons.append(str(error).removesuffix(" not_run lists all such layers."))
            continue
        raise Wrong(f"{name!r}: captured if it is named, and not otherwise")
    return reasons


def _told(built: Built, found: dict[str, Tensor]) -> str:
    """Whether the library's own way to the weights gives the same, where it has one.

    It rounds otherwise in each layer, which may grow from layer to layer: where they differ, both are run in float64.
    """
    library = type(built.net).__module__.split(".")[0]
    off = _from_told(built, library, found)
    if max(off.values(), default=0) > 1e-5:
        exact = replace(built, net=copy.deepcopy(built.net).double(), images=built.images.double())
        with torch.no_grad(), fv.capture(exact.net, of="attention") as att:
            torch.manual_seed(1)
            exact()
        off = _from_told(exact, library, {name: att[name] for name in found})
        if far := {name: by for name, by in off.items() if by > 1e-6}:
            name = next(iter(far))
            raise Wrong(f"{name}: {far[name]:.2g} from what {library} tells, in float64")
    return f", {len(off)} told by {library}" if off else ""


def _from_told(built: Built, library: str, found: dict[str, Tensor]) -> dict[str, float]:
    """How far the weights of each layer are from what the library tells, as far as it does."""
    if library == "timm":
        told = {name: weights for name, weights in others.of_timm(built).items() if name in found}
    elif library == "transformers":
        each = others.of_transformers(built)
        told = dict(zip(found, each, strict=True)) if len(each) == len(found) else {}
    else:
        told = {}
    return {name: others.astray(found[name], expected) for name, expected in told.items()}


# Overview, beside the image's own proportions


def _overview(built: Built, _: _Witness, memory: Memory) -> str:
    picture = fv.overview(
        built.net,
        built.images,
        limit=None,
        additional_forward_args=built.args or None,
        keywords=built.keywords or None,
    )
    memory.stop()
    drawn = [_Cell.of(label, caption) for label, caption in zip(picture.labels, picture.captions, strict=True)]
    high, wide = built.images.shape[2:]
    for cell in drawn:
        rows, columns = cell.size
        # A map of half the image has half its rows and half its columns, give or take what padding adds.
        if abs(rows / high - columns / wide) > 4 / min(high, wide) + 0.15 * rows / high:
            raise Wrong(f"{cell.name} is drawn as {rows}×{columns} of {high}×{wide}")
    return f"{len(drawn)} maps"


class _Cell(NamedTuple):
    name: str
    size: tuple[int, int]

    @classmethod
    def of(cls, label: str, caption: str) -> _Cell:
        found = re.fullmatch(r"(\d+)×(\d+)  .+", caption)
        if found is None:
            raise Wrong(f"below a cell stands {caption!r}")
        return cls(label.split(maxsplit=1)[0], (int(found[1]), int(found[2])))


# Kernels, beside impulses


def _kernels(built: Built, seen: _Witness, memory: Memory) -> str:
    kinds: dict[Any, str] = {}
    large = 0
    for name, module in built.net.named_modules():
        if isinstance(module, _TWO_D) and name in seen.calls and _kind(module) not in kinds:
            if module.in_channels * module.out_channels * prod(module.kernel_size) > _LARGEST * module.groups:
                large += 1
            else:
                kinds[_kind(module)] = name
    refused = []
    for name in list(kinds.values())[:_KERNELS]:
        layer = built.net.get_submodule(name)
        try:
            weight = _drawn(built.net, name)
            memory.stop()
        except LayerError as error:
            refused.append(f"{name}: {error}")
            continue
        expected = impulses(layer, _CHANNELS)
        got = weight[:, : expected.shape[1]]
        if got.shape != expected.shape:
            raise Wrong(f"{name}: {tuple(got.shape)} drawn, {tuple(expected.shape)} answered")
        off = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
        if off > 1e-4:
            raise Wrong(f"{name}: {off:.2g} of the largest away from its impulse response")
    if refused:
        raise LayerError(_list(refused))
    return f"{min(len(kinds), _KERNELS)} kinds" + (f", {large} too large to try" if large and not kinds else "")


def _drawn(net: nn.Module, name: str) -> Tensor:
    """The kernels that `fv.kernels` draws, as numbers: a picture of them has colours only."""
    from torch_featviz.model.weights import planes_of  # noqa: PLC0415

    fv.kernels(net, name, limit=2)
    return planes_of(net, name).weight.detach().float()


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    words = ("kernel_size", "stride", "padding", "dilation", "padding_mode", "output_padding")
    return (type(layer), *(getattr(layer, word, None) for word in words), layer.groups > 1)


def impulses(layer: nn.Module, channels: int) -> Tensor:
    """What a convolution answers to one 1 among zeros, for each tap: `k c h w`, by filters, of the first channels.

    Args:
        layer: of two dimensions, in whatever kind and configuration; it is copied.
        channels: how many of each group, at most.
    """
    layer = copy.deepcopy(layer).eval().double()
    each, transposed = layer.in_channels // layer.groups, isinstance(layer, nn.ConvTranspose2d)
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    # Far enough from the edge that no padding, of whatever mode, comes into the middle.
    size = [r + 4 * s for r, s in zip(reach, layer.stride, strict=True)]
    quiet = torch.zeros(1, layer.in_channels, *size, dtype=torch.double)

    def answers(places: list[tuple[Any, ...]], read: Callable[[Tensor], Tensor], *, noise: bool = False) -> Tensor:
        """Of a 1 at each of these, or of noise there, what is read of the answers; some at a time."""
        found, part = [], max(1, _ENTRIES // quiet.numel())
        for start in range(0, len(places), part):
            given = quiet.repeat(len(places[start : start + part]), 1, 1, 1)
            for one, at in zip(given, places[start : start + part], strict=True):
                one[at] = torch.rand_like(one[at]) if noise else 1
            found.append(read(layer(given) - still))
        return torch.cat(found)

    with torch.no_grad():
        still = layer(quiet)
        middle = [n // 2 for n in (size if transposed else still.shape[2:])]
        every = slice(None)
        if transposed:  # where the middle place writes to
            (written,) = answers([(every, *middle)], lambda answer: answer.abs().amax(1), noise=True)
            starts = [int((written.amax(1 - axis) > 1e-12).nonzero()[0]) for axis in (0, 1)]
        else:  # from where the middle place reads
            read = lambda answer: answer[:, :, middle[0], middle[1]].abs().amax(1)
            down = answers([(every, row) for row in range(size[0])], read, noise=True)
            across = answers([(every, every, column) for column in range(size[1])], read, noise=True)
            starts = [int((seen > 1e-12).nonzero()[0]) for seen in (down, across)]
        taps = [
            tuple(start + d * tap for start, d, tap in zip(starts, layer.dilation, ij, strict=True))
            for ij in product(*map(range, layer.kernel_size))
        ]
        chosen = [slice(c, None, each) for c in range(min(channels, each))]  # of each group
        if transposed:
            rows, columns = ([at[axis] for at in taps] for axis in (0, 1))
            found = answers([(c, *middle) for c in chosen], lambda answer: answer[:, :, rows, columns]).transpose(0, 1)
        else:
            places = [(c, *at) for c in chosen for at in taps]
            found = answers(places, lambda answer: answer[:, :, middle[0], middle[1]]).t()
    return found.reshape(len(found), len(chosen), *layer.kernel_size).float()


# Summary and shapes, beside what hooks saw


def _summary(built: Built, seen: _Witness, memory: Memory) -> str:
    found = fv.summary(
        built.net, built.images, additional_forward_args=built.args or None, keywords=built.keywords or None
    )
    memory.stop()
    parameters = sum(parameter.numel() for parameter in built.net.parameters())
    if found.parameters != parameters:
        raise Wrong(f"{found.parameters:,} parameters of {parameters:,}")
    calls = {name: len(kept) for name, kept in seen.calls.items()}
    for layer in found.layers:
        if layer.name and layer.shape != (expected := seen.shapes.get(layer.name, ())):
            raise Wrong(f"{layer.name} returns {expected}, not {layer.shape}")
        if layer.name and layer.calls != calls.get(layer.name, 0):
            raise Wrong(f"{layer.name} is called {calls.get(layer.name, 0)} times, not {layer.calls}")
    if not str(found):
        raise Wrong("it prints nothing")
    return f"{len(found.layers)} layers"


def _shapes(built: Built, seen: _Witness, memory: Memory) -> str:
    found = fv.shapes(built.net, built.images, *built.args, keywords=built.keywords or None)
    memory.stop()
    for key, value in found.items():
        size = value
        while not isinstance(size, torch.Size) and isinstance(size, (dict, list, tuple)) and size:
            size = next(iter(size.values() if isinstance(size, dict) else size))
        name, _, call = key.partition("#")
        expected = next(_tensors(seen.calls[name][int(call or 1) - 1]), None)
        if expected is not None and tuple(size) != tuple(expected.shape):
            raise Wrong(f"{key} returns {tuple(expected.shape)}, not {tuple(size)}")
    return f"{len(found)} calls"


def _list(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
