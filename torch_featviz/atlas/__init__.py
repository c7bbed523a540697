"""One page on which a person walks through a network."""

from .atlas import Atlas, atlas

__all__ = ["Atlas", "atlas"]
