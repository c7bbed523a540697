"""What a training that goes wrong looks like: rules that `Findings` asks, causes before their effects."""

from . import inputs, losses, outputs, trained, weights
from .rule import Memory, Rule, Seen, values_of

__all__ = ["KINDS", "RULES", "Memory", "Rule", "Seen", "values_of"]

RULES = (*trained.RULES, *inputs.RULES, *outputs.RULES, *weights.RULES, *losses.RULES)
KINDS = tuple(dict.fromkeys(("nonfinite", *(rule.kind for rule in RULES))))
