"""What else moves the channels: patches of a data set beside their projections, as the page is given them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_featviz.choices import PROJECTIONS
from torch_featviz.inspect.layer import Layer
from torch_featviz.picture import enlarge, rgb
from torch_featviz.survey import Patches, read_patches, top_patches
from torch_featviz.views.exemplars import signed_units

from .answer import marks_of
from .layers import MODEL, peaks_of, strongest
from .pack import Blobs

LAYERS, CHANNELS, HITS = 6, 12, 9
_SIDE = 72  # pixels of a patch, at most
_NOTHING = 225  # light grey, beyond the image's border

_ToUnit = Callable[[Tensor], Tensor]


def put_units(
    blobs: Blobs,
    model: nn.Module,
    layers: list[Layer],
    loader: Iterable[Any],
    to_unit: _ToUnit,
    *,
    projection: str | None,
    progress: bool,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """By layer, the patches of the channels that fire most in the images of the page; and what was left out.

    Args:
        blobs: where the pictures go.
        model: as it was given.
        layers: of the walk.
        loader: as for `top_patches`; it is read once for all layers, and the images chosen once more.
        to_unit: from images as the model takes them to red, green and blue on the unit range.
        projection: as in `TopPatches.patches`.
        progress: show a bar.
    """
    convolutions = {
        layer.name: peaks_of(layer.values)
        for layer in layers
        if layer.kernels is not None and "#" not in layer.name and layer.values is not None and layer.values.dim() == 4
    }
    if not convolutions:
        return {}, ["Patches: there is no convolution that runs once."]
    count = min(LAYERS, len(convolutions))
    names = [
        list(convolutions)[round(i)] for i in torch.linspace(0, len(convolutions) - 1, count, device="cpu").tolist()
    ]
    tops = top_patches(model, loader, names, k=HITS, progress=progress)
    chosen = {name: strongest(convolutions[name], CHANNELS) for name in names}
    patches = read_patches(tops, chosen, projection=projection)
    note = (
        f"Patches of the data set: of {count} of {len(convolutions)} convolutions, the {CHANNELS} channels that fire "
        "most."
    )
    notes = [note, *([f"Patches of the data set: {told}."] if (told := tops[names[0]].unread) else [])]
    return {name or MODEL: _units(blobs, patches[name], to_unit) for name in names}, notes


def _units(blobs: Blobs, patches: Patches, to_unit: _ToUnit) -> dict[str, Any]:
    units = {}
    for n, channel in enumerate(patches.channels):
        values = [value for value in patches.values[n].tolist() if value > 0]
        if not values:
            continue
        inside = patches.inside[n, : len(values), None]
        signed = signed_units(patches.projections[n, : len(values)])
        alt, cosine = f"channel {channel} of {patches.layer}", float(patches.cosine[n])
        pixels = torch.where(inside, to_unit(patches.images[n, : len(values)]), 0)
        units[str(channel)] = {
            "values": values,
            "images": patches.numbers[n, : len(values)].tolist(),
            "clipped": marks_of(pixels),
            "cosine": None if math.isnan(cosine) else cosine,
            "patches": blobs.picture(
                _strip(pixels, inside),
                f"patches that move {alt} most, the highest first",
                lossy=True,
            ),
            "projections": blobs.picture(
                _strip(signed.expand(-1, 3, -1, -1) if signed.shape[1] == 1 else signed, inside),
                f"what in each of them moves {alt}",
                lossy=True,
            ),
        }
    by = PROJECTIONS.get(patches.method)
    return {"k": HITS, "seen": patches.seen, "projected_by": by, "switches": patches.switches, "channels": units}


def _strip(units: Tensor, inside: Tensor) -> Tensor:
    """`k 3 h w -> 3 side (k side)`: cells next to each other, the longer side of each at most the largest."""
    colors = torch.where(inside, rgb(units), _NOTHING).to(torch.uint8)
    side = max(colors.shape[2:])
    if side > _SIDE:
        sizes = [max(1, round(n * _SIDE / side)) for n in colors.shape[2:]]
        colors = F.interpolate(colors.float(), sizes, mode="area").round().to(torch.uint8)
    else:
        colors = enlarge(colors, _SIDE // side)
    side = max(colors.shape[2:])
    missing = [side - n for n in colors.shape[2:]]
    colors = F.pad(colors, (0, missing[1], 0, missing[0]), value=_NOTHING)
    return colors.permute(1, 2, 0, 3).flatten(2)
