"""Attention weights captured from the attention that a network computes, whichever kernel computes it."""

from .asked import Attention, Look, attention_asked
from .recorder import Attentions, ReducedAttentions

__all__ = ["Attention", "Attentions", "Look", "ReducedAttentions", "attention_asked"]
