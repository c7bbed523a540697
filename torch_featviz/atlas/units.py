"""What else moves the channels: patches of a data set beside their projections, as the page is given them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from torch_featviz.inspect.walk import Layer
from torch_featviz.picture import Scale, enlarge, rgb
from torch_featviz.picture.images import unit_images
from torch_featviz.survey import TopPatches, top_patches

from .layers import MODEL, strongest
from .pack import Blobs

LAYERS, CHANNELS, HITS = 6, 12, 9
_SIDE = 72  # pixels of a patch, at most
_NOTHING = 225  # light grey, beyond the image's border

_ToUnit = Callable[[Tensor], Tensor]


def put_units(
    blobs: Blobs, model: nn.Module, layers: list[Layer], loader: Iterable[Any], to_unit: _ToUnit, *, progress: bool
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """By layer, the patches of the channels that fire most in the images of the page; and what was left out.

    Args:
        blobs: where the pictures go.
        model: as it was given.
        layers: of the walk.
        loader: as for `top_patches`.
        to_unit: from images as the model takes them to those for the eye.
        progress: show a bar.
    """
    able = [
        each
        for each in layers
        if each.kernels is not None and "#" not in each.name and each.values is not None and each.values.dim() == 4
    ]
    chosen = [able[round(i)] for i in torch.linspace(0, len(able) - 1, min(LAYERS, len(able))).tolist()] if able else []
    found = {}
    for layer in tqdm(chosen, desc="units", disable=not progress, leave=False):
        best = top_patches(model, loader, layer.name, k=HITS)
        assert layer.values is not None
        peaks = layer.values.flatten(2).amax(2).amax(0).nan_to_num(-torch.inf)
        found[layer.name or MODEL] = _units(blobs, best, strongest(peaks, CHANNELS), to_unit)
    if not found:
        return {}, ["Patches: there is no convolution that runs once."]
    told = (
        f"Patches of the data set: of {len(found)} of {len(able)} convolutions, the {CHANNELS} channels that fire most."
    )
    return found, [told]


def _units(blobs: Blobs, best: TopPatches, channels: list[int], to_unit: _ToUnit) -> dict[str, Any]:
    patches = best.patches(channels)
    found = {}
    for n, channel in enumerate(channels):
        values = [value for value in best.values[channel].tolist() if value > 0]
        inside = patches.inside[n, : len(values), None]
        if not values:
            continue
        signed = Scale(symmetric=True, per="filter")(patches.projections[n, : len(values)])
        alt = f"channel {channel} of {best.layer}"
        found[str(channel)] = {
            "values": values,
            "images": best.images[channel, : len(values)].tolist(),
            "patches": blobs.picture(
                _strip(unit_images(to_unit(patches.images[n, : len(values)])), inside),
                f"patches that move {alt} most, the highest first",
                lossy=True,
            ),
            "projections": blobs.picture(
                _strip(signed.expand(-1, 3, -1, -1) if signed.shape[1] == 1 else signed, inside),
                f"what in each of them moves {alt}",
                lossy=True,
            ),
        }
    return {"k": HITS, "seen": best.seen, "channels": found}


def _strip(units: Tensor, inside: Tensor) -> Tensor:
    """`k 3 h w -> 3 side (k side)`: cells next to each other, the longer side of each at most the largest."""
    colors = torch.where(inside, rgb(units.clamp(0, 1)), _NOTHING).to(torch.uint8)
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
