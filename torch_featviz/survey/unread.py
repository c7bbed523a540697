"""The patches of some channels without the second pass: the images alone, and the model is not run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_featviz.model.untouched import isolated

from .patches import padded, sides_of
from .top import TopPatches


def patches_alone(best: TopPatches, channels: Sequence[int], hits: int) -> tuple[Tensor, Tensor] | None:
    """The first `hits` patches of these channels, as the data set gives them now, and where there is image.

    Returns:
        `n hits c h w` and `n hits h w`; or None where the loader has no index, by which the images chosen can be read
        without the others, or no channel has a patch.
    Example:
        >>> from torch.utils.data import DataLoader
        >>> from torch_featviz.survey import top_patches
        >>> images = DataLoader(torch.rand(9, 1, 8, 8), 3)
        >>> patches, inside = patches_alone(top_patches(torch.nn.Conv2d(1, 4, 3), images, ""), [0, 2], 5)
        >>> patches.shape, inside.shape
        (torch.Size([2, 5, 1, 3, 3]), torch.Size([2, 5, 3, 3]))
    """
    found = [best._hits(channel)[:hits] for channel in channels]
    numbers = sorted({hit.image for of in found for hit in of})
    if best.source.ids is None or not numbers:
        return None
    with isolated():
        images = dict(zip(numbers, best.source.again(numbers), strict=True))
    boxes = [[best._field.box(*hit.unit[1:]) for hit in of] for of in found]
    sides = sides_of(best._field, best.size[1:], [(box[0], box[1]) for of in boxes for box in of])
    patches = torch.zeros(len(found), hits, best.size[0], *sides, device="cpu")
    inside = torch.zeros(len(found), hits, *sides, dtype=torch.bool, device="cpu")
    for n, of in enumerate(found):
        for hit, (down, across) in zip(of, boxes[n], strict=True):
            patch = images[hit.image][:, slice(*down), slice(*across)].float().cpu()
            patches[n, hit.rank] = padded(patch, (down, across), sides)
            inside[n, hit.rank] = padded(torch.ones_like(patch[:1]), (down, across), sides)[0] > 0
    return patches, inside
