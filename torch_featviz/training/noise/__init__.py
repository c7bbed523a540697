"""The gradient noise scale: which batch size a training could still use."""

from .gradient import GradientNoise, NoiseState
from .scale import NoiseScale

__all__ = ["GradientNoise", "NoiseScale", "NoiseState"]
