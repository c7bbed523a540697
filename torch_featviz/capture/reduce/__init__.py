"""Statistics of a stream of tensors, in constant memory, on the tensors' own device: `into=` of a capture."""

from .histogram import Histogram
from .moments import Moments
from .reducer import Reducer, across_ranks
from .several import Several
from .topk import TopK

__all__ = ["Histogram", "Moments", "Reducer", "Several", "TopK", "across_ranks"]
