"""What is chosen by name. Torch takes seconds to import: a name that there is not is told without it."""

from __future__ import annotations

from difflib import get_close_matches

from .errors import OptionError

METHODS = (  # of attribution
    *("saliency", "input_x_gradient", "integrated_gradients", "smoothgrad", "deep_lift", "gradient_shap"),
    *("guided_backprop", "deconvolution", "occlusion", "feature_ablation", "lrp"),
    *("layer_activation", "gradcam", "hirescam", "layercam", "guided_gradcam"),
)
PROJECTIONS = {"deconvnet": "deconvnet", "guided_backprop": "guided backpropagation"}  # options, and in words
MODELS = (
    *("filters", "xo", "xo_deep", "xo_nopool", "xo_wide", "cifar_mlp", "cifar_cnn", "cifar_cnn_3", "cifar_cnn_large"),
    *("alexnet", "efficientnet_lite0"),
)
FIGURES = "samples.jsonl"  # in a folder that a Monitor writes to, a line a sample
DEMO = "featviz-demo"  # where `featviz demo` writes unless it is told another folder
DARK = ("viridis", "magma", "cividis", "gray", "plasma", "bone", "Greys", "RdPu")  # colour maps, by what stands clear
BRIGHT = ("Blues", "Greens", "Purples", "Reds", "BuGn", "GnBu", "OrRd", "PuBu", "YlGnBu")
SEQUENTIAL = tuple(name + end for end in ("", "_r") for name in (*DARK, *BRIGHT))
DIVERGING = ("RdBu_r", "PuOr_r", "RdBu", "PuOr")
_RAINBOWS = ("jet", "rainbow", "gist_rainbow", "hsv", "turbo", "nipy_spectral", "gist_ncar", "Spectral")
_HOUSES = ("torchvision:", "timm:")  # that publish models of their own


def check_method(name: str) -> None:
    """Whether there is such a method of attribution.

    Raises:
        OptionError: there is none.
    """
    if not isinstance(name, str):
        raise OptionError(f"method is one name, got {name!r:.80}; attributions(methods=[...]) draws several.")
    if name not in METHODS:
        raise OptionError(f"no method {name!r}; there are {', '.join(METHODS)}.")


def check_cmap(name: str) -> None:
    """Whether there is such a colour map.

    Raises:
        OptionError: there is none; the nearest names are told, of a rainbow why it is none.
    """
    if name in SEQUENTIAL or name in DIVERGING:
        return
    rainbow = name.removesuffix("_r") in _RAINBOWS
    near = ", ".join(map(repr, get_close_matches(name, (*SEQUENTIAL, *DIVERGING), 3, 0.6)))
    why = (
        "its colours are not ordered by lightness, so it shows edges that the data do not have; "
        if rainbow
        else f"close: {near}; " * bool(near)
    )
    raise OptionError(
        f"no colour map {name!r} here: {why}choose {', '.join((*DARK, *BRIGHT))} for amounts, "
        f"{' or '.join(DIVERGING[2:])} for signed values; '_r' turns each round."
    )


def check_model(name: str) -> None:
    """Whether there is a model of that name, as far as is known here.

    Raises:
        OptionError: there is none; the nearest names are told.
    """
    if name in MODELS or (name.startswith(_HOUSES) and name not in _HOUSES):
        return
    close = ", ".join(map(repr, get_close_matches(name, MODELS, 3, 0.4)))
    raise OptionError(
        f"no model {name!r}; close: {close or 'none'}. There are {', '.join(MODELS)}, torchvision:NAME and timm:NAME."
    )


def is_file(source: str) -> bool:
    """Whether a model's name is that of a Python file, `net.py` or `net.py:build`."""
    return source.endswith(".py") or ".py:" in source
