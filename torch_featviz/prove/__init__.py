"""Whether what this library says of pictures and captures is true of a given model: each claim, measured."""

from .claims import Claim, Proof

__all__ = ["Claim", "Proof"]
