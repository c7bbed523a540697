"""The fused operators of torch.nn's attention: weights from what is projected, proven by the whole operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, relu

from .groups import Selection
from .rows import claim, distance, softmaxed

_SAMPLE = 4  # rows that are computed twice


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class _Rows(NamedTuple):
    """What some rows are computed from; see `Projected`."""

    query: Tensor
    residual: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Projected:
    """An attention between projections of sequences, all heads in one matrix.

    Args:
        query: `n q channels`; `key` and `value` are `n k channels`.
        weight: `3·channels channels`, of queries, keys and values; `bias` as well.
        mask: added to the scores, broadcast to `n heads q k`; None if there is none.
        output: what the operator returned.
        finish: makes rows of that of the heads' outputs and of those rows of `residual`, which is `query` where it is
            None; given what rounding does on the way.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    heads: int
    weight: Tensor
    bias: Tensor
    mask: Tensor | None
    output: Tensor
    finish: Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]
    residual: Tensor | None = None

    @torch.no_grad()
    def attended(self, selection: Selection) -> tuple[Tensor, Tensor]:
        """As `rows.attended`.

        The bound is what rounding does here, and no worst case, which would say nothing after three matrix products:
        up to four rows are computed twice, with sums taken in another order. Allowed for are 32 times the largest
        difference between the two, and some units in the last place. In 16 bits each step rounds more than all sums.
        """
        exact = torch.float64 if self.query.dtype == torch.float64 else torch.float32
        x, output = (selection.rows(part.unsqueeze(1)).squeeze(1).to(exact) for part in (self.query, self.output))
        key, value = (selection.groups(part.unsqueeze(1)).squeeze(1).to(exact) for part in (self.key, self.value))
        residual = x if self.residual is None else selection.rows(self.residual.unsqueeze(1)).squeeze(1).to(exact)
        mask = None
        if self.mask is not None:
            shape = len(self.query), self.heads, self.query.shape[1], self.key.shape[1]
            mask = selection.rows(self.mask.expand(shape))
        rows = x.shape[1]
        if self.output.dtype.itemsize == 2:
            return self._in_bits(_Rows(x, residual, key, value, mask), output)
        few = rows * self.heads <= x.shape[2]
        sample = slice(None) if few and rows <= _SAMPLE else slice(None, None, -(-rows // _SAMPLE))
        part = None if mask is None else mask[:, :, sample]
        weights, made, other = self._few(x[:, sample], residual[:, sample], key, value, part)
        spread = (made - other).abs().nan_to_num(0.0).max()
        if made.shape[1] < rows:
            weights, made = self._many(_Rows(x, residual, key, value, mask))
        size = output.abs().nan_to_num(0.0).max()
        bound = 32 * spread + 8 * torch.finfo(self.output.dtype).eps * size
        return weights, claim(distance(made, output)[None], bound[None])[:, 0]

    def _in_bits(self, rows: _Rows, output: Tensor) -> tuple[Tensor, Tensor]:
        """As `attended`, of 16 bits, to which the operator rounds whatever it computes on the way.

        All rows are computed with that rounding, too, with scores at either end of what it can do to them. Allowed for
        are twice the largest difference that this makes in the row, and some units in the last place.
        """

        def rounded(tensor: Tensor) -> Tensor:
            return tensor.to(self.output.dtype).to(tensor.dtype)

        weights, made = self._many(rows)
        spread = made.new_zeros(made.shape[:-1])
        for side in (-1, 1):
            _, other = self._many(rows, rounded, side)
            spread = torch.maximum(spread, (made - other).abs().nan_to_num(0.0).amax(dim=-1))
        size = output.abs().nan_to_num(0.0).amax(dim=-1)
        bound = 2 * spread + 2 * torch.finfo(self.output.dtype).eps * size
        return weights, claim(distance(made, output)[None], bound[None])[:, 0]

    def _few(
        self, x: Tensor, residual: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The weights, and the operator's output in those rows, twice. Keys and values are not projected.

        `q (W x + b)` is `(q W) x + q b`, and weights of the sum 1 on `W x + b` are `W` times those on `x`, and b.
        """
        (of_query, of_key, of_value), (bias, bias_of_key, bias_of_value) = self._split(x.dtype)
        query = _twice((x, x), of_query.mT)
        scale = 1 / sqrt(of_key.shape[1])
        heads = [(one.view(*x.shape[:2], self.heads, -1).transpose(1, 2) + bias) * scale for one in query]
        on_x = [one.flatten(1, 2) for one in _twice(heads, of_key)]  # heads as rows: keys are not copied for each
        scores = [one.view(*heads[0].shape[:3], -1) for one in _twice(on_x, key.mT)]
        scores = [one + other @ bias_of_key.mT for one, other in zip(scores, heads, strict=True)]
        weights = [softmaxed(one if mask is None else one + mask) for one in scores]
        on_value = _twice([one.flatten(1, 2) for one in weights], value)
        made = _twice([one.view(*heads[0].shape[:3], -1) for one in on_value], of_value.mT)
        rows = torch.cat([(one + bias_of_value).transpose(1, 2).flatten(2) for one in made], dim=1)
        first, second = self.finish(rows, torch.cat([residual, residual], dim=1), _as_it_is).chunk(2, dim=1)
        return weights[0], first, second

    def _many(
        self, rows: _Rows, rounded: Callable[[Tensor], Tensor] = _as_it_is, side: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The weights, and the operator's output in many rows.

        Args:
            rounded: what rounding does to all that is computed on the way.
            side: 1 and -1 for scores that rounding has moved apart and together.
        """
        dtype, mask = rows.query.dtype, rows.mask
        matrices, biases = self.weight.to(dtype).chunk(3), self.bias.to(dtype).chunk(3)
        query, key, value = (
            rounded(rounded(linear(one, matrix)) + bias).view(*one.shape[:2], self.heads, -1).transpose(1, 2)
            for one, matrix, bias in zip((rows.query, rows.key, rows.value), matrices, biases, strict=True)
        )
        query = rounded(query * (1 / sqrt(query.shape[-1])))
        scores = rounded(query @ key.mT)
        if side:
            scores = scores + side * self._moved(query, key, scores)
        weights = rounded(softmaxed(scores if mask is None else scores + mask))
        made = rounded(weights @ value).transpose(1, 2).flatten(2)
        return weights, self.finish(made, rows.residual, rounded)

    def _moved(self, query: Tensor, key: Tensor, scores: Tensor) -> Tensor:
        """How far rounding can take scores, the highest of a row one way and all others the other way.

        A query is rounded three times, a key twice, a score once. In the mean square that is u/sqrt(3) of a number, u
        being half the distance of 1 to the next number; such errors are independent, so that their squares add up
        (Higham & Mary 2019). Three times as much is allowed for.
        """
        unit = torch.finfo(self.output.dtype).eps / 2
        far = sqrt(3) * unit * (5 * (query.square() @ key.square().mT) + scores.square()).sqrt()
        return torch.where(scores == scores.amax(dim=-1, keepdim=True), far, -far)

    def _split(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """Of queries all in one, of keys and values by heads: matrices, and biases as rows."""
        matrices, biases = self.weight.to(dtype).chunk(3), self.bias.to(dtype).chunk(3)
        by_head = [matrix.view(self.heads, -1, matrix.shape[1]) for matrix in matrices]
        return [matrices[0], *by_head[1:]], [bias.view(self.heads, 1, -1) for bias in biases]


def _twice(left: Sequence[Tensor], right: Tensor) -> list[Tensor]:
    """`left @ right` of two that are equal but for rounding; the second one's sums are taken in two halves."""
    one, other = left
    half, rows = other.shape[-1] // 2, other.shape[-2]
    other = torch.cat([other, other], dim=-2)
    other[..., :rows, half:] = 0
    other[..., rows:, :half] = 0
    first, low, high = (torch.cat([one, other], dim=-2) @ right).chunk(3, dim=-2)
    return [first, low + high]


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
        lambda made, _x, _rounded: linear(made, out.to(made.dtype), bias.to(made.dtype)),
    )


def in_encoder_layer(given: dict[str, Any], output: Tensor) -> Projected:
    """`_transformer_encoder_layer_fwd`: the fast path of nn.TransformerEncoderLayer, attention and all the rest."""
    first, eps = given["norm_first"], given["eps"]
    activation = gelu if given["use_gelu"] else relu

    def norm(x: Tensor, number: int) -> Tensor:
        weight, bias = given[f"norm_weight_{number}"], given[f"norm_bias_{number}"]
        return layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)

    def weighed(x: Tensor, name: tuple[str, str]) -> Tensor:
        return linear(x, given[f"{name[0]}weight{name[1]}"].to(x.dtype), given[f"{name[0]}bias{name[1]}"].to(x.dtype))

    def finish(made: Tensor, x: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
        x = rounded(x + rounded(weighed(made, ("proj_", ""))))
        x = x if first else rounded(norm(x, 1))
        inner = rounded(activation(rounded(weighed(rounded(norm(x, 2)) if first else x, ("ffn_", "_1")))))
        x = rounded(x + rounded(weighed(inner, ("ffn_", "_2"))))
        return x if first else rounded(norm(x, 2))

    src = given["src"]
    x = norm(src, 1) if first else src
    mask = _mask(given["mask"], given["mask_type"])
    weight, bias = given["qkv_weight"], given["qkv_bias"]
    return Projected(x, x, x, given["num_heads"], weight, bias, mask, output, finish, residual=src)


def _mask(mask: Tensor | None, kind: int | None) -> Tensor | None:
    """As `n heads q k`: 0 is `q k`, 1 is `n k`, 2 is all of them.

    These operators take any number in a mask but 0 for minus infinity, and warn of that.
    """
    if mask is None:
        return None
    mask = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_fill_(mask != 0, -torch.inf)
    return mask[:, None, None, :] if kind == 1 else mask
