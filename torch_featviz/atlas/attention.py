"""Who attends to whom: the attention of each token, head by head, as the page is given it."""

from __future__ import annotations

from typing import Any

from torch import nn

from torch_featviz.errors import LayerError
from torch_featviz.inspect.attention import Attended, Attending, NoAttention
from torch_featviz.inspect.layer import Layer
from torch_featviz.model.inputs import Inputs
from torch_featviz.views.attention_tiles import without

from .layers import MODEL
from .pack import Blobs, exponent_of

_BYTES = 2  # of a weight
_NO_SELF = "its queries are not the tokens that it attends to"
_LETTERS = 4 / 3  # base64 makes of a byte


def put_attention(
    blobs: Blobs, model: nn.Module, inputs: Inputs, layers: list[Layer], letters: float
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """By layer of the page, the weights of its heads; and what was left out.

    Args:
        blobs: where they go.
        model: as it was given.
        inputs: of the page.
        layers: of the walk; weights are told at the last one of those that an attention is made of.
        letters: that the page may take for it. Of many layers as many are kept as fit, the last among them.
    """
    try:
        attending = Attending(model, inputs, None)
        selves = [name for name, tokens in attending.tokens.items() if tokens.asking]
        sizes = {each.layer: each.weights.numel() for each in attending(selves, [0])} if selves else {}
    except NoAttention:
        return {}, []
    except LayerError as error:
        return {}, [f"Attention: {error}"]
    at = {name: _shown_at(name, layers) for name in selves}
    names = [name for name in selves if at[name] is not None]
    reasons = attending.without | {name: _NO_SELF for name in attending.tokens if name not in selves}
    told = [f"Attention: {words}." for words in without(reasons)]
    costs = {name: sizes[name] * attending.tokens[name].count * _BYTES * _LETTERS for name in names}
    kept = _fitting(names, costs, letters)
    if len(kept) < len(names):
        least = min(costs.values()) / 1e6
        some = f"of {len(names)} layers {len(kept)} are on the page" if kept else f"one layer takes {least:.1f} MB"
        told.append(f"Attention of each token: {some}; give more megabytes, or fewer images.")
    found = {}
    for each in attending(kept, None, lambda weights: weights.float().cpu()) if kept else ():
        found[at[each.layer] or MODEL] = _layer(blobs, each)
    return found, told


def _shown_at(name: str, layers: list[Layer]) -> str | None:
    """The layer of the page that shows this attention: itself, or the last one in it, or else what it is in."""
    names = [layer.name for layer in layers]
    if name in names:
        return name
    inner = [other for other in names if other.startswith(f"{name.partition('#')[0]}.")]
    return inner[-1] if inner else None


def _fitting(names: list[str], costs: dict[str, float], letters: float) -> list[str]:
    """As many layers as fit, spread over all, the last among them."""
    for count in range(len(names), 0, -1):
        kept = [names[len(names) - 1 - i * len(names) // count] for i in range(count)][::-1]
        if sum(costs[name] for name in kept) <= letters:
            return kept
    return []


def _layer(blobs: Blobs, found: Attended) -> dict[str, Any]:
    """The weights of each image, `heads queries keys`."""
    tokens, weights = found.tokens, found.weights
    exponent = exponent_of(weights)
    return {
        "of": found.layer,
        "heads": weights.shape[1],
        "tokens": tokens.count,
        "rows": tokens.layout.grid[0],
        "columns": tokens.layout.grid[1],
        "before": [tokens.name(number) for number in range(tokens.layout.prefix)],
        "after": tokens.layout.suffix,
        "exponent": exponent,
        "blobs": [blobs.numbers(image, exponent) for image in weights],
    }
