"""The images and patches that move each channel most: one pass over a data set, and a second over what it chose."""

from .patches import Patches
from .top import TopPatches, read_patches, top_patches

__all__ = ["Patches", "TopPatches", "read_patches", "top_patches"]
