"""See what a convolutional network has learnt: its kernels, its feature maps, and what it makes of an image."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what is here and in __all__ can be had; at run time it is fetched when first asked for
    from . import bench as bench
    from . import errors, zoo
    from .atlas import Atlas, atlas
    from .capture import (
        Activations,
        FeatureExtractor,
        FeatureTap,
        Histogram,
        Moments,
        NonFinite,
        Ring,
        ToCPU,
        TopK,
        capture,
        first_nonfinite,
        layer_names,
        shapes,
    )
    from .errors import FeatvizError
    from .explain import (
        Attribution,
        Faithfulness,
        ReceptiveField,
        TopPatches,
        attribute,
        deconvnet,
        faithfulness,
        receptive_field,
        top_patches,
    )
    from .picture import GridTiler, KernelNormalizer, Picture, Scale, normalize, overlay, tile, untile
    from .training import Monitor
    from .views import (
        attributions,
        confusion,
        curves,
        exemplars,
        feature_maps,
        kernels,
        overview,
        pixels,
        predictions,
        samples,
    )
    from .zoo import ModelCard, channel_stats

__version__ = "0.1.0"

__all__ = [
    "Activations",
    "Atlas",
    "Attribution",
    "Faithfulness",
    "FeatureExtractor",
    "FeatureTap",
    "FeatvizError",
    "GridTiler",
    "Histogram",
    "KernelNormalizer",
    "ModelCard",
    "Moments",
    "Monitor",
    "NonFinite",
    "Picture",
    "ReceptiveField",
    "Ring",
    "Scale",
    "ToCPU",
    "TopK",
    "TopPatches",
    "atlas",
    "attribute",
    "attributions",
    "capture",
    "channel_stats",
    "confusion",
    "curves",
    "deconvnet",
    "errors",
    "exemplars",
    "faithfulness",
    "feature_maps",
    "first_nonfinite",
    "kernels",
    "layer_names",
    "normalize",
    "overlay",
    "overview",
    "pixels",
    "predictions",
    "receptive_field",
    "samples",
    "shapes",
    "tile",
    "top_patches",
    "untile",
    "zoo",
]

# pytest imports this package at each start, for the plugin in it; nobody should wait for torch who does not use it.
_ROOMS = ("errors", "capture", "picture", "zoo", "explain", "views", "training", "atlas", "bench")

if not TYPE_CHECKING:  # a type checker would take any name for good

    def __getattr__(name: str) -> Any:
        if name in _ROOMS and name not in ("capture", "atlas"):  # of these names the functions are meant
            return import_module(f"{__name__}.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        for room in _ROOMS[:-1]:
            module = import_module(f"{__name__}.{room}")
            public = getattr(module, "__all__", vars(module))
            globals().update({each: getattr(module, each) for each in __all__ if each in public})
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing the room `capture` or `atlas` would put the room where the function of that name belongs."""

    def __setattr__(self, name: str, value: object) -> None:
        room = name in __all__ and isinstance(value, ModuleType)
        super().__setattr__(name, getattr(value, name, value) if room else value)


sys.modules[__name__].__class__ = _Package
