"""What an attribution method found: a heatmap for each image, or for each box of a detector."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from torch_featviz.displayed import Displayed
from torch_featviz.model.answer import Kind, Target
from torch_featviz.model.boxes import Boxes
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.masks import mask_of

from .cam import MODES
from .within import Within, within_boxes, within_masks


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Displayed):
    """The result of one attribution method for each image.

    Args:
        attributions: as the method returns them: `b c ...` for methods on the input, `b k ...` for methods on a layer.
        heatmaps: attributions summed over channels, at the size of the images: `b ...` (`b h w`), float32, signed. They
            are never rescaled, so that images and classes can be compared.
        classes: the class explained for each image, `b`; None if the target is not a class.
        method: name of the method.
        layers: names of the layers used, in order of execution; empty if there are none.
        where: the same in words: how tokens became a map, and how several maps were joined.
        target: the `target` argument.
        options: the options of the method.
        inputs: the arguments of the model.
        answer: the `answer` argument.
        boxes: of a detector, the boxes explained; then there is a heatmap for each of them, `n h w`, best first. None
            if the model returns none.
        note: what else is to be known of the heatmaps, in words, such as that they are 0 by construction.
    """

    attributions: Tensor
    heatmaps: Tensor
    classes: Tensor | None
    method: str
    layers: tuple[str, ...] = ()
    where: str = ""
    target: Target = None
    options: dict[str, Any] = field(default_factory=dict)
    inputs: Inputs | None = field(default=None, repr=False)
    answer: Kind | None = None
    boxes: Boxes | None = None
    note: str = ""

    @property
    def mask(self) -> Tensor | None:
        """Of a segmenter the pixels of the class explained, `b h w` bool, at the size of its output; else None."""
        return mask_of(self.inputs)

    @property
    def within(self) -> Tensor | None:
        """Share of each heatmap's positive values that lies within its box, or over its class's mask: `n` or `b`.

        A pixel on the edge of a box counts as far as the box covers it. NaN where nothing is positive or a value is not
        finite; None where there is neither box nor mask. Compare it with `area`: a heatmap that knows nothing of the
        place has about that share within. A high share does not mean that the model needs no more than this.

        Reference: "energy-based pointing game", Wang et al. 2020 (Score-CAM); "relevance mass accuracy", Arras et al.
        2022.
        """
        return None if (found := self._within()) is None else found.share

    @property
    def area(self) -> Tensor | None:
        """Share of the image that the box of each heatmap, or the mask of its class, covers: `n` or `b`, or None."""
        return None if (found := self._within()) is None else found.area

    def _within(self) -> Within | None:
        if self.boxes is not None:
            return within_boxes(self.heatmaps, self.boxes.xyxy)
        return None if self.mask is None else within_masks(self.heatmaps, self.mask)

    @property
    def layer(self) -> str:
        """Names of the layers, joined by `+`; empty if there are none."""
        return "+".join(self.layers)


def heatmaps_of(attributions: Tensor, images: Tensor) -> Tensor:
    """Sum attributions over channels and resize them to the images: `b c ... -> b ...`, float32, sign kept."""
    maps = attributions.detach().float()
    maps = maps.sum(1, keepdim=True) if maps.shape[1] > 1 else maps
    if maps.shape[2:] == images.shape[2:]:
        maps = maps.clone() if attributions.shape[1] == 1 else maps  # memory of its own
    else:
        maps = F.interpolate(maps, images.shape[2:], mode=MODES[images.dim() - 2])
    return maps[:, 0]
