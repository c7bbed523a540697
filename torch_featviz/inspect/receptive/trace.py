"""A forward of a model, watched operator by operator: what each place of each tensor can see of the input."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torch_featviz.model.follow import Call, Follower, key_of

from .operators import follow
from .reach import Trace


class Tracer(Follower[Trace]):
    """While on, follows all that depends on `image`.

    Args:
        image: `b c ...`, what the model is about to be given.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.nothing = Trace.start(image.shape[2:])
        self.written: set[int] = set()
        self.put(image, self.nothing)

    def read(self, tensor: Tensor) -> Trace:
        """What `tensor` sees; everything, if that was lost on the way."""
        trace = self.known(tensor)
        return self.nothing.lost() if self.blind or trace is None else trace

    def follow(self, call: Call[Trace]) -> Sequence[Trace]:
        return follow(call)

    def known(self, tensor: Tensor) -> Trace | None:
        key = key_of(tensor)
        if key is None or key in self.traces:
            return None if key is None else self.traces[key]
        return self.nothing.lost() if key[0] in self.written else None

    def overwrite(self, tensor: Tensor, trace: Trace) -> None:
        """Of other views of the same memory nothing is known any longer."""
        here = key_of(tensor)
        if here is not None and self.traces.get(here) is not trace:
            self.written.add(here[0])
            for key in self.traces:
                if key[0] == here[0]:
                    self.traces[key] = trace.lost()
        self.put(tensor, trace)
