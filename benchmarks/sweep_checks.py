"""What `benchmarks/sweep.py` asks of one model, each answer held against one that is found in another way.

Most of it is what `fv.prove` claims of any model. Attention and the proportions of an overview are looked at here: by
softmaxes seen as functions, and by how a map has to lie.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import re
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

import torch_featviz as fv
from benchmarks import sweep_attention as others
from benchmarks.sweep_models import Built
from torch_featviz.errors import FeatvizError, LayerError
from torch_featviz.prove.claims import Claim
from torch_featviz.prove.figures import claims_of_figures
from torch_featviz.prove.kernels import claims_of_kernels
from torch_featviz.prove.maps import claims_of_maps
from torch_featviz.prove.passing import Passing
from torch_featviz.prove.subject import Subject
from torch_featviz.prove.untouched import untouched

CHECKS = ("capture", "heatmap", "attention", "overview", "kernels", "summary", "shapes")
_TWO_D = (nn.Conv2d, nn.ConvTranspose2d)
Claims: TypeAlias = Callable[[Subject], list[Claim]]


class Wrong(Exception):
    """What was answered is not so."""


class Partly(Exception):
    """What was answered is right, and some is refused with a reason."""


class Refused(FeatvizError):
    """What was asked is not answered, for this reason."""


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


# Capture


class _Witness:
    """What a model returned; it is run when that is asked for."""

    def __init__(self, built: Built) -> None:
        self._built = built

    @cached_property
    def output(self) -> Any:
        """Of the model."""
        torch.manual_seed(1)
        with torch.no_grad():
            return _copied(self._built())


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


def _capture(built: Built, _: _Witness, memory: Memory) -> str:
    claims = untouched(Subject(built.net, built.images, built.args or None, built.keywords or None))
    memory.stop()
    if wrong := [f"{claim.name}: {claim.found}" for claim in claims if claim.holds is False]:
        raise Wrong("; ".join(wrong))
    values = next(claim.found for claim in claims if claim.name == "captured values")
    if (calls := re.search(r"[\d,]+ calls", values)) is None:
        raise Refused(values)
    return calls[0]


def _same(one: Any, other: Any) -> bool:
    """Whether tensors have the same bits, at any depth; nan is nan."""
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_quantized:
        return torch.equal(one.int_repr(), other.int_repr())
    return torch.allclose(one, other, 0, 0, equal_nan=True) if one.is_floating_point() else torch.equal(one, other)


# What `fv.prove` claims of any model


def _claimed(built: Built, memory: Memory, claims: Claims, name: str) -> str:
    """What was found, in short, of the claim of this name."""
    subject = Subject(built.net, built.images, built.args or None, built.keywords or None)
    claim = next(claim for claim in claims(subject) if claim.name == name)
    memory.stop()
    if claim.holds is False:
        raise Wrong(claim.found)
    if claim.holds is None:
        raise Refused(claim.found)
    if "; " in claim.found and " refused: " in claim.found:
        raise Partly(claim.found.replace("; ", ", "))
    return claim.found.partition("; ")[0]


def _heatmap(built: Built, _: _Witness, memory: Memory) -> str:
    """That the default map is the latest cut; a refusal is right where there are no classes, or is no gradient."""
    try:
        where = _claimed(built, memory, claims_of_maps, "default map")
    except Refused as refusal:
        if not built.classes or str(refusal).startswith("no boxes"):
            raise
        passing = Passing(Subject(built.net, built.images, built.args or None, built.keywords or None))
        rows = next((tensor for tensor in _tensors(passing.output) if tensor.dim() == 2), None)
        if rows is None:
            raise
        if passing.backward(Subject(built.net, built.images), rows[0].max()):
            raise Wrong(str(refusal)) from refusal
        return "no gradient, as is said"
    if not built.classes and not where.startswith("boxes"):
        raise Wrong("drew what is of no class")
    return where


def _kernels(built: Built, _: _Witness, memory: Memory) -> str:
    if not any(isinstance(module, _TWO_D) for module in built.net.modules()):
        return "0 kinds"
    return _claimed(built, memory, claims_of_kernels, "kernels")


def _summary(built: Built, _: _Witness, memory: Memory) -> str:
    return _claimed(built, memory, claims_of_figures, "summary")


def _shapes(built: Built, _: _Witness, memory: Memory) -> str:
    return _claimed(built, memory, claims_of_figures, "shapes")


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


def _list(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
