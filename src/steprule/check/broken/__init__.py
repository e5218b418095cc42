"""Broken optimizers, each with one fault of a kind that was published, and which check is meant to find it."""

from steprule.check.broken import gradients, manners, matrices, numbers, state
from steprule.check.broken.fault import FAULTS, Fault, claimed

__all__ = ["FAULTS", "Fault", "claimed", "gradients", "manners", "matrices", "numbers", "state"]
