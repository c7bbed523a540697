"""Top-activating images and patches per channel: one pass over a data set, then a second over the chosen images."""

from .patches import Patches
from .top import TopPatches, read_patches, top_patches

__all__ = ["Patches", "TopPatches", "read_patches", "top_patches"]
