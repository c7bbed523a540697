"""See what a network has learnt: its kernels, its feature maps, its attention, and what it makes of an image."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what is here and in __all__ can be had; at run time it is fetched when first asked for
    from . import bench as bench
    from . import errors, zoo
    from .atlas import Atlas, atlas
    from .capture import (
        Activations,
        Attention,
        FeatureExtractor,
        FeatureTap,
        Histogram,
        Moments,
        Ring,
        ToCPU,
        TopK,
        capture,
    )
    from .comparison import Compared, Comparison, compare
    from .errors import FeatvizError
    from .explain import Attribution, Faithfulness, Verdict, attribute, deconvnet, faithfulness
    from .inspect import NonFinite, ReceptiveField, Summary, first_nonfinite, receptive_field, shapes, summary
    from .model import Layout, layer_names
    from .picture import GridTiler, KernelNormalizer, Picture, Scale, normalize, overlay, tile, untile
    from .prove import Claim, Proof, prove
    from .survey import TopPatches, top_patches
    from .training import Monitor
    from .views import (
        AttentionDistance,
        adversarial,
        attention,
        attention_distance,
        attributions,
        augmentations,
        confusion,
        curves,
        effective_field,
        exemplars,
        feature_maps,
        images,
        kernels,
        look,
        overview,
        pixels,
        predictions,
        projection,
        samples,
        segments,
        tokens,
    )
    from .zoo import ModelCard, augment, channel_stats, probabilities

__version__ = "0.1.0"

__all__ = [
    "Activations",
    "Atlas",
    "Attention",
    "AttentionDistance",
    "Attribution",
    "Claim",
    "Compared",
    "Comparison",
    "Faithfulness",
    "FeatureExtractor",
    "FeatureTap",
    "FeatvizError",
    "GridTiler",
    "Histogram",
    "KernelNormalizer",
    "Layout",
    "ModelCard",
    "Moments",
    "Monitor",
    "NonFinite",
    "Picture",
    "Proof",
    "ReceptiveField",
    "Ring",
    "Scale",
    "Summary",
    "ToCPU",
    "TopK",
    "TopPatches",
    "Verdict",
    "adversarial",
    "atlas",
    "attention",
    "attention_distance",
    "attribute",
    "attributions",
    "augment",
    "augmentations",
    "capture",
    "channel_stats",
    "compare",
    "confusion",
    "curves",
    "deconvnet",
    "effective_field",
    "errors",
    "exemplars",
    "faithfulness",
    "feature_maps",
    "first_nonfinite",
    "images",
    "kernels",
    "layer_names",
    "look",
    "normalize",
    "overlay",
    "overview",
    "pixels",
    "predictions",
    "probabilities",
    "projection",
    "prove",
    "receptive_field",
    "samples",
    "segments",
    "shapes",
    "summary",
    "tile",
    "tokens",
    "top_patches",
    "untile",
    "zoo",
]

# pytest imports this package at each start, for the plugin in it; nobody should wait for torch who does not use it.
_ROOMS = (
    *("errors", "model", "capture", "picture", "zoo", "inspect", "explain", "survey", "views", "training", "atlas"),
    *("comparison", "prove", "bench"),
)

if not TYPE_CHECKING:  # a type checker would take any name for good

    def __getattr__(name: str) -> Any:
        if name in _ROOMS:
            return import_module(f"{__name__}.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        for room in _ROOMS[:-1]:
            module = import_module(f"{__name__}.{room}")
            public = getattr(module, "__all__", vars(module))
            globals().update({key: getattr(module, key) for key in public if key in __all__ and key not in _ROOMS})
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
