"""The images and patches that move each channel most: one pass over a data set, and a second over what it chose."""

from .top import Patches, TopPatches, top_patches

__all__ = ["Patches", "TopPatches", "top_patches"]
