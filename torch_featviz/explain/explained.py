"""A model made ready to be explained: a copy that returns figures, and how much of it fits into memory at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.errors import OptionError
from torch_featviz.model.answer import (
    Kind,
    Target,
    answer_of,
    classes_of,
    columns,
    ending,
    figures,
    is_binary,
    scores_of,
)
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.masks import PixelsFound, is_segmenters
from torch_featviz.model.names import check_named
from torch_featviz.model.run import run

FEW = 16  # rows that are run at once without a look at the memory
_CPU_BUDGET = 1 << 28  # bytes that autograd may hold


class Explained(nn.Module):
    """The model with its inputs and its target chosen: what Captum is given.

    Args:
        model: a twin, which may be changed.
        inputs: the images that are explained, and what else the model is given; both are replaced for each part.
        target: as in `attribute`.
        said: what the model's scores are, where it is known.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, target: Target, said: Kind | None = None) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.target = target
        self.said = said
        self.names: Sequence[str] = ()  # of all classes, where they are known
        self.classes: Tensor | None = None  # of the images explained last
        self.binary = False  # whether these are two, of a single logit
        self.note = ""  # what is to be said of the heatmaps

    @property
    def numbers(self) -> Tensor | None:
        """For Captum, which repeats them as it repeats images: the images' numbers, where other inputs go by them."""
        images = self.inputs.images
        return torch.arange(len(images), device=images.device) if self.inputs.by_row else None

    def answer(self, images: Tensor, numbers: Tensor | None = None) -> Any:
        """What the model returns for variants of the images that have these numbers; None where they are in order."""
        return run(self.model, self.inputs.at(images, slice(None) if numbers is None else numbers))

    def settle(self) -> Tensor | None:
        """The class to explain for each image, by a forward of its own; None where there are no classes."""
        images = self.inputs.images
        with torch.no_grad():
            output = self.answer(images)
        self.classes = self._classes(output)
        self.binary = self.classes is not None and is_binary(scores_of(output, len(images)), self.said)
        return self.classes

    def score(self, images: Tensor) -> Tensor:
        """The figure of each image, `b`, with its graph; `classes` is set on the way."""
        return self.figures(self.answer(images))

    def figures(self, output: Any) -> Tensor:
        """The same of what the model returned for them."""
        self.classes = self._classes(output)
        count = len(self.inputs.images)
        return self.differentiable(figures(output, self.target, self.classes, count, self.said))

    def _classes(self, output: Any) -> Tensor | None:
        """The class to explain for each image; None where there are no classes."""
        if callable(self.target):
            return None
        images = self.inputs.images
        if is_segmenters(output, images):
            raise PixelsFound
        classes = classes_of(self.target, output, len(images), self.said)
        if self.names and classes is not None:
            check_named(self.names, columns(output, len(images), self.said).shape[1])
        return classes

    def forward(self, images: Tensor, numbers: Tensor | None = None) -> Tensor:
        """What Captum chooses its target from: `b k`, or `b` where there is nothing to choose."""
        output = self.answer(images.to(self.inputs.images.dtype), numbers)  # Captum's noise is always float32
        if callable(self.target) or self.classes is None:
            output = figures(output, self.target, None, len(images))
        else:
            output = columns(output, len(images), self.said)
        return self.differentiable(output) if torch.is_grad_enabled() and images.requires_grad else output

    def kind(self, rows: int) -> Kind:
        """What the scores are: as said, or judged by those of all images, so many rows at once."""
        images, parts = self.inputs.images, []
        with torch.no_grad():
            for part in chunks(len(images), rows):
                numbers = torch.arange(part.start, part.stop, device=images.device)
                parts.append(scores_of(self.answer(images[part], numbers), len(numbers)))
        ended = partial(ending, self.model, self.inputs.rows(slice(1)))
        return answer_of(torch.cat(parts), len(images), said=self.said, ended=ended, unsure="label_probabilities").kind

    @staticmethod
    def differentiable(figure: Tensor) -> Tensor:
        """`figure`, if a gradient can be taken of it."""
        if not figure.requires_grad:
            raise OptionError(
                "no gradient reaches the model's output: an argmax, a round() or no_grad() stops it; "
                "method='occlusion' and 'feature_ablation' need none."
            )
        return figure


def check_rows(internal_batch_size: int | None) -> None:
    """Raise OptionError unless it is a number of rows, or None."""
    if internal_batch_size is not None and internal_batch_size < 1:
        raise OptionError(f"internal_batch_size must be at least 1, got {internal_batch_size}.")


def rows_at_once(net: nn.Module, one: Inputs, wanted: int) -> int:
    """How many of `wanted` rows may run at once, by what autograd holds for one.

    At most half of the free memory of a GPU, or 256 MiB on a CPU.

    Args:
        net: a twin.
        one: the inputs of one image.
        wanted: rows.
    """
    return wanted if wanted <= FEW else rows_of(held(net, one), one.images.device, wanted)


def rows_of(size: float, device: torch.device, wanted: int) -> int:
    """How many of `wanted` rows may run at once, for each of which autograd holds so many bytes."""
    budget = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _CPU_BUDGET
    return max(1, min(wanted, int(budget // max(1, size))))


def held(net: nn.Module, one: Inputs) -> int:
    """How many bytes autograd holds for one row, by a forward."""
    sizes: dict[int, int] = {}
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    image = one.images.detach().clone().requires_grad_()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, _same):
        output: Any = run(net, one.at(image, slice(None)))
    del output
    return sum(sizes.values())


def _same(tensor: Tensor) -> Tensor:
    return tensor


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size`, from 0 to `n`.

    Example:
        >>> [(part.start, part.stop) for part in chunks(5, 2)]
        [(0, 2), (2, 4), (4, 5)]
    """
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
