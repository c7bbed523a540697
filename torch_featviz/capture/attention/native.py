"""The fused operators of torch.nn's attention: weights from what is projected, proven by the whole operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .groups import Selection
from .rows import claim, distance


@dataclass(frozen=True)
class Projected:
    """An attention between projections of sequences, all heads in one matrix.

    Args:
        query: `n q channels`; `key` and `value` are `n k channels`.
        weight: `3·channels channels`, of queries, keys and values; `bias` as well.
        mask: added to the scores, broadcast to `n heads q k`; None if there is none.
        output: what the operator returned.
        finish: makes rows of that of the heads' outputs and of those rows of `query`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    heads: int
    weight: Tensor
    bias: Tensor
    mask: Tensor | None
    output: Tensor
    finish: Callable[[Tensor, Tensor], Tensor]
    residual: Tensor | None = field(default=None)

    @torch.no_grad()
    def attended(self, selection: Selection) -> tuple[Tensor, Tensor]:
        """As `rows.attended`.

        The bound is what rounding does here, and no worst case, which would say nothing after three matrix products:
        all is computed twice, with sums taken in another order; 32 times the largest difference between the two is
        allowed for, and some units in the last place.
        """
        weights, made = self._rows(selection, parts=1)
        _, other = self._rows(selection, parts=2)
        output = selection.rows(self.output.unsqueeze(1)).squeeze(1).to(made.dtype)
        unit = torch.finfo(self.output.dtype).eps
        spread = (made - other).abs().nan_to_num(0.0).max()
        size = torch.maximum(output.abs(), other.abs()).nan_to_num(0.0).max()
        return weights, claim(distance(made, output), 32 * spread + 8 * unit * size)

    def _rows(self, selection: Selection, *, parts: int) -> tuple[Tensor, Tensor]:
        """The weights, and the operator's output in those rows; sums over channels in so many parts."""
        exact = torch.float64 if self.query.dtype == torch.float64 else torch.float32
        channels = self.weight.shape[1]
        per_head = channels // self.heads
        weights_of, biases = self.weight.to(exact).chunk(3), self.bias.to(exact).chunk(3)
        x = selection.rows(self.query.unsqueeze(1)).squeeze(1).to(exact)
        key, value = (selection.groups(part.unsqueeze(1)).squeeze(1).to(exact) for part in (self.key, self.value))
        query = _product(x, weights_of[0].T, parts) + biases[0]
        query = query.unflatten(-1, (self.heads, per_head)).transpose(1, 2) * (1 / sqrt(per_head))
        few = x.shape[1] * self.heads <= channels
        if few:  # keys are not projected: q (W x + b) is (q W) x + q b
            heads = weights_of[1].reshape(self.heads, per_head, channels)
            scores = _product(query @ heads, key.unsqueeze(1).mT, parts)
            scores = scores + (query @ biases[1].reshape(self.heads, per_head, 1))
        else:
            keys = _product(key, weights_of[1].T, parts) + biases[1]
            scores = query @ keys.unflatten(-1, (self.heads, per_head)).permute(0, 2, 3, 1)
        if self.mask is not None:
            shape = len(self.query), self.heads, self.query.shape[1], key.shape[1]
            scores = scores + selection.rows(self.mask.expand(shape))
        weights = torch.softmax(scores, dim=-1)
        if few:
            heads = weights_of[2].reshape(self.heads, per_head, channels)
            made = _product(weights @ value.unsqueeze(1), heads.mT, parts) + biases[2].reshape(self.heads, 1, per_head)
        else:
            values = _product(value, weights_of[2].T, parts) + biases[2]
            made = weights @ values.unflatten(-1, (self.heads, per_head)).transpose(1, 2)
        made = self.finish(
            made.transpose(1, 2).flatten(2), x if self.residual is None else self._residual(selection).to(exact)
        )
        return weights, made

    def _residual(self, selection: Selection) -> Tensor:
        assert self.residual is not None, "it is of an encoder layer"
        return selection.rows(self.residual.unsqueeze(1)).squeeze(1)


def _product(left: Tensor, right: Tensor, parts: int) -> Tensor:
    """`left @ right`, summed in so many parts."""
    if parts == 1:
        return left @ right
    half = left.shape[-1] // parts
    return left[..., half:] @ right[..., half:, :] + left[..., :half] @ right[..., :half, :]


def in_module(given: dict[str, Any], output: Tensor) -> Projected:
    """`_native_multi_head_attention`: the fast path of nn.MultiheadAttention."""
    out, bias = given["proj_weight"], given["proj_bias"]
    return Projected(
        given["query"],
        given["key"],
        given["value"],
        given["num_head"],
        given["qkv_weight"],
        given["qkv_bias"],
        _mask(given["mask"], given["mask_type"]),
        output,
        lambda made, _x: F.linear(made, out.to(made.dtype), bias.to(made.dtype)),
    )


def in_encoder_layer(given: dict[str, Any], output: Tensor) -> Projected:
    """`_transformer_encoder_layer_fwd`: the fast path of nn.TransformerEncoderLayer, attention and all the rest."""
    first, eps = given["norm_first"], given["eps"]
    activation = F.gelu if given["use_gelu"] else F.relu

    def norm(x: Tensor, number: int) -> Tensor:
        weight, bias = given[f"norm_weight_{number}"], given[f"norm_bias_{number}"]
        return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)

    def linear(x: Tensor, name: tuple[str, str]) -> Tensor:
        return F.linear(x, given[f"{name[0]}weight{name[1]}"].to(x.dtype), given[f"{name[0]}bias{name[1]}"].to(x.dtype))

    def finish(made: Tensor, x: Tensor) -> Tensor:
        x = x + linear(made, ("proj_", ""))
        x = x if first else norm(x, 1)
        inner = activation(linear(norm(x, 2) if first else x, ("ffn_", "_1")))
        x = x + linear(inner, ("ffn_", "_2"))
        return x if first else norm(x, 2)

    src = given["src"]
    x = norm(src, 1) if first else src
    mask = _mask(given["mask"], given["mask_type"])
    weight, bias = given["qkv_weight"], given["qkv_bias"]
    return Projected(x, x, x, given["num_heads"], weight, bias, mask, output, finish, residual=src)


def _mask(mask: Tensor | None, kind: int | None) -> Tensor | None:
    """As `n heads q k`: 0 is `q k`, 1 is `n k`, 2 is all of them."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_fill_(mask, -torch.inf)
    return mask[:, None, None, :] if kind == 1 else mask
