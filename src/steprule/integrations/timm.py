"""timm: its registry of optimizers, and what its models say of their parameters."""

from __future__ import annotations

import inspect
from typing import Any

from timm.models import group_parameters
from timm.optim import OptimInfo
from timm.optim._optim_factory import default_registry

from steprule import optimizer
from steprule.rules import OWN

__all__ = ["layers", "register"]


def register(prefix: str = "steprule-") -> list[str]:
    """Enters the optimizers into timm's registry, so that its `create_optimizer_v2` and training scripts make them by name::

        from steprule.integrations.timm import register

        register()
        optimizer = timm.optim.create_optimizer_v2(model, "steprule-adamw", lr=1e-3, weight_decay=0.05, clip=1.0)

    timm gives each a weight_decay, so those that take none (Rprop, Scion, SparseAdam) are left out.

    Args:
        prefix: what names begin with, without "_", at which timm cuts them. Default: "steprule-".

    Returns:
        The names.

    Raises:
        ValueError: prefix is empty, or has a "_".
    """
    if not isinstance(prefix, str) or not prefix or "_" in prefix:
        raise ValueError(
            f"prefix={prefix!r} must be a text without '_', such as 'steprule-': timm has names of its own"
        )
    names = []
    for name, rule in OWN.items():
        known = rule.hyperparameters
        if "weight_decay" not in known:
            continue
        cls = getattr(optimizer, rule.__name__)
        betas: Any = known.get("betas")
        names.append(f"{prefix}{name}".lower())
        default_registry.register(
            OptimInfo(
                name=names[-1],
                opt_class=cls,
                description=(inspect.getdoc(rule) or "").split("\n")[0],
                has_eps="eps" in known,
                has_momentum="momentum" in known,
                has_betas=betas is not None,
                num_betas=len(betas) if betas is not None else 2,
            )
        )
    return names


def layers(model: Any) -> dict[str, int]:
    """The layer of each parameter, as timm's own layer decay has it: by the model's `group_matcher`, counted from 0."""
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper has other names than the matcher
    found: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return found
