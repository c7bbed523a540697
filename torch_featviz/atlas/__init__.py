"""One page on which a person walks through a network."""

from torch_featviz.rooms import callable_room

from .atlas import Atlas, atlas

__all__ = ["Atlas", "atlas"]

callable_room(__name__, atlas)
