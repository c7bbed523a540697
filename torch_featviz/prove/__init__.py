"""Whether what this library says of pictures and captures is true of a given model: each claim, measured."""

from torch_featviz.rooms import callable_room

from .claims import Claim, Proof
from .proving import prove

__all__ = ["Claim", "Proof", "prove"]

callable_room(__name__, prove)
