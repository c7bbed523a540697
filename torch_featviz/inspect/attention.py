"""The attention weights of a model's layers in one run, and where their tokens are on the image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.capture import Attention, capture
from torch_featviz.capture.attention import Look
from torch_featviz.errors import LayerError
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.layers import Layers, resolve, split_call
from torch_featviz.model.layout import Layout, LayoutTracer
from torch_featviz.model.run import hooked, run
from torch_featviz.model.twin import twin
from torch_featviz.model.unplaced import names_before
from torch_featviz.model.untouched import isolated
from torch_featviz.model.values import tensors


class NoAttention(LayerError):
    """No attention is computed in the layers asked for."""


@dataclass(frozen=True)
class Tokens:
    """The tokens that a layer's queries attend to.

    Args:
        layout: where they are: a grid of rows and columns, and how many stand before and behind it.
        names: of those before the grid, by `names_before`.
        asking: whether the queries are these same tokens, as in self-attention.
    """

    layout: Layout
    names: tuple[str, ...]
    asking: bool

    @property
    def places(self) -> int:
        """The number of those with a place."""
        rows, columns = self.layout.grid
        return rows * columns

    @property
    def placed(self) -> slice:
        """Those with a place."""
        return slice(self.layout.prefix, self.layout.prefix + self.places)

    @property
    def count(self) -> int:
        """The number of all."""
        return self.layout.prefix + self.places + self.layout.suffix

    @property
    def has_class(self) -> bool:
        """Whether the first of them is a class token; so it is taken to be where it has no name."""
        return bool(self.names) and self.names[0] in ("class token", "token 0")

    def place(self, number: int) -> tuple[int, int] | None:
        """Row and column of a token; None if it has no place."""
        at = number - self.layout.prefix
        return divmod(at, self.layout.grid[1]) if 0 <= at < self.places else None

    def name(self, number: int) -> str:
        """What a token is called.

        Example:
            >>> tokens = Tokens(Layout((2, 2), prefix=3), ("class token", "register", "register"), True)
            >>> [tokens.name(number) for number in (0, 2, 4)]
            ['class token', 'register 2', 'place (0, 1)']
        """
        if number >= len(self.names):
            place = self.place(number)
            return f"token {number}" if place is None else f"place {place}"
        name = self.names[number]
        several = self.names.count(name) > 1
        return f"{name} {self.names[: number + 1].count(name)}" if several else name


@dataclass(frozen=True)
class Attended:
    """The attention of one layer.

    Args:
        layer: its name.
        weights: `b heads queries keys`, or what was made of that.
        tokens: the keys.
    """

    layer: str
    weights: Tensor
    tokens: Tokens


class Attending:
    """A copy of a model whose attention can be asked for.

    `tokens` says where the keys of each layer are; `without` names the other layers that seem to compute attention,
    and why theirs cannot be shown.

    Args:
        model: any module; it is unchanged.
        inputs: what it is given.
        layers: layers with attention, or layers that contain some, as for `capture`; None for all.
    Raises:
        LayerError: no such layer, or none with attention; or a layer asked for has only attention that cannot be shown.
        DtypeError, DeviceError, OptionError, ShapeError: the model cannot be copied, or does not accept the inputs.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, layers: Layers) -> None:
        asked = None if layers is None else resolve(model, layers)
        self._net, self._inputs = twin(model), inputs
        seen = _Seen(inputs.rows(slice(0, 1)).copied())
        counts, without = seen.run(self._net)
        self.tokens, self.without = dict[str, Tokens](), dict[str, str]()
        for name in [*counts, *without]:
            if asked is not None and not _is_within(name, asked):
                continue
            tokens = self._tokens(name, counts[name], seen) if name in counts else None
            if tokens is not None:
                self.tokens[name] = tokens
            elif name in without:
                self.without[name] = without[name]
            else:
                self.without[name] = f"it is unknown where on the image the {counts[name]} keys are that it attends to"
        self._refuse(asked, list(counts))

    def _refuse(self, asked: Iterable[str] | None, computing: Sequence[str]) -> None:
        """Raise LayerError where there is nothing to show of the model, or of a layer asked for."""
        if not self.tokens and not self.without:
            where = "the model" if asked is None else " or ".join(map(repr, asked))
            some = ", ".join(map(repr, computing[:4])) + ", ..." * (len(computing) > 4)
            there = f"; these compute some: {some}" if computing else ""
            raise NoAttention(f"no attention is computed in {where}{there}.")
        for layer in [""] if asked is None else asked:
            refused = [name for name in self.without if _is_within(name, [layer])]
            if refused and not any(_is_within(name, [layer]) for name in self.tokens):
                what = repr(refused[0]) if refused[0] else "the model"
                raise LayerError(f"the attention of {what} cannot be shown: {self.without[refused[0]]}.")

    def __call__(
        self, layers: Sequence[str], queries: Sequence[int] | None, keep: Callable[[Tensor], Tensor] | None = None
    ) -> list[Attended]:
        """The attention of these layers, by one forward.

        Args:
            layers: names, of those in `tokens`.
            queries: numbers of the tokens that attend; None for all.
            keep: what is kept of each layer's weights `b heads queries keys`.
        """
        names = [*dict.fromkeys(split_call(name)[0] for name in layers)]
        watch = capture(self._net, names, of=Attention(queries), into=keep)
        with isolated(), torch.no_grad(), watch as found:
            run(self._net, self._inputs.copied())
        return [Attended(name, found[name], self.tokens[name]) for name in layers]

    def _tokens(self, name: str, count: int, seen: _Seen) -> Tokens | None:
        """The first layout of so many tokens, from that of the layer itself on."""
        for layout, asking in seen.around(split_call(name)[0]):
            tokens = Tokens(layout, names_before(self._net, layout.prefix), asking)
            if len(layout.grid) == 2 and tokens.count == count:
                return tokens
        return None


class _Seen:
    """The layouts of what layers take and return, by one forward of one image."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self._tracer = LayoutTracer(inputs.images)
        self._taken, self._returned = dict[str, list[Layout]](), dict[str, list[Layout]]()

    def run(self, net: nn.Module) -> tuple[dict[str, int], dict[str, str]]:
        """The number of keys of each layer whose attention is captured; and, by layer, why other attention is not."""
        names = {module: name for name, module in net.named_modules()}

        def note(module: nn.Module, given: Any, output: Any) -> None:
            first = [next(iter(tensors(output)), None)]
            for known, values in ((self._taken, tensors(given)), (self._returned, first)):
                found = [layout for value in values if (layout := self._tracer.layout(value)) is not None]
                known.setdefault(names[module], []).extend(found)

        look = Look([0])
        with isolated(), torch.no_grad(), capture(net, of=look) as found:
            with hooked(names, after=note), self._tracer:
                run(net, self.inputs)
            return {name: weights.shape[-1] for name, weights in found.items()}, look.without

    def around(self, layer: str) -> Iterator[tuple[Layout, bool]]:
        """Layouts of a layer's output, of its inputs, of the layers in it, and of those that it is in, the next first;
        and whether its queries have that layout.

        Shifted windows are back in their places only in what a layer around it returns.
        """
        yield from ((layout, True) for layout in self._returned.get(layer, ()))
        yield from ((layout, False) for layout in self._taken.get(layer, ()))
        for name, layouts in self._returned.items():
            if name.startswith(f"{layer}."):
                yield from ((layout, False) for layout in layouts)
        while layer:
            layer = layer.rpartition(".")[0]
            yield from ((layout, True) for layout in self._returned.get(layer, ()))


def _is_within(name: str, layers: Iterable[str]) -> bool:
    """Whether a layer, or one call of it, is one of these or inside of one."""
    layer = split_call(name)[0]
    return any(not other or layer == other or layer.startswith(f"{other}.") for other in layers)
