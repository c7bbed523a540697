"""What kernels and feature maps were at some steps, all frames of a layer on one scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torch_featviz.errors import LayerError, OptionError
from torch_featviz.explain.attribute import explain
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.weights import has_kernel, planes_of
from torch_featviz.picture import Scale, Sheet, number
from torch_featviz.views import feature_maps, kernels

from .film import Film
from .ordinary import ordinary
from .thinned import Thinned

KEPT = 32  # frames of a layer held at most
FILTERS = 64  # of one or three channels that are kept
TABLE = 12  # rows and columns of deeper ones
IMAGES = 4  # whose maps and heatmaps are kept
KINDS = ("kernels", "maps", "why")
ROOM = 4  # times as far as the first frame the scale reaches, because what learns grows
HELD = 16  # times the ordinary reach a film's scale holds: what grows, and not what blows up


@dataclass(frozen=True, eq=False)
class Frame:
    """What was seen at one step; drawn when asked for, also in another thread.

    Args:
        values: kernels `k c h w`, maps `b c h w`, or heatmaps `b 1 h w`; on the CPU, float32.
        shape: of all that there was.
        notes: for the legend.
    """

    step: int
    values: Tensor
    shape: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def draw(self, name: str, scale: Scale, images: Sequence[str] = ()) -> Sheet:
        """As a sheet; `name` is `"kernels/<layer>"`, `"maps/<layer>"` or `"why/<method>"`, `images` name the images."""
        kind, _, layer = name.partition("/")
        shown, there = self.values.shape, self.shape
        if kind == "kernels":
            sheet = kernels(self.values, scale=scale, limit=max(shown))
            of = f"{there[0]} filters of {there[1]}×{there[2]}×{there[3]}"
            left_out = f"{shown[0]} of {there[0]} filters × {shown[1]} of {there[1]} channels shown"
        else:
            images = images or [f"image {i}" for i in range(shown[0])]
            several = dict(zip(images, self.values, strict=False))
            sheet = feature_maps(several if len(several) > 1 else self.values[0], scale=scale)
            of = (
                f"{there[1]} maps of {there[2]} × {there[3]}"
                if kind == "maps"
                else "red speaks for the answer given, blue against it"
            )
            parts = ((shown[1], there[1], "maps"), (shown[0], there[0], "images"))
            left_out = " and ".join(f"{some} of {all_} {what}" for some, all_, what in parts if some < all_) + " shown"
        assert isinstance(sheet, Sheet)
        notes = (*((left_out,) if shown != there else ()), *self.notes, *sheet.legend.notes)
        what = f"Why, by {layer}" if kind == "why" else f"{kind.capitalize()} of {layer or 'the model'}"
        title = f"{what}, step {self.step:,}: {of}"
        return replace(sheet, title=title, legend=replace(sheet.legend, notes=notes))


class Frames:
    """One layer's kernels or maps, or heatmaps of the probe, over the steps: as many as can be kept.

    Args:
        name: `"kernels/<layer>"`, `"maps/<layer>"` or `"why/<method>"`.
        scale: of all frames, where one was given.
    """

    def __init__(self, name: str, scale: Scale | None) -> None:
        self.name = name
        self._given = scale
        self._first: Scale | None = None
        self._held: Thinned[Frame] = Thinned(KEPT)

    def add(self, frame: Frame) -> Callable[[], Sheet]:
        """Take the next step's; what draws it on the scale that the first one fixed, four times as wide as itself.

        One of another shape is of another layer in the same place: it is a first one.
        """
        if len(self._held) and self._held[-1].shape != frame.shape:
            self._held, self._first = Thinned(KEPT), None
        if self._first is None or not self._first.vmax:  # nothing but 0 or NaN before
            fitted = (self._given or Scale(symmetric=True)).fit(frame.values)
            self._first = fitted if self._given else Scale(symmetric=True, vmax=ROOM * float(fitted.vmax or 0))
        self._held.append(frame)
        return partial(frame.draw, self.name, self._first)

    def cut_from(self, step: int) -> None:
        """Forget frames of that step and later ones."""
        self._held.cut(sum(frame.step < step for frame in self._held))

    def film(self, names: Sequence[str] = ()) -> Film:
        """All that are held, on the scale that was given, or on the narrowest that holds all that did not blow up.

        A frame that reaches more than 16 times as far as is ordinary would leave nothing to see of the others: what is
        beyond the scale then has a colour of its own, is counted, and a note says how far it reaches.

        Args:
            names: of the images; default `image 0`, `image 1`, and so on.
        Raises:
            OptionError: fewer names than images, or the same name twice.
        """
        frames = list(self._held)
        images = frames[-1].values.shape[0]
        if names and (len(names) < images or len(set(names)) < len(names)):
            raise OptionError(f"names must be {images} different names, of the probe's images, got {names!r}.")
        scale, reaches = self._given, [_reach(frame.values) for frame in frames]
        if scale is None:
            limit = HELD * ordinary(reaches)
            held = [frame.values for frame, reach in zip(frames, reaches, strict=True) if reach <= limit]
            scale = Scale(symmetric=True).fit(*held or [frame.values for frame in frames])
            frames = [
                frame if reach <= limit else replace(frame, notes=(*frame.notes, _beyond(reach)))
                for frame, reach in zip(frames, reaches, strict=True)
            ]
        else:
            scale = scale.fit(*(frame.values for frame in frames))
        sheets = [frame.draw(self.name, scale, names) for frame in frames]
        return Film([frame.step for frame in frames], sheets, table=not self.name.startswith("kernels/"))


def _reach(values: Tensor) -> float:
    """The largest finite magnitude; 0 where there is none."""
    return float(torch.where(values.isfinite(), values, 0).abs().max())


def _beyond(reach: float) -> str:
    return f"reaches {number(reach)}: beyond the scale, which holds the other steps"


class Seen(NamedTuple):
    """What is drawn of one step, where it is: values, the shape of all of which they are a part, and notes."""

    values: Tensor
    shape: tuple[int, ...]
    notes: tuple[str, ...] = ()


def kernels_now(layers: Mapping[str, nn.Module]) -> dict[str, Seen]:
    """The kernels that are shown, `k c h w`, of layers that have some: those that they compute with now."""
    drawn = {}
    for name, layer in layers.items():
        if not has_kernel(layer):
            continue
        try:
            found = planes_of(layer, filters=TABLE)
            if found.weight.shape[1] in (1, 3):
                found = planes_of(layer, filters=FILTERS)
        except LayerError:  # it makes other kernels for each input, say
            continue
        if found.weight.is_floating_point():
            shown = found.weight[:, :TABLE].float()
            drawn[name] = Seen(shown, (found.filters, *found.weight.shape[1:]), found.notes)
    return drawn


def why_now(model: nn.Module, method: str, probe: Inputs) -> Seen:
    """What in the probe speaks for the answer to it, `b 1 h w`."""
    heatmaps = explain(model, probe, method=method).heatmaps[:, None]
    return Seen(heatmaps[:IMAGES], tuple(heatmaps.shape))


def check_scales(scales: Mapping[str, Scale], layers: Mapping[str, nn.Module]) -> None:
    """Raise OptionError unless these are scales that frames of these layers can share."""
    for name, scale in scales.items():
        kind, _, layer = name.partition("/")
        if kind not in KINDS or (kind != "why" and layer not in layers):
            raise OptionError(
                f"a key of scales must be 'kernels/<layer>', 'maps/<layer>' or 'why/<method>', got {name!r}."
            )
        if not isinstance(scale, Scale) or scale.per != "layer":
            raise OptionError(
                f"the scale of {name!r} must be a Scale that all frames share (per='layer'), got {scale!r}."
            )
