"""What steprule's attributes are called, apart from optimizers, and where they are from."""

from __future__ import annotations

HOME = {
    "optimizer": ("Optimizer",),
    "pieces": (
        "at_first",
        "atan2",
        "cbrt",
        "clip",
        "debias",
        "debiased_beta",
        "ema",
        "ema_sq",
        "exp",
        "floor",
        "l2",
        "log",
        "maximum",
        "mean",
        "minimum",
        "norm",
        "running_ema",
        "sign",
        "size",
        "sqrt",
        "total",
        "total_of_all",
        "where",
    ),
    "chains": ("chain",),
    "create": ("create_optimizer", "parameter_groups"),
    "together": ("Together",),
    "rule": ("Hyperparameter", "Rule", "RuleError", "State"),
}
"""Names by the module that has them."""

SUBMODULES = ("arrays", "catalog", "compare", "memory", "optimizer", "pieces", "rules", "services", "transforms")
