"""Attention weights captured from the attention that a network computes, whichever kernel computes it."""

from .asked import Attention, attention_asked
from .recorder import Attentions, ReducedAttentions

__all__ = ["Attention", "Attentions", "ReducedAttentions", "attention_asked"]
