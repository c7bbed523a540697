"""Attention as it is computed, seen operator by operator while a model runs, whichever function asked for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.errors import LayerError
from torch_featviz.model.build import build_of
from torch_featviz.model.values import tensors
from torch_featviz.torch_private import TorchDispatchMode

from ..eager import all_eager
from .groups import Selection, Unplaced
from .held import Held, Weights, common
from .learnt import Learnt, kind_of, kinds_of
from .met import TALKING, Operands, group_of
from .native import Projected, in_encoder_layer, in_module
from .operators import PRODUCTS, SOFTMAX, by_name, name_of
from .path import MOVES, Path
from .places import PlaceTracer
from .rows import Evidence, attended, claims

_MIXING = ("addmm", "linear", "einsum", "convolution", "_convolution", "conv2d")


@all_eager
class Seen(TorchDispatchMode):
    """While on, sees each attention that is computed, and gives `take` the weights asked for.

    Args:
        names: of all modules of the model.
        scope: tells apart what differs in `wanted`.
        wanted: given the names of the modules whose forwards run, outermost first: those to take attention for.
        queries: given the layer and how many queries there are: which to take, or None for all.
        take: is given the layers and the weights, `images heads queries keys`.
        lenient: whether a softmax that meets values in a way that cannot be placed is passed over.
        without: where to say, by layer, why its attention is passed over that cannot be captured; None to raise that.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        scope: Hashable,
        wanted: Callable[[Sequence[str]], list[str]],
        queries: Callable[[str, int], list[int] | None],
        take: Callable[[list[str], Tensor], None],
        *,
        lenient: bool,
        without: dict[str, str] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running = False
        self.found: dict[str, None] = {}  # layers in whose own forward attention is computed
        self.reasons: dict[str, str] = {}  # why what looks like attention is none, by layer
        self._lenient, self._without = lenient, without
        self._scope, self._wanted, self._queries, self._take = scope, wanted, queries, take
        self._frames: list[tuple[str, nn.Module]] = []
        self._held = Held()
        self._claims: list[tuple[str, Tensor, torch.dtype]] = []
        self._evidence: list[tuple[str, Evidence, torch.dtype]] = []  # of which claims are made when all has run
        self._tracer: PlaceTracer | None = None
        self._learnt = Learnt({}, None, set(), set())
        self._path: Path | None = None
        self._strayed = False
        self._on = False
        self._images: int | None = None
        self._calls: Counter[str] = Counter()  # by the innermost layer

    @contextmanager
    def forward(self, name: str, module: nn.Module, given: Any) -> Iterator[None]:
        """`module` runs, given these arguments, as the outermost.

        Which window each token is in is followed through the first forward of its kind, and known from then on, as long
        as tokens are moved as they were then. Of a kind that moves them otherwise, each forward is followed.
        Where moves do not matter, operators are from then on seen in those layers only in which attention is computed,
        and in layers that did not run before.
        """
        inputs = list(tensors(given))
        kinds, kind = kinds_of(module), (name, self._scope, build_of(module), kind_of(module, given))
        before = kinds.get(kind)
        self._learnt = before or Learnt({}, Path(), set(), set())
        self._path = before.path and Path(before.path) if before else self._learnt.path
        self._images = inputs[0].shape[0] if inputs and inputs[0].dim() else None
        self._tracer = None if before else PlaceTracer(inputs)
        self._strayed = False
        self._calls.clear()
        self._claims.clear()
        self._evidence.clear()
        self.running = True
        try:
            with (
                self._seeing() if self._path else nullcontext(),
                self.within(name, module),
                self._tracer or nullcontext(),
            ):
                yield
            self._prove()
        except BaseException:
            if self._strayed:
                kinds[kind] = None
            elif before:  # it may have gone another way than the first
                kinds.pop(kind, None)
            raise
        finally:
            self.running, self._tracer = False, None
            self._held.clear()
        if kind not in kinds:
            kinds[kind] = self._learnt.kept()

    @contextmanager
    def within(self, name: str, module: nn.Module) -> Iterator[None]:
        """The forward of `module` runs, within the others."""
        looked_into = name in self._learnt.attending or name not in self._learnt.ran
        self._learnt.ran.add(name)
        self._frames.append((name, module))
        try:
            with self._seeing() if looked_into and not self._on else nullcontext():
                yield
        finally:
            self._frames.pop()
            self._held.leave(len(self._frames))

    @contextmanager
    def _seeing(self) -> Iterator[None]:
        """The mode is on."""
        self._on = True
        try:
            with self:
                yield
        finally:
            self._on = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._tracer is not None and self._tracer.following:
            return func(*args, **kwargs)
        name = name_of(func)
        if self._path is not None and name in MOVES and not self._path.step(name, args, kwargs):
            self._stray(name)
        handler = _HANDLERS.get(name)
        if handler is not None:
            return handler(self, func, args, kwargs)
        if not self._held:
            return func(*args, **kwargs)
        answer, changed = self._held.follow(func, name, args, kwargs, self._running())
        if changed is not None:
            self._changed(changed, name)
        return answer

    # What each kind of operator is to attention

    def _composed(self, func: Any, args: Any, kwargs: Any) -> Any:
        with self:
            return func.decompose(*args, **kwargs)

    def _hidden(self, func: Any, args: Any, kwargs: Any) -> Any:
        if layers := self._layers():
            self._refuse(
                layers[-1],
                f"is computed by {func}, which returns no weights and takes its inputs in a form of its own; run the "
                "model with scaled_dot_product_attention or eager attention (transformers: attn_implementation='sdpa')",
            )
        return func(*args, **kwargs)

    def _refuse(self, layer: str, why: str) -> None:
        """Raise LayerError, or say it in `without`."""
        if self._without is None:
            raise LayerError(f"the attention of {layer!r} {why}.")
        self._without.setdefault(layer, f"its attention {why}")

    def _stray(self, name: str) -> None:
        self._strayed = True
        layer = self._frames[-1][0]
        where = repr(layer) if layer else "the model"
        raise LayerError(
            f"the attention of windows cannot be placed: {name!r} in {where} moves tokens "
            "otherwise than in the forward before. Run it once more: from now on each forward is followed by itself."
        )

    def _pass_over(self, layer: str, why: str, axes: int) -> None:
        """What looks like attention is none, or none that can be captured; a softmax of two axes is one of classes."""
        self.reasons[layer] = why
        if self._without is not None and axes > 2:
            self._without.setdefault(layer, why)

    def _fused(self, func: Any, args: Any, kwargs: Any) -> Any:
        answer = func(*args, **kwargs)
        layers = self._layers()
        if not layers:
            return answer
        given = by_name(func, args, kwargs)
        query, key, value = given["query"], given["key"], given["value"]
        if query.is_nested:
            return self._hidden(func, args, kwargs)
        mask = given.get("attn_mask")
        selection = self._select(layers, Operands(query, value))
        if selection is not None:
            weights, evidence = attended(
                query,
                key,
                value,
                answer[0] if isinstance(answer, (tuple, list)) else answer,
                selection,
                mask=given.get("attn_bias") if mask is None else mask,
                causal=bool(given.get("is_causal")),
                scale=given.get("scale"),
                dropped=bool(given.get("dropout_p")),
            )
            if evidence is not None:
                self._evidence.append((layers[-1], evidence, query.dtype))
            self._give(layers, selection.put(weights).to(query.dtype))
        return answer

    def _softmax(self, func: Any, args: Any, kwargs: Any) -> Any:
        answer = func(*args, **kwargs)
        dim = args[1] if len(args) > 1 else kwargs["dim"]
        if answer.dim() > 1 and dim in (-1, answer.dim() - 1) and not answer.is_nested:
            heads = 1 if answer.dim() < 4 else answer.shape[-3]
            heads_or_none = heads if answer.dim() != 3 else None
            self._held.put(answer, Weights(answer.detach(), heads_or_none, self._running(), answer, answer.dim()))
        return answer

    def _product(self, func: Any, args: Any, kwargs: Any) -> Any:
        answer = func(*args, **kwargs)
        if not self._held or len(args) < 2:
            return answer
        left, right = args[:2]
        if (held := self._held.of(left)) is not None:
            self._multiplied(held, held.values, left, right, axis=-2)
        if (held := self._held.of(right)) is not None:  # values times weights, both turned
            self._multiplied(held, held.values.mT, right, left, axis=-1)
        return answer

    def _multiplied(self, held: Weights, weights: Tensor, multiplied: Tensor, values: Tensor, axis: int) -> None:
        """Softmaxed weights `... q k` have been multiplied with values; tokens lie along an axis of both."""
        if layers := self._layers():
            self._learnt.attending.add(common(held.frames, self._running())[-1])  # between softmax and product
            selection = self._select(layers, Operands(multiplied, values, held.heads, axis, weights, held.axes))
            if selection is not None:
                weights = weights.reshape(-1, 1, *weights.shape[-2:])
                self._give(layers, selection.put(selection.rows(weights)).clone())

    def _in_module(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self._native(func, args, kwargs, in_module, "")

    def _in_encoder_layer(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self._native(func, args, kwargs, in_encoder_layer, "self_attn")

    def _native(
        self, func: Any, args: Any, kwargs: Any, read: Callable[[dict[str, Any], Tensor], Projected], part: str
    ) -> Any:
        layers = self._layers(part)
        given = by_name(func, args, kwargs)
        if not layers:
            return func(*args, **kwargs)
        if any(isinstance(tensor, Tensor) and tensor.is_nested for tensor in given.values()):
            why = "is computed on nested tensors; make the encoder with enable_nested_tensor=False"
            self._refuse(layers[-1], why)
            return func(*args, **kwargs)
        before = given.copy()
        answer = func(*args, **kwargs)
        projected = read(before, answer[0] if isinstance(answer, (tuple, list)) else answer)
        x, keys = projected.query, projected.key
        selection = self._select(layers, Operands(x, keys))
        if selection is not None:
            weights, claimed = projected.attended(selection)
            self._claims.append((layers[-1], claimed, x.dtype))
            self._give(layers, selection.put(weights).to(x.dtype))
        return answer

    def _bernoulli(self, func: Any, args: Any, kwargs: Any) -> Any:
        answer = func(*args, **kwargs)
        self._held.noise(answer)
        return answer

    # What is common to all of them

    def _changed(self, held: Weights, name: str) -> None:
        self._learnt.attending.add(common(held.frames, self._running())[-1])  # between softmax and product
        mixed = name in _MIXING and held.axes == 4
        why = TALKING if mixed else f"its softmax goes through {name!r} before it meets values"
        self._pass_over(self._frames[-1][0], why, held.axes)

    def _running(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self._frames)

    def _layers(self, part: str = "") -> list[str]:
        """The layers that an attention computed now is of, outermost first; `part` is one that was not called."""
        names = self._running()
        if part:
            names = *names, f"{names[-1]}.{part}".lstrip(".")
        layers = self._wanted(names)
        if layers:
            self._learnt.attending.add(self._frames[-1][0])
        return layers

    def _select(self, layers: list[str], met: Operands) -> Selection | None:
        """The rows asked for, of the attention that is computed now; None if it is none between tokens."""
        layer = self._frames[-1][0]
        call = layer, self._calls[layer], met.values.shape
        self._calls[layer] += 1
        if call not in self._learnt.groups:
            unplaced = False
            try:
                self._learnt.groups[call] = group_of(met, self._tracer, self._images, self._frames[-1][1])
            except Unplaced as why:
                self._learnt.groups[call], unplaced = str(why), True
            if unplaced and not (self._lenient and met.weights is not None):  # else a gate, say: nobody asked for it
                again = "" if self._tracer else "; it goes another way than in the forward before: run it once more"
                self._refuse(layers[-1], f"cannot be captured: {self._learnt.groups[call]}{again}")
        groups = self._learnt.groups[call]
        if isinstance(groups, str):
            self._pass_over(layer, groups, met.axes)
            return None
        return groups.select(self._queries(layers[-1], groups.length(met.queries.shape[met.axis])))

    def _give(self, layers: list[str], weights: Tensor) -> None:
        self.found.setdefault(self._frames[-1][0])
        self._take(layers, weights.detach())

    def _prove(self) -> None:
        """Raise LayerError unless all that was computed made what the kernels returned."""
        alike: dict[Hashable, list[tuple[str, Evidence, torch.dtype]]] = {}
        for each in self._evidence:
            alike.setdefault((each[1].alike(), each[2]), []).append(each)
        for several in alike.values():
            layers, evidence, dtypes = zip(*several, strict=True)
            self._claims += zip(layers, claims(evidence).unbind(1), dtypes, strict=True)
        if not self._claims:
            return
        figures = torch.stack([claimed.double() for _, claimed, _ in self._claims]).tolist()
        for (layer, _, dtype), (far, share) in zip(self._claims, figures, strict=True):
            if not share <= 1:
                raise LayerError(
                    f"the attention of {layer!r} is not what its kernel computed: weights times values differ from "
                    f"its output by {far:.3g}, {share:.3g} times what rounding in {str(dtype)[6:]} can do."
                )


_HANDLERS: dict[str, Callable[[Seen, Any, Any, Any], Any]] = {
    "composed": Seen._composed,
    **dict.fromkeys(SOFTMAX, Seen._softmax),
    **dict.fromkeys(PRODUCTS, Seen._product),
    "hidden": Seen._hidden,
    "fused": Seen._fused,
    "_native_multi_head_attention": Seen._in_module,
    "_transformer_encoder_layer_fwd": Seen._in_encoder_layer,
    "bernoulli_": Seen._bernoulli,
}
