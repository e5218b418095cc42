"""The formulas, one short file a family."""

from __future__ import annotations

from steprule.rule import Rule
from steprule.rules.adagrad import MADGRAD, Adadelta, Adagrad, Rprop
from steprule.rules.adam import Adam, Adamax, AdamC, AdamW, NAdam, RAdam, SparseAdam
from steprule.rules.adam_variants import (
    ADOPT,
    MARS,
    AdaBelief,
    AdamAtan2,
    Adan,
    AdEMAMix,
    Grams,
    LaProp,
    StableAdamW,
    Yogi,
)
from steprule.rules.layerwise import LAMB, LARS, NovoGrad
from steprule.rules.parameter_free import DAdaptAdam, DoG, Prodigy
from steprule.rules.rmsprop import RMSprop
from steprule.rules.schedule_free import ScheduleFreeAdamW, ScheduleFreeRAdam, ScheduleFreeSGD
from steprule.rules.sgd import ASGD, SGD, Lion, Signum

_ALL: tuple[type[Rule], ...] = (
    SGD, RMSprop, Adam, AdamW, NAdam, RAdam, Adagrad, Adadelta, Adamax, ASGD, Rprop, SparseAdam,
    Lion, Signum, AdaBelief, Yogi, LaProp, ADOPT, AdEMAMix, Adan, AdamAtan2, Grams, AdamC, StableAdamW, MARS,
    MADGRAD, LARS, LAMB, NovoGrad, Prodigy, DAdaptAdam, DoG, ScheduleFreeSGD, ScheduleFreeAdamW, ScheduleFreeRAdam,
)  # fmt: skip
RULES: dict[str, type[Rule]] = {rule.__name__.lower(): rule for rule in _ALL}
"""Every rule by the name that the command line and the tests know it by: torch.optim's, then in families."""

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
    "MADGRAD",
    "MARS",
    "RULES",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamAtan2",
    "AdamC",
    "AdamW",
    "Adamax",
    "Adan",
    "DAdaptAdam",
    "DoG",
    "Grams",
    "LaProp",
    "Lion",
    "NAdam",
    "NovoGrad",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "Signum",
    "SparseAdam",
    "StableAdamW",
    "Yogi",
]
