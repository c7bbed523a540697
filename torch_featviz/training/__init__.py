"""Watch a network while it learns: activations, gradients, updates, films, and findings in words."""

from typing import TYPE_CHECKING, Any

from torch_featviz.optional import needs

from .history import Bins, History, LayerFigures, ParameterFigures, Sample
from .monitor import Monitor
from .noise import NoiseScale
from .step import Step

if TYPE_CHECKING:
    from .huggingface import HFMonitor as HFMonitor
    from .ignite import attach_ignite as attach_ignite
    from .lightning import LightningMonitor as LightningMonitor

# Without the names below: a star import would import every trainer, or fail where one is missing.
__all__ = ["Bins", "History", "LayerFigures", "Monitor", "NoiseScale", "ParameterFigures", "Sample", "Step"]

_SHELLS = {  # where it is, and the extra that it needs
    "HFMonitor": ("huggingface", "transformers"),
    "LightningMonitor": ("lightning", "lightning"),
    "attach_ignite": ("ignite", "ignite"),
}

if not TYPE_CHECKING:  # a type checker would take any name for good

    def __getattr__(name: str) -> Any:
        if name not in _SHELLS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        room, extra = _SHELLS[name]
        return getattr(needs(f"{__name__}.{room}", name, f"torch_featviz[{extra}]"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_SHELLS})
