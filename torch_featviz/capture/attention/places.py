"""The place on the image that each entry of a tensor belongs to, followed through one forward by its own operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torch_featviz.model.follow import Call, Follower
from torch_featviz.model.operators import is_pointwise
from torch_featviz.torch_private import is_higher_order, schema_of

PADDING, APART = -1, -2  # no place: an entry that a pad added; a token beside those of the image


@dataclass(frozen=True)
class Places:
    """`image * count + place` of each entry, in the shape of a tensor or of some of its axes; there are `count` places.

    Places are numbered as tokens are, row by row. Each layer that makes one token of several begins a new numbering.

    Args:
        copied: whether an operator on the way repeated entries: for heads that share keys, or for views of an image.
    """

    numbers: Tensor
    count: int
    copied: bool = False

    def now(self, numbers: Tensor, *, copied: bool = False) -> Places:
        """After an operator that leaves `numbers`."""
        return replace(self, numbers=numbers, copied=self.copied or copied)


# Functions of several operators, which a mode sees whole in inference mode, and takes apart
_COMPOSED = {
    getattr(torch.ops.aten, name)
    for name in ("scaled_dot_product_attention", "_scaled_dot_product_attention_math", "einsum")
}


def is_composed(function: Any) -> bool:
    """Whether a mode that is to see attention takes this function apart."""
    return getattr(function, "overloadpacket", None) in _COMPOSED


_Traced: TypeAlias = Places | None


def begin(tensor: Tensor) -> _Traced:
    """Of what a model is given: images `b c ...`, sequences `b n c`, numbers `b n`."""
    shape = tensor.shape
    if tensor.dim() < 2 or not tensor.numel() or tensor.dtype == torch.bool:  # a mask is no input of its own
        return None
    axes = (0, *range(2, len(shape))) if len(shape) > 3 else (0, 1)
    sizes = [shape[axis] for axis in axes]
    return Places(_counted(sizes, tensor.device, axes, shape), prod(sizes[1:]))


def over_channels(tensor: Tensor, places: Places | None, axis: int) -> bool:
    """Whether entries along `axis`, one of the last two, are of the same places, and those along the other are not."""
    if places is None or tensor.shape[axis] < 2:
        return False
    numbers = places.numbers
    return not _constant(numbers, -3 - axis) and _constant(numbers, axis)


def _constant(numbers: Tensor, axis: int) -> bool:
    """Whether they are the same along an axis."""
    return numbers.stride(axis) == 0 or bool((numbers == numbers.narrow(axis, 0, 1)).all())


def _counted(sizes: Sequence[int], device: torch.device, axes: Sequence[int], shape: Sequence[int]) -> Tensor:
    numbers = torch.arange(prod(sizes), device=device).reshape(sizes)
    for axis in range(len(shape)):
        if axis not in axes:
            numbers = numbers.unsqueeze(axis)
    return numbers.expand(*shape)


class PlaceTracer(Follower[_Traced]):
    """While on, follows places through views, rolls, pads and all that works token by token."""

    supports_higher_order_operators = True

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.following = False  # by operators of its own
        for tensor in tensors:
            self.put(tensor, begin(tensor))

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if is_higher_order(func):
            return func(*args, **(kwargs or {}))
        if is_composed(func):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def follow(self, call: Call[_Traced]) -> Sequence[_Traced]:
        rule = _pointwise if is_pointwise(call.function) else _RULES.get(call.name)
        rest: list[_Traced] = [None] * len(call.outputs)
        if rule is None:
            return rest
        self.following = True
        try:
            result = rule(call)
        except (LookupError, TypeError, ValueError, RuntimeError, StopIteration):  # other arguments than expected
            return rest
        finally:
            self.following = False
        found = result if isinstance(result, list) else [result]
        size = call.x.numel() if rule in _COPYING else inf
        fits = [
            places.now(places.numbers, copied=output.numel() > size)
            if places is not None and places.numbers.shape == output.shape
            else None
            for places, output in zip(found, call.outputs, strict=False)
        ]
        return fits + rest[len(fits) :]


_Rule: TypeAlias = Callable[[Call[_Traced]], "_Traced | list[_Traced]"]


def _first(call: Call[_Traced]) -> Places:
    places = call.traces[id(call.x)]
    if places is None:
        raise LookupError("nothing is known of it")
    return places


def _pointwise(call: Call[_Traced]) -> _Traced:
    """Of the first that has the shape of the output."""
    shape = call.outputs[0].shape
    several = [places for places in call.traces.values() if places is not None]
    same = [places for places in several if places.numbers.shape == shape]
    return same[0] if same else several[0].now(several[0].numbers.expand(shape))


def _same(call: Call[_Traced]) -> _Traced:
    return _first(call)


def _viewed(call: Call[_Traced]) -> _Traced:
    places = _first(call)
    return places.now(places.numbers.reshape(call.outputs[0].shape))


def _expanded(call: Call[_Traced]) -> _Traced:
    places = _first(call)
    output = call.outputs[0]
    if places.numbers.dim() < output.dim() or len(places.numbers) < len(output):
        return None  # copies of images
    return places.now(places.numbers.expand(output.shape))


def _repeated(call: Call[_Traced]) -> _Traced | list[_Traced]:
    copies = call["repeats"][0] > 1 if call.name == "repeat" else _is_copying(call["index"], call["dim"])
    return None if copies else _moved(call)


def _is_copying(index: Tensor, axis: int) -> bool:
    return axis == 0 and len(torch.unique(index)) < len(index)


def _moved(call: Call[_Traced]) -> list[_Traced]:
    """The network's own operator moves the numbers."""
    places = _first(call)
    x = call.x
    given = {name: places.numbers if value is x else value for name, value in call.given.items()}
    moved: Any = _called(call.function, given)
    return [places.now(part) for part in (moved if isinstance(moved, (list, tuple)) else [moved])]


def _called(function: Any, given: dict[str, Any]) -> Any:
    positional = [a.name for a in schema_of(function).arguments if not a.kwarg_only]
    return function(*[given[name] for name in positional], **{k: v for k, v in given.items() if k not in positional})


def _padded(call: Call[_Traced]) -> _Traced:
    places = _first(call)
    if call.given.get("mode", "constant") != "constant":
        return None
    return places.now(torch.constant_pad_nd(places.numbers, call["pad"], PADDING))


def _cat(call: Call[_Traced]) -> _Traced:
    several = [call.traces.get(id(tensor)) for tensor in call["tensors"]]
    most = max((places for places in several if places is not None), key=lambda places: places.count)
    count = most.count
    device = call.outputs[0].device
    numbers = [
        torch.full(tensor.shape, APART, device=device) if places is None or places.count != count else places.numbers
        for tensor, places in zip(call["tensors"], several, strict=True)
    ]
    joined = torch.cat(numbers, call["dim"])
    if call["dim"] % joined.dim() == 0 and _is_joining(numbers):
        return None
    return most.now(joined, copied=any(places is not None and places.copied for places in several))


def _is_joining(numbers: Sequence[Tensor]) -> bool:
    """Whether several tensors have the same places of the same images: views of them."""
    own = torch.cat([torch.unique(each[each >= 0]) for each in numbers])
    return len(torch.unique(own)) < len(own)


def _looked_up(call: Call[_Traced]) -> _Traced:
    places = call.traces[id(call["indices"])]
    if places is None:
        return None
    return places.now(places.numbers.unsqueeze(-1).expand(call.outputs[0].shape))


def _rowwise(x: Tensor, call: Call[_Traced]) -> _Traced:
    """Each row by itself: a token stays where it is; a row of several tokens is a new one."""
    places = call.traces.get(id(x))
    if places is None:
        return None
    numbers, shape = places.numbers, call.outputs[0].shape
    if _constant(numbers, -1):
        return places.now(numbers[..., :1].expand(shape))
    return _new(places, shape, tuple(range(len(shape) - 1)))


def _weighed(call: Call[_Traced]) -> _Traced:
    return _rowwise(call["mat1"] if "mat1" in call.given else call.x, call)


def _multiplied(call: Call[_Traced]) -> _Traced:
    """Rows of the left one, where each is of one token."""
    if call.name == "matmul" and call["other"].dim() == 2:
        return _rowwise(call["self"], call)
    left = call["batch1"] if "batch1" in call.given else call.x
    places = call.traces.get(id(left))
    if places is None:
        return None
    numbers = places.numbers
    if not _constant(numbers, -1):
        return None
    return places.now(numbers[..., :1].expand(call.outputs[0].shape))


def _remade(call: Call[_Traced]) -> _Traced:
    """Maps `b c ...` of which each place is made of several."""
    places, shape = _first(call), call.outputs[0].shape
    return _new(places, shape, (0, *range(2, len(shape))))


def _new(places: Places, shape: Sequence[int], axes: Sequence[int]) -> _Traced:
    """A new numbering of the rows along `axes`, of which each is of one image; the images in their order."""
    first = places.numbers.movedim(axes[0], 0)
    while first.dim() > 1:
        first = first.select(-1, 0)
    image = torch.div(first, places.count, rounding_mode="floor")
    sizes = [shape[axis] for axis in axes]
    if len(axes) == 1 or len(image) != len(torch.unique(image)):  # rows of tokens laid end to end
        if len(axes) > 1:
            return None
        images = len(torch.unique(image))
        if bool((first < 0).any()) or sizes[0] % images or not bool((image == image.sort().values).all()):
            return None
        return Places(_counted(sizes, first.device, axes, shape), sizes[0] // images, places.copied)
    if not bool((image == torch.arange(len(image), device=image.device)).all()):
        return None
    return Places(_counted(sizes, first.device, axes, shape), prod(sizes[1:]), places.copied)


def _each(rule: _Rule, names: str) -> dict[str, _Rule]:
    return dict.fromkeys(names.split(), rule)


_RULES: dict[str, _Rule] = {
    **_each(_same, "clone contiguous alias detach lift_fresh _to_copy to native_dropout dropout _softmax softmax"),
    **_each(
        _same, "_safe_softmax _log_softmax native_layer_norm layer_norm _fused_rms_norm native_group_norm group_norm"
    ),
    **_each(_same, "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training batch_norm"),
    **_each(_same, "cudnn_batch_norm _batch_norm_with_update _batch_norm_no_update instance_norm cumsum"),
    **_each(_viewed, "view _unsafe_view reshape _reshape_alias flatten unflatten"),
    **_each(_expanded, "expand expand_as"),
    **_each(_moved, "permute transpose t squeeze unsqueeze slice select split split_with_sizes unbind chunk"),
    **_each(_moved, "swapaxes swapdims movedim narrow mT"),
    **_each(_moved, "roll flip index"),
    **_each(_repeated, "index_select repeat"),
    **_each(_padded, "constant_pad_nd pad"),
    **_each(_cat, "cat"),
    **_each(_looked_up, "embedding"),
    **_each(_weighed, "mm addmm linear _native_multi_head_attention _transformer_encoder_layer_fwd"),
    **_each(_multiplied, "bmm baddbmm matmul"),
    **_each(_remade, "convolution _convolution conv1d conv2d conv3d avg_pool1d avg_pool2d max_pool2d max_pool1d"),
    **_each(_remade, "max_pool2d_with_indices _adaptive_avg_pool2d adaptive_avg_pool2d upsample_nearest2d"),
    **_each(_remade, "upsample_bilinear2d upsample_bicubic2d pixel_shuffle pixel_unshuffle im2col"),
}
_COPYING = (_expanded, _repeated, _moved)
