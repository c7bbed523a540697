"""What a model is called with: images first, then whatever else its `forward` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.gate import check_dense, made_by
from torch_featviz.torch_private import NORMS, Convolution

from .values import map_tensors, tensors

_NUMEL = 2**28  # values of an input that is made here: a gigabyte of them


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of one call of a model.

    Args:
        images: `b ...`, the first positional argument, or the keyword `name`.
        args: further positional arguments.
        keywords: arguments by name.
        name: the keyword that `images` is given as; empty where it is positional.

    A tensor among `args` and `keywords`, at any depth, whose first axis is as long as that of `images` holds a row for
    each image; all else belongs to the batch as a whole.
    """

    images: Tensor
    args: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    rowwise: tuple[bool, ...] = field(default=(), repr=False)  # for each further tensor, in order

    def __post_init__(self) -> None:
        if self.more and not self.rowwise:  # told once, for all images: a part may be as long as another tensor
            more, count = tensors((self.args, dict(self.keywords))), len(self.images) if self.images.dim() else None
            object.__setattr__(
                self, "rowwise", tuple(not t.is_nested and t.dim() > 0 and len(t) == count for t in more)
            )

    @classmethod
    def of(
        cls, images: Tensor, additional_forward_args: Any = None, keywords: Mapping[str, Any] | None = None
    ) -> Inputs:
        """From arguments as users give them: Captum's `additional_forward_args` is one value or a tuple of them."""
        more = additional_forward_args
        args = more if isinstance(more, tuple) else () if more is None else (more,)
        return cls(images, args, dict(keywords or {}))

    @classmethod
    def of_batch(cls, batch: Any) -> Inputs:
        """From a batch: images, a tuple of positional arguments, or a mapping of keywords; images come first.

        Raises:
            DtypeError: the first of them is no tensor.
        """
        name, images, more, keywords = "", batch, (), {}
        if isinstance(batch, Mapping) and batch:
            name, images = next(iter(batch.items()))
            keywords = {key: value for key, value in batch.items() if key != name}
        elif isinstance(batch, (tuple, list)) and batch:
            images, *rest = batch
            more = tuple(rest)
        if not isinstance(images, Tensor):
            got = type(images).__name__
            raise DtypeError(f"inputs are a tensor 'b ...', or a tuple or mapping that begins with one; got {got}.")
        return cls(images, more, keywords, name)

    @property
    def positional(self) -> tuple[Any, ...]:
        """All positional arguments."""
        return self.args if self.name else (self.images, *self.args)

    @property
    def named(self) -> dict[str, Any]:
        """All keyword arguments."""
        return {self.name: self.images, **self.keywords} if self.name else dict(self.keywords)

    @property
    def more(self) -> bool:
        """Whether there are others besides the images."""
        return bool(self.args or self.keywords)

    @property
    def by_row(self) -> bool:
        """Whether anything besides the images has a row for each of them."""
        return any(self.rowwise)

    def rows(self, which: Tensor | slice) -> Inputs:
        """The arguments for some of the images, by their numbers."""
        return self.at(self.images[which], which)

    def at(self, images: Tensor, which: Tensor | slice) -> Inputs:
        """The arguments for `images`, made of those that have these numbers."""
        return self._mapped(images, lambda tensor, rowwise: _rows(tensor, which) if rowwise else tensor)

    def with_images(self, images: Tensor) -> Inputs:
        """The same arguments around other images, as many as before."""
        return replace(self, images=images)

    def copied(self) -> Inputs:
        """Detached copies, which a model may write to; outside inference mode they are no inference tensors."""
        return self._mapped(self.images.detach().clone(), lambda tensor, _: tensor.detach().clone())

    def _mapped(self, images: Tensor, change: Callable[[Tensor, bool], Tensor]) -> Inputs:
        if not self.more:
            return replace(self, images=images)
        rowwise = iter(self.rowwise)
        args, keywords = map_tensors(lambda tensor: change(tensor, next(rowwise)), (self.args, dict(self.keywords)))
        return replace(self, images=images, args=args, keywords=keywords)


def _rows(tensor: Tensor, which: Tensor | slice) -> Tensor:
    """Some rows of it; of a sparse tensor in its layout."""
    if tensor.layout is torch.strided:
        return tensor[which]
    numbers = torch.arange(len(tensor), device=tensor.device)[which]
    coordinates: Tensor = tensor.to_sparse_coo()  # type: ignore[no-untyped-call]
    return coordinates.index_select(0, numbers).to_sparse(layout=tensor.layout)


def check_images(images: Any, axes: tuple[int, ...] = (4,)) -> None:
    """Raise unless `images` is a batch of floats with one of these numbers of axes.

    Raises:
        DtypeError: it is no tensor of floats.
        ShapeError: it is empty, or has another number of axes.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        what = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise DtypeError(f"images must be a tensor of floats as the model takes them, got {what}{made_by(images)}.")
    if images.dim() not in axes or not images.numel():
        expected = "'b c h w'" if axes == (4,) else "'b c h w' (or 'b c l', 'b c d h w')"
        hint = "; add a batch axis with images[None]" if images.dim() == min(axes) - 1 and images.numel() else ""
        raise ShapeError(f"images must be {expected} and not empty, got shape {tuple(images.shape)}{hint}.")


def check_numel(size: Sequence[int]) -> None:
    """Raise OptionError if an input of that size does not fit a usual memory."""
    if prod(size) > _NUMEL:
        shape = " × ".join(map(str, size))
        raise OptionError(f"an input of {shape} has {prod(size):,} values, and at most {_NUMEL:,} are tried.")


def as_batch(images: Any) -> Tensor:
    """Images `b c h w`; one image `c h w` becomes a batch of one.

    Raises:
        DtypeError: it is no tensor of floats.
        ShapeError: it is empty, or has another number of axes.
    Example:
        >>> as_batch(torch.zeros(3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """
    if isinstance(images, Tensor):
        check_dense("images", images)  # a model may run on the meta device
        images = images[None] if images.dim() == 3 else images
    check_images(images)
    return images  # type: ignore[no-any-return]


def batch_of(model: nn.Module, images: Any) -> Any:
    """The images; one image `c h w` becomes a batch of one where the model is known to take images `b c h w`.

    The first of its layers tells, if it is a 2-D convolution or norm of as many channels as the image has, or a linear
    layer of as many features as it has values. All other tensors `b c l` are batches of signals.

    Example:
        >>> batch_of(nn.Conv2d(3, 8, 5), torch.zeros(3, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
        >>> batch_of(nn.Conv1d(3, 8, 5), torch.zeros(4, 3, 16)).shape
        torch.Size([4, 3, 16])
    """
    if not isinstance(images, Tensor) or images.dim() != 3 or not isinstance(model, nn.Module):
        return images
    first = next((layer for layer in model.modules() if isinstance(layer, (Convolution, *NORMS, nn.Linear))), None)
    if isinstance(first, nn.Linear):
        one = images.numel() == first.in_features and tuple(images.shape[:2]) != (1, 1)
    elif isinstance(first, (nn.Conv2d, nn.ConvTranspose2d)):
        one = images.shape[0] == first.in_channels
    else:
        one = isinstance(first, (nn.BatchNorm2d, nn.InstanceNorm2d)) and images.shape[0] == first.num_features
    return images[None] if one else images


def device_of(net: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU where it has none."""
    held = next(chain(net.parameters(), net.buffers()), None)
    return torch.device("cpu") if held is None else held.device


def placement(net: nn.Module) -> dict[str, Any]:
    """Device and dtype of the model's weights, as `torch.rand` takes them; float32 on the CPU where it has none."""
    weight = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0, device="cpu"))
    return {"device": weight.device, "dtype": weight.dtype}
