"""A model made ready to be explained: a twin that returns figures, and how much of it fits into memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.errors import OptionError
from torch_featviz.model.answer import Target, classes_of, figures

FEW = 16  # rows that are run at once without a look at the memory
_CPU_BUDGET = 1 << 30  # bytes that autograd may hold


class Explained(nn.Module):
    """The model with its target chosen: what Captum is given.

    Args:
        model: a twin, which may be changed.
        target: as in `attribute`.
    """

    def __init__(self, model: nn.Module, target: Target) -> None:
        super().__init__()
        self.model = model
        self.target = target
        self.classes: Tensor | None = None  # of the images explained last,
        self.dtype: torch.dtype | None = None  # and what they are of

    def settle(self, images: Tensor) -> Tensor | None:
        """The class to explain for each image, by a forward of its own; None where there are no classes."""
        self.dtype = images.dtype
        with torch.no_grad():
            self.classes = classes_of(self.target, self.model(images), len(images))
        return self.classes

    def score(self, images: Tensor) -> Tensor:
        """The figure of each image, `b`, with its graph; `classes` is set on the way."""
        output = self.model(images)
        self.classes = classes_of(self.target, output, len(images))
        return self.differentiable(figures(output, self.target, self.classes, len(images)))

    def forward(self, images: Tensor) -> Tensor:
        """What Captum chooses its target from: `b k`, or `b` where there is nothing to choose."""
        output = self.model(images.to(self.dtype or images.dtype))  # Captum's noise is float32 whatever they are
        if callable(self.target) or self.classes is None:
            output = figures(output, self.target, None, len(images))
        return self.differentiable(output) if torch.is_grad_enabled() and images.requires_grad else output

    @staticmethod
    def differentiable(figure: Tensor) -> Tensor:
        """`figure`, if a gradient can be taken of it."""
        if not figure.requires_grad:
            raise OptionError(
                "no gradient reaches the model's output (an argmax, a round() or no_grad() on the way?); "
                "method='occlusion' and 'feature_ablation' do without."
            )
        return figure


def rows_at_once(explained: Explained, image: Tensor, wanted: int) -> int:
    """How many of `wanted` rows may run at once, by what autograd holds for one: `1 c ...`.

    At most half of the free memory of a GPU, or 1 GiB on a CPU.
    """
    if wanted <= FEW:
        return wanted
    held: dict[int, int] = {}
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*explained.parameters(), *explained.buffers())}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, _same):
        output: Any = explained.model(image.detach().clone().requires_grad_())
    del output
    budget = torch.cuda.mem_get_info(image.device)[0] // 2 if image.is_cuda else _CPU_BUDGET
    return max(1, min(wanted, budget // max(1, sum(held.values()))))


def _same(tensor: Tensor) -> Tensor:
    return tensor


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size`, from 0 to `n`.

    Example:
        >>> [(part.start, part.stop) for part in chunks(5, 2)]
        [(0, 2), (2, 4), (4, 5)]
    """
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
