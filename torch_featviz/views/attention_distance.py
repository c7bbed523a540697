"""How far each attention head looks, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torch_featviz.errors import LayerError
from torch_featviz.explain.rollout import distance_table, distances
from torch_featviz.gate import gated
from torch_featviz.inspect.attention import Attended, Attending, Tokens
from torch_featviz.model.inputs import Inputs, as_batch
from torch_featviz.model.layers import Layers
from torch_featviz.model.layout import Layout
from torch_featviz.picture import Chart
from torch_featviz.picture.bounds import listed
from torch_featviz.picture.figures import as_written, fit

from .attention_tiles import without

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABELS = 48  # names of layers, at most
_LETTERS = 15  # of a note, in an inch
_POINT, _EVEN = "#1f5fa8", "0.55"


@dataclass(frozen=True, eq=False, repr=False)
class AttentionDistance(Chart):
    """The result of `attention_distance`: a picture, and its figures.

    Args:
        chart: a point for each head of each layer.
        distances: the mean distance of each head in pixels of the image, by layer; NaN if it attends to no place.
        even: by layer, the same of attention that is even over all places.
        title: heading of the picture.
    """

    distances: Mapping[str, Tensor]
    even: Mapping[str, float]
    title: str = ""


@gated
def attention_distance(
    model: nn.Module,
    images: Tensor,
    layers: Layers = None,
    *,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    title: str = "",
) -> AttentionDistance:
    """Plot how far each head looks: the mean distance, in pixels, between a place and those it attends to.

    Heads with a small distance look at what is near, as convolutions do; heads near the grey line look at the whole
    image. Distances are averaged over all places and images, weighted by attention. Tokens without a place (class
    token, registers) are left out.

    Args:
        model: any module with attention; it is unchanged. A copy of it runs.
        images: `b c h w`, or one image `c h w`, as the model takes them; more images give steadier figures.
        layers: layers with attention, or layers that contain some, as for `capture`. Default: all.
        additional_forward_args: further positional arguments of `forward`, one value or a tuple.
        keywords: keyword arguments of `forward`.
        title: heading of the picture.
    Returns:
        A picture with `distances`, a tensor `heads` by layer.
    Raises:
        LayerError: no such layer, it has no attention among places, it is unknown where its tokens are on the image,
            or its weights are NaN.
        ShapeError: images have other axes.
        DtypeError, DeviceError, OptionError: the model cannot be copied, or does not accept the images.
    Example:
        >>> from torchvision.models import VisionTransformer
        >>> net = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=12, mlp_dim=8)
        >>> found = attention_distance(net, torch.rand(2, 3, 32, 32))
        >>> [(name, heads.shape) for name, heads in found.distances.items()][0]
        ('encoder.layers.encoder_layer_0.self_attention', torch.Size([3]))

    Reference: Dosovitskiy et al. 2021, fig. 11; Raghu et al. 2021.
    """
    images = as_batch(images)
    size = (images.shape[2], images.shape[3])
    attending = Attending(model, Inputs.of(images, additional_forward_args, keywords), layers)
    found = dict[str, Tensor]()
    selves = {name: tokens for name, tokens in attending.tokens.items() if tokens.asking}
    if not selves:
        raise LayerError(f"no place attends to places in {', '.join(attending.tokens)}; choose self-attention.")
    for tokens, names in groupby(selves, selves.__getitem__):
        keep = partial(_of_heads, layout=tokens.layout, size=size)
        found |= {each.layer: _checked(each) for each in attending([*names], None, keep)}
    even = {name: _even(tokens, size) for name, tokens in selves.items()}
    left = [name for name in attending.tokens if name not in selves]
    notes = [
        f"mean over {len(images)} image{'s' * (len(images) > 1)} of {size[0]} × {size[1]} pixels; "
        "tokens without a place are left out",
        *([f"without layers in which no place attends to places: {listed(left, 4)}"] if left else []),
        *without(attending.without),
    ]
    title = title or "How far each attention head looks"
    return AttentionDistance(_drawn(found, even, title, notes), found, even, title)


def _of_heads(weights: Tensor, layout: Layout, size: tuple[int, int]) -> Tensor:
    """The distance of each head, and 1 where it has weights that are not a number: `2 heads`."""
    return torch.stack([distances(weights, layout, size), weights.isnan().flatten(2).any(2).any(0).double()])


def _checked(found: Attended) -> Tensor:
    apart: Tensor
    apart, not_numbers = found.weights.cpu()
    if not_numbers.any():
        heads = listed([str(head) for head in not_numbers.nonzero().flatten().tolist()], 4)
        raise LayerError(
            f"the attention of {found.layer or 'the model'!r} has weights that are NaN, in head {heads}, so that no "
            "distance can be told; first_nonfinite(model, images) names the layer that made the first."
        )
    return apart


def _even(tokens: Tokens, size: tuple[int, int]) -> float:
    """The mean distance between any two places."""
    return float(distance_table(tokens.layout.grid, size).mean())


def _differing(names: list[str]) -> tuple[list[str], str]:
    """The parts in which names of layers differ, and what they have in common.

    Example:
        >>> _differing(["blocks.0.attn", "blocks.1.attn"]), _differing(["a", "b.c"]), _differing(["a"])
        ((['0', '1'], 'blocks.*.attn'), (['a', 'b.c'], 'layer'), (['a'], 'layer'))
    """
    parts = [name.split(".") for name in names]
    if len({len(each) for each in parts}) > 1 or len(names) == 1:
        return names, "layer"
    same = [len(set(column)) == 1 for column in zip(*parts, strict=True)]
    labels = [".".join(word for word, alike in zip(each, same, strict=True) if not alike) for each in parts]
    return labels, ".".join(word if alike else "*" for word, alike in zip(parts[0], same, strict=True))


def _drawn(found: Mapping[str, Tensor], even: Mapping[str, float], title: str, notes: list[str]) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415  no matplotlib on import

    count = len(found)
    width = min(12.0, max(5.0, 2.5 + 0.4 * count))
    lines = [line for note in notes for line in wrap(note, int(_LETTERS * width))]
    figure = Figure(figsize=(width, 4.8 + 0.13 * max(0, len(lines) - 2)), dpi=110)
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    figure.supxlabel("\n".join(lines), fontsize=8)
    axes = figure.add_subplot()
    for i, (name, heads) in enumerate(found.items()):
        axes.hlines(even[name], i - 0.4, i + 0.4, color=_EVEN, label="even over the image" if not i else "")
        axes.scatter([i] * len(heads), heads, s=22, color=_POINT, alpha=0.7, lw=0, label="" if i else "a head")
    shown = range(0, count, -(-count // _LABELS))
    labels, pattern = _differing([*found])
    axes.set_xticks(list(shown), [fit(name, 150, 11) for name in labels[:: shown.step]], rotation=90, fontsize=8)
    axes.set_xlabel(fit(pattern, 400, 12))
    axes.set_xlim(-0.6, count - 0.4)
    tops = [top for heads in found.values() for top in heads.tolist() if top == top]  # noqa: PLR0124  NaN is not itself
    axes.set_ylim(0, 1.1 * max([*tops, *even.values()]))
    axes.set_ylabel("mean attention distance (pixels)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, frameon=False)
    return as_written(figure)
