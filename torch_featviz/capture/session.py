"""`capture()`: what a model's layers return, recorded while it runs, and nothing about the model changed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator
from threading import RLock
from types import MethodType, TracebackType
from typing import Any, TypeAlias
from weakref import ref

from torch import nn
from torch.compiler import is_dynamo_compiling

from torch_featviz.displayed import Displayed, shortened, within
from torch_featviz.errors import LayerError, OptionError
from torch_featviz.gate import gate
from torch_featviz.model.layers import Layers, choose, inside, names_of, survey
from torch_featviz.torch_private import is_optimized, optimized_kinds

from .asked import Asked, Scope, choose_with_calls
from .attention import Attention, Attentions, attention_asked
from .compiled import entry, own_code, own_frame, put_entries
from .copies import keep_out, own_deepcopy, release
from .forward import UNSEEN as _UNSEEN
from .forward import whole_forward
from .into import Into, recorder_for
from .ops import tap_calls
from .recorder import Recorder
from .reduce import Reducer
from .tap import Taps, function_of, has_hooks, put, refuse_another_thread, take_back, tap
from .unfit import fused, refuse_calls, refuse_flat, refuse_scripted

_installing = RLock()


@gate("layers", "into", "of", "every")
def capture(
    model: nn.Module,
    layers: Layers = None,
    *,
    into: Into = None,
    of: str | Attention = "output",
    every: int = 1,
    stop: bool = False,
    ops: bool = False,
) -> Capture:
    """Record the outputs of `layers` of `model` for each forward inside the `with` block.

    The model is unchanged afterwards: no hooks are left behind, and outputs and gradients are the same as without
    capture.

    Args:
        model: any `nn.Module`, compiled or not (before or inside the block). It may be wrapped in
            DistributedDataParallel, FSDP2, or DataParallel on one device.
        layers: names, globs (`*` also matches dots), module types, module objects, or a list of them. None captures all
            leaf modules, and all convolutions, linear layers, attentions and adapters even if they contain modules. The
            prefix of a wrapper (`module.`, `_orig_mod.`) may be left out. The name of one call, `'relu#2'`, stands for
            its layer; all calls of that layer are kept.
        into: what to keep. None keeps the outputs of the latest forward; `Ring(n)` those of the last n forwards;
            `ToCPU()` copies on the CPU; `Moments()`, `Histogram()` and `TopK()`, or a list of them, keep statistics and
            no outputs. A function is called with each output, and its result is kept.
        of: `'output'`, or `'grad'` for the gradient of the output in the backward, which must run inside the block.
            Gradients are not rescaled: if a GradScaler scales the loss, they are scaled too. `'attention'`, or
            `Attention(queries=[0])` for some rows, captures the softmaxed attention weights that a layer computes,
            `images heads queries keys`, see below; a compiled model then runs uncompiled.
        every: capture one forward in `every`, beginning with the first; the others run without any overhead.
        stop: end the forward as soon as all of `layers` have run; the model then returns None.
        ops: also capture functional calls (`F.relu`, `torch.cat`, `view`, `+`) as layers. A call is named after the
            layer that feeds it, or else after the module whose forward makes it: `'conv1.tanh'`, `'layer1.0.bn2.add_'`,
            `'cat'`. `layers` may then name or match calls too; a named call that never happens is listed in `not_run`.
            A compiled model then runs uncompiled.

    Returns:
        A context manager that yields `Activations`, a read-only mapping from layer name to output, in order of
        execution. The tensors are the network's own: not copied, on their device, detached. Copied are only outputs
        that the network later overwrites in place, and outputs inside a compiled graph. The next forward replaces the
        outputs. If only parts of the model are called, each layer keeps its latest call. With `Ring` each value is a
        list. With statistics each value is the layer's `Moments`, `Histogram` or `TopK` (or a list of them) over all
        its calls.

    Raises:
        LayerError: `model` has no such layer, or it cannot be captured; the model is unchanged.
        DtypeError, OptionError: an argument has the wrong type or an invalid value.

    Attention is taken where it is computed: from `scaled_dot_product_attention`, `nn.MultiheadAttention` and its fast
    paths, or a softmax that is multiplied with values. A layer that holds one attention has its own name as the key,
    one that holds several a key for each; `layers=None` captures the innermost layers. Windows, as in Swin, are put
    back in their places on the image's grid of tokens, zero between windows; weights on padding are left out. Only the
    rows asked for are computed. Each is proven: with the values it must make the kernel's own output, within rounding,
    or the forward ends with LayerError. Weights are those before dropout; where a fused kernel drops some, its output
    proves nothing. Kernels that hide their weights (flash_attn, flex_attention, nested tensors) are refused by name.

    In a compiled model the capture becomes part of the compiled graph. Each set of layers compiles one more graph at
    its first forward; after the block the original graph runs again. A hook that is added inside the block and changes
    an output is seen only if the module had hooks before. Two threads must not capture one model at the same time.

    Gradients in a compiled graph are those that the compiled model computes. A layer whose output the loss leaves out
    then has gradients of zero, where an uncompiled model has none. A layer that returns a view of what a compiled graph
    was given (Flatten at the beginning of a compiled part) gets only what flows back inside that graph. With older
    releases of torch (2.6, say) a compiled model runs uncompiled for `of='grad'`.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))
        >>> with capture(model, "0") as acts:
        ...     output = model(torch.zeros(1, 1, 8, 8))
        >>> acts["0"].shape
        torch.Size([1, 4, 6, 6])
    """
    return Capture(model, layers, into=into, of=of, every=every, stop=stop, ops=ops)


def check_every(every: object, counted: str) -> None:
    """Raise OptionError unless `every` is an integer of at least 1; `counted` is what it counts."""
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise OptionError(f"every must be at least 1 (it counts {counted}; 1 takes each of them), got {every!r}.")


_Opened: TypeAlias = tuple[Recorder, Taps, "ref[Any]"]


class Capture(Displayed):
    """The context manager that `capture` returns. Each `with` block has new activations."""

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        *,
        detach: bool = True,
        into: Into = None,
        of: str | Attention = "output",
        every: int = 1,
        stop: bool = False,
        ops: bool = False,
    ) -> None:
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise LayerError(
                "DataParallel on several devices copies the model at each call and cannot "
                "be captured; capture model.module on one device."
            )
        check_every(every, "forwards")
        self._chain = list(_chain(model))
        names, leaves = survey(model) if layers is None else (names_of(model), {})
        self._modules = list(names)
        self._model = self._modules[0]
        self._names = names
        self._asked: Asked | None = None
        self.calls_only_if_eager = False  # whether a compiled model stays compiled, and its functional calls unseen
        if ops and attention_asked(of) is not None:
            raise OptionError("of='attention' sees functional calls as it is; leave ops out.")
        if ops:
            self._layers, self._asked = choose_with_calls(model, names, leaves, layers)
            if stop and self._asked.globs:
                raise OptionError(
                    "stop=True with ops=True needs exact names: a glob may also "
                    "match later calls. Name the layers and calls."
                )
        elif attention_asked(of) is not None and layers is None:
            self._layers = {}  # whichever compute attention
        else:
            self._layers = choose(model, names, leaves, layers)
        if stop or isinstance(into, (Reducer, list, tuple)):
            refuse_calls(layers)
        self._every = every
        self._told = (into, of)
        self._make = recorder_for(into, of, detach=detach, stop=stop)
        self._open: list[_Opened] = []
        self._kinds = set(map(type, self._modules))
        channels_last = any(issubclass(kind, nn.Conv2d) for kind in self._kinds)
        self._scope = Scope(self._model, self._layers, names, channels_last)
        self._copied_kinds = self._kinds.union(map(type, self._chain), optimized_kinds())
        self._own_deepcopy = own_deepcopy((self._chain, self._modules), self._copied_kinds)
        refuse_scripted(self._kinds, self._layers)
        refuse_flat(self._modules, self._kinds, self._layers)

    @property
    def chosen(self) -> dict[str, nn.Module]:
        """The layers whose outputs are captured, by name."""
        return dict(self._layers)

    def __repr__(self) -> str:
        into, of = self._told
        parts = [type(self._model).__name__, f"{len(self._layers):,} layers", f"every={self._every}", f"of={of!r}"]
        parts += [] if into is None else [f"into={shortened(repr(into))}"]
        return within("Capture(", parts, ")")

    def __enter__(self) -> Any:
        flags: Hashable = tuple([getattr(module, "training", None) for module in self._modules])
        recorder, result = self._make(self._scope, (flags, self._asked) if self._asked else flags)
        if self._asked:
            recorder.functions.only_eager = self.calls_only_if_eager
            recorder.take_calls(self._asked.names, self._asked.alone)
        taps = Taps(self._modules)
        opened = (recorder, taps, ref(result))
        try:
            self._open.append(opened)
            result.capture = self
            with _installing:
                refuse_another_thread(taps)
                self._install(recorder, taps)
                keep_out(taps, self._copied_kinds, self._own_deepcopy)
            return result
        except BaseException:
            self._leave(opened)
            raise

    def __getitem__(self, name: object) -> Any:
        """Refuse what only the activations hold."""
        raise LayerError(
            f"capture() records while the model runs in its with block: write 'with fv.capture(model) as acts: "
            f"model(images)', and then acts[{name!r}]."
        )

    def suspend(self) -> None:
        """Take the capture off the model until `resume`; the recorded outputs stay readable."""
        _, taps, _ = self._open[-1]
        with _installing:
            release(taps)
        take_back(taps)

    def resume(self) -> None:
        """Continue a suspended capture."""
        recorder, _, result = self._open[-1]
        taps = Taps(self._modules)
        self._open[-1] = (recorder, taps, result)
        with _installing:
            refuse_another_thread(taps)
            self._install(recorder, taps)
            keep_out(taps, self._copied_kinds, self._own_deepcopy)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened = self._open[-1]
        try:
            self._leave(opened)
        except BaseException:  # interrupted halfway: first finish
            self._leave(opened)
            raise

    def __del__(self) -> None:
        """Python may take an interrupt at the call of `__exit__`, before that has begun.

        What the block yields keeps this alive, lest a block end that somebody can still read.
        """
        for opened in reversed(getattr(self, "_open", ())):
            self._leave(opened)

    def _leave(self, opened: _Opened) -> None:
        """End one block; all of it may be done twice."""
        recorder, taps, result = opened
        with _installing:
            release(taps)
        take_back(taps)
        recorder.close()
        self._open[:] = [other for other in self._open if other is not opened]
        if (read_by := result()) is not None:
            read_by.capture = None

    def _install(self, recorder: Recorder, taps: Taps) -> None:
        sampled = self._every > 1

        def around(call: Callable[..., Any], part: nn.Module | None) -> Callable[..., Any]:
            if part is not None:
                return entry(call, recorder, self._captured_in(part), sampled=sampled)
            entered = entry(own_frame(call, self._model, recorder.setting), recorder, None, sampled=sampled)
            return self._every_nth(recorder, call, entered) if sampled else entered

        compiled = put_entries(self._chain, self._modules, around, taps)
        if not sampled:
            self._tap(recorder, taps)
        elif not compiled:
            plain = function_of(self._model, "forward")
            forward = self._every_nth(recorder, plain, lambda model, *args, **kwargs: model.forward(*args, **kwargs))
            put(self._model, "forward", MethodType(forward, self._model), taps)

    def _captured_in(self, part: nn.Module) -> list[str]:
        """The captured layers that a compiled part of the model may run; itself only where its tap is inside."""
        outside = has_hooks(part) or ("forward" in part.__dict__ and not is_optimized(part))
        inner = set(part.modules()) - ({part} if outside else set())
        return [name for name, module in self._layers.items() if module in inner]

    def _tap(self, recorder: Recorder, taps: Taps) -> None:
        """Put in place all that a captured forward needs."""
        if isinstance(recorder, Attentions):
            recorder.tap(self._names, taps)
        else:
            self._tap_outputs(recorder, taps)
        forward = own_code(whole_forward(self._scope, recorder), self._model, recorder.setting)
        put(self._model, "forward", MethodType(forward, self._model), taps)

    def _tap_outputs(self, recorder: Recorder, taps: Taps) -> None:
        if self._asked is None:
            tap(self._layers, recorder, taps)
        else:
            tap_calls(self._names, self._layers, recorder, self._asked, taps)
        for module, switch in fused(self._modules, self._kinds, self._layers):
            put(module, switch, float("0"), taps)  # an object of its own, so that it is taken back by the right capture

    def _every_nth(
        self, recorder: Recorder, plain: Callable[..., Any], captured: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Calls `plain`, and at every n-th call `captured` instead, with taps that are there for its length only."""
        calls = itertools.count()

        def forward(*args: Any, **kwargs: Any) -> Any:
            if is_dynamo_compiling():
                raise OptionError(f"every={self._every} counts calls of the model, {_UNSEEN}")
            if recorder.running or next(calls) % self._every:
                return plain(*args, **kwargs)
            taps = Taps()
            try:
                self._tap(recorder, taps)
                return captured(*args, **kwargs)
            finally:
                take_back(taps)

        return forward


def _chain(model: nn.Module) -> Iterator[nn.Module]:
    """The model and every wrapper around it, outermost first."""
    yield model
    while (inner := inside(model)) is not None:
        yield (model := inner)
