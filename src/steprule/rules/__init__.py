"""The formulas, one short file a family."""

from __future__ import annotations

from steprule.rule import Rule
from steprule.rules.adam import Adam, AdamW
from steprule.rules.rmsprop import RMSprop
from steprule.rules.sgd import SGD

RULES: dict[str, type[Rule]] = {"sgd": SGD, "rmsprop": RMSprop, "adam": Adam, "adamw": AdamW}
"""Every rule by the name that `steprule compare` and the tests know it by."""

__all__ = ["RULES", "SGD", "Adam", "AdamW", "RMSprop"]
