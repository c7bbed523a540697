"""What becomes of a captured output: `into=`, one small object."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

from torch_featviz.errors import OptionError

from .activations import Activations, Recent
from .asked import Scope
from .attention import Attention, Attentions, ReducedAttentions, attention_asked
from .gradients import Gradients, ReducedGradients
from .keep import Ring, ToCPU
from .noting import Note, Noting
from .recorder import Recorder
from .reduce import Reducer, Several
from .reduction import Reduction
from .statistics import Statistics

Into: TypeAlias = Reducer | Sequence[Reducer] | Ring | ToCPU | Note | Callable[[Any], Any] | None


def recorder_for(
    into: Into, of: str | Attention, *, detach: bool, stop: bool
) -> Callable[[Scope, Hashable], tuple[Recorder, Any]]:
    """What makes, for each block, the recorder and the mapping through which it is read.

    Raises:
        OptionError: options of no meaning, or that exclude each other.
    """
    attention = attention_asked(of)
    if attention is None and not (isinstance(of, str) and of in ("output", "grad")):
        raise OptionError(f"of must be 'output', 'grad', 'attention' or Attention(queries=...), got {of!r:.80}.")
    gradients = of == "grad"
    if attention is not None and stop:
        raise OptionError("of='attention' needs the whole forward; leave stop out.")
    if gradients and stop:
        raise OptionError(
            "of='grad' needs the model's output for backward(), and stop=True "
            "ends the forward before it; leave stop out."
        )
    if isinstance(into, (list, tuple)):
        into = Several(*into)
    if isinstance(into, type) or not (into is None or isinstance(into, (Reducer, Ring, Note)) or callable(into)):
        known = "Moments(), Histogram(), TopK(), a list of these, Ring(n), ToCPU(), or a function"
        raise OptionError(f"into must be one of {known}; got {into!r:.80}.")

    def make(scope: Scope, setting: Hashable) -> tuple[Recorder, Any]:
        if isinstance(into, Note):
            return Noting(scope, setting, into), into
        if isinstance(into, Reducer):
            if attention is not None:
                weighed = ReducedAttentions(scope, setting, of=attention, into=into)
                return weighed, Statistics(weighed, weighed.reducers)
            if gradients:
                reduced = ReducedGradients(scope, setting, into=into)
                return reduced, Statistics(reduced, reduced.reducers)
            reduction = Reduction(scope, setting, into=into, stop=stop)
            return reduction, Statistics(reduction, reduction.reducers)
        keeps = into.n if isinstance(into, Ring) else 1
        function = None if isinstance(into, Ring) else into
        recorder: Recorder
        if attention is not None:
            recorder = Attentions(scope, setting, of=attention, into=function, keeps=keeps)
        else:
            kind = Gradients if gradients else Recorder
            recorder = kind(scope, setting, detach=detach, stop=stop, into=function, keeps=keeps)
        return recorder, (Recent if isinstance(into, Ring) else Activations)(recorder)

    return make
