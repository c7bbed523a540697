"""Attention weights over the image: heads by layers, and rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.explain.rollout import rollout as rolled
from torch_featviz.gate import gate
from torch_featviz.inspect.attention import Attended, Attending, Tokens
from torch_featviz.model.inputs import Inputs, as_batch
from torch_featviz.model.layers import Layers
from torch_featviz.picture import Picture, Scale
from torch_featviz.picture.images import ValueRange, clipped, unit_images
from torch_featviz.zoo import ModelCard

from .attention_tiles import ALL, ROLLOUT, Row, sheet, without

Query: TypeAlias = int | tuple[int, int]
_ROWS, _HEADS = 24, 32  # of a sheet, at most
_ROLLOUT = (
    "attention rollout: mean over heads, plus the identity, rows to 1, product over {} layers; "
    "it knows neither the values that the weights multiply, nor the class"
)
_READ = "last come the weights of {}, whose one query is no token of the image and has no identity"


@gate("queries")
def attention(
    model: nn.Module,
    images: Tensor,
    layers: Layers = None,
    *,
    queries: Query | Sequence[Query] | None = None,
    rollout: bool = False,
    per: Literal["head", "sheet"] = "head",
    scale: Scale | None = None,
    value_range: ValueRange | None = None,
    card: ModelCard | None = None,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    title: str = "",
) -> Picture:
    """Draw what a token attends to, over the image: a tile for each head, a row for each layer.

    By default that is the class token; in a network without one, the mean over all tokens. The colour of a place is
    the weight that the token gives to it. Tokens without a place (class token, registers) cannot be drawn over the
    image: their share of the weights stands below each tile.

    Args:
        model: any module with attention; it is unchanged. A copy of it runs.
        images: `b c h w`, or one image `c h w`, as the model takes them, with one or three channels.
        layers: layers with attention, or layers that contain some: names, globs or types, as for `capture`. Default:
            all, or of many as many as a sheet shows.
        queries: the tokens whose attention is drawn: a place as `(row, column)` on the grid of tokens, the number of
            a token, or a list of these. A place is outlined. Default: the class token, or the mean over all tokens.
        rollout: draw one map per image instead: the attention of all `layers` multiplied (Abnar & Zuidema 2020).
        per: `"head"`: one scale per tile, whose highest value stands below it; `"sheet"`: one scale for all.
        scale: how weights become colours, instead of `per`; for instance `Scale(vmin=0, vmax=0.02)`.
        value_range: range of the values of images: `"unit"` (0 to 1), `"signed"` (-1 to 1), `"byte"` (0 to 255),
            `"imagenet"` or `{"mean": ..., "std": ...}` (normalised), or a function that maps them to 0 to 1. Default:
            the range of the card, or `"unit"`.
        card: card of the model, if the images are preprocessed for it.
        additional_forward_args: further positional arguments of `forward`, one value or a tuple.
        keywords: keyword arguments of `forward`.
        title: heading of the picture.
    Raises:
        LayerError: no such layer, it has no attention or none that can be shown, or in no layer of a rollout do tokens
            attend to each other.
        ShapeError: images have other axes, there are too many, or layers of a rollout have other tokens.
        OptionError: there is no such token, `per` is invalid or given with a scale, or the scale is symmetric.
        DtypeError, DeviceError: the model cannot be copied, or does not accept the images.
    Example:
        >>> from torchvision.models import VisionTransformer
        >>> net = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=8)
        >>> attention(net, torch.rand(3, 32, 32), "encoder.layers.encoder_layer_1").labels
        ('image', 'head 0', 'head 1')

    Reference: Vaswani et al. 2017; Dosovitskiy et al. 2021.
    """
    images = as_batch(images)
    if scale is not None and (per != "head" or scale.symmetric):
        what = "per='sheet' and a scale" if per != "head" else "Scale(symmetric=True)"
        raise OptionError(f"weights of attention are never below 0; pass per, or a scale from 0 up, got {what}.")
    attending = Attending(model, Inputs.of(images, additional_forward_args, keywords), layers)
    names = list(attending.tokens)
    asked = _asked(queries, attending.tokens)
    room = _ROWS // (len(images) * len(asked))
    if not room:
        raise ShapeError(
            f"{len(images)} images × {len(asked)} tokens are too many, a sheet shows {_ROWS} rows; pass fewer."
        )
    notes = list[str]()
    if rollout:
        rolled_out, asked, notes = _rolled(attending, names, asked)
        found = [rolled_out]
    else:
        shown = _thinned(names, room)
        if len(shown) < len(names):
            notes.append(f"{len(shown)} of {len(names)} layers; layers=[...] chooses others")
        found = _weights(attending, shown, asked)
        most = max(each.weights.shape[1] for each in found)
        if most > _HEADS:
            notes.append(f"the first {_HEADS} of {most} heads")
    rows = [
        Row(i, each.layer, token.label, token.place, each.tokens, each.weights[i, :_HEADS, k])
        for i in range(len(images))
        for k, token in enumerate(asked)
        for each in found
    ]
    what = asked[0].label if len(asked) == 1 else f"{len(asked)} tokens"
    where = f" in {found[0].layer or type(model).__name__}" if len(found) == 1 and not rollout else ""
    heading = f"{'Attention rollout' if rollout else 'Attention'} of {what}{where}"
    fitted = Scale(vmin=0, per="kernel" if per == "head" else "layer") if scale is None else scale
    notes += without(attending.without)
    units = unit_images(images, value_range, card)
    counts, hints = clipped(units, value_range, card)
    return sheet(rows, units, fitted, title=title or heading, counts=counts, notes=(*notes, *hints))


class _Token(NamedTuple):
    """Whose attention is drawn: None is the mean over all."""

    number: int | None
    label: str
    place: tuple[int, int] | None


_ALL = _Token(None, ALL, None)


def _asked(queries: Any, tokens: Mapping[str, Tokens]) -> list[_Token]:
    """The tokens whose attention is drawn."""
    known = list(tokens.values())
    if queries is None:
        return [_Token(0, f"the {known[0].name(0)}", None)] if known[0].has_class else [_ALL]
    listed = queries if isinstance(queries, list) else [queries]
    if not listed:
        raise OptionError("queries is empty; give a place (row, column) or a token's number, or leave it out.")
    if any(each.layout != known[0].layout for each in known):
        raise OptionError(
            "queries name tokens of one grid, but these layers have several "
            f"({', '.join(sorted({_by(each.layout.grid) for each in known}))}); choose layers of one grid."
        )
    if any(each.asking != known[0].asking for each in known):
        learned = [name for name, each in tokens.items() if not each.asking]
        named = ", ".join(map(repr, learned[:4]))
        raise OptionError(f"queries name tokens of the image, but {named} has queries of its own; leave it out.")
    return [_token(query, known[0]) for query in listed]


def _token(query: Any, tokens: Tokens) -> _Token:
    rows, columns = tokens.layout.grid
    number = query
    if isinstance(query, tuple) and len(query) == 2 and all(isinstance(at, int) for at in query):
        if not tokens.asking:
            raise OptionError(f"the queries of these layers have no place on the image; give a number, not {query}.")
        if not (0 <= query[0] < rows and 0 <= query[1] < columns):
            raise OptionError(f"there is no place {query}: the grid has {rows} rows and {columns} columns.")
        number = tokens.layout.prefix + query[0] * columns + query[1]
    if not isinstance(number, int) or isinstance(number, bool):
        raise OptionError(f"a query is a place (row, column) or the number of a token, got {query!r}.")
    if number < 0 or (tokens.asking and number >= tokens.count):
        raise OptionError(f"there is no token {number}: there are {tokens.count}, from 0.")
    if not tokens.asking:
        return _Token(number, f"query {number}", None)
    return _Token(number, tokens.name(number), tokens.place(number))


def _by(grid: Sequence[int]) -> str:
    return " × ".join(map(str, grid))


def _thinned(names: list[str], room: int) -> list[str]:
    """As many as there is room for, the first and the last among them."""
    count = min(room, len(names))
    if count == 1:
        return names[-1:]
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]


def _weights(attending: Attending, names: list[str], asked: list[_Token]) -> list[Attended]:
    """Of each layer `b heads queries keys`."""
    numbers = [token.number for token in asked if token.number is not None]
    if numbers:
        return attending(names, numbers)
    return attending(names, None, lambda weights: weights.float().mean(2, keepdim=True))


def _rolled(attending: Attending, names: list[str], asked: list[_Token]) -> tuple[Attended, list[_Token], list[str]]:
    """The same of the product over layers, as one head; whose it is; and in words, of which layers.

    A last layer with a query of its own reads the tokens out: its row is that of the answer. A class token that is
    among its keys has a part in itself besides, of which its weights say nothing, so that such a layer is left out, as
    are all others in which the tokens do not attend to each other.
    """
    every = attending(names, None, lambda weights: weights.float().mean(1))
    square = [each for each in every if each.weights.shape[1] == each.weights.shape[2]]
    if not square:
        rest = ", ".join(f"{each.layer} has {each.weights.shape[1]} for {each.weights.shape[2]}" for each in every[:4])
        lacking = "".join(f"; {words}" for words in without(attending.without))
        raise LayerError(f"rollout needs layers with as many queries as keys: {rest}{lacking}.")
    product = rolled([each.weights for each in square])
    notes, last = [_ROLLOUT.format(len(square))], every[-1]
    left = [name for name in names if name not in {each.layer for each in square}]
    reads = last.layer in left and last.weights.shape[1:] == (1, product.shape[2]) and not last.tokens.has_class
    if reads and asked == [_ALL]:
        left.remove(last.layer)
        notes.append(_READ.format(last.layer or "the model itself"))
        asked, rows = [_Token(None, f"the query of {last.layer}", None)], [(last.weights @ product)[:, 0]]
    else:
        rows = [product.mean(1) if token.number is None else product[:, token.number] for token in asked]
    notes += without(dict.fromkeys(left, "its queries are not the tokens that it attends to"))
    return Attended(ROLLOUT, torch.stack(rows, 1)[:, None], square[-1].tokens), asked, notes
