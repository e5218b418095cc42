"""Optimizers compared on real training: what ``steprule compare`` runs."""

from steprule.compare.tasks import Task

__all__ = ["Task"]
