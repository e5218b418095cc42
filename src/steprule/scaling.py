"""Multipliers of learning rate, weight decay and eps by width and depth, as parameter groups."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from steprule.create import Split
from steprule.layers.roles import Overrides, Role, Roles, roles

__all__ = ["Transfer", "transfer"]

UPDATES: Mapping[str, tuple[Callable[[float, float], float], str]] = {
    "adam": (lambda out, into: 1 / into, "elements of about one size: Adam, AdamW, Lion, RMSprop, Adagrad"),
    "sgd": (lambda out, into: out / into, "as large as gradients: SGD with or without momentum"),
    "muon": (lambda out, into: math.sqrt(out / into), 'singular values of about 1: Muon with adjust_lr_fn="none"'),
}
"""By what a rule's updates are like: the multiplier of lr for a matrix with so many times the outputs and inputs, by the spectral
condition."""

RULES = {
    "spectral": ("adam", "sgd", "muon"),
    "mup": ("adam", "sgd"),
    "completep": ("adam",),
}
"""The parametrizations, and the updates that they say something of."""

_MATRICES = ("hidden", "convolution", "fused", "experts")
_LOOKED_UP = ("embedding", "position")
_ENDS = ("head", "router")


@dataclass(frozen=True, eq=False, repr=False)
class Transfer(Split):
    """Parameter groups with multipliers; printed, it is a table.

    Attributes:
        parts: the groups; an optimizer would write into them, so it is given `groups`.
        left_out: name and parameter of those that require no gradient.
        asks: what the model itself has to do, in sentences, since no optimizer can.
    """

    asks: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *self.asks])

    __repr__ = __str__


def transfer(
    model: nn.Module, *, base: nn.Module | None = None, base_width: float | None = None, width: float | None = None,
    base_depth: float | None = None, depth: float | None = None, rule: str = "spectral", updates: str = "adam",
    alpha: float = 1.0, no_decay: bool = True, overrides: Overrides = (), example: Any = None,
) -> Transfer:  # fmt: skip
    """Divides parameters into groups whose multipliers let a small model's learning rate, weight decay and eps serve a larger one::

        steprule.AdamW(transfer(model, base_width=256).groups, lr=3e-3, weight_decay=0.1)

    What the groups have is ``lr_mult``, ``weight_decay_mult`` and ``eps_mult``, which a step multiplies in; at the base's size all are 1.

    Args:
        model: the model to train.
        base: a model of the same parameters at the size where hyperparameters were tuned. Each parameter's shapes are compared. It may
            be on the meta device.
        base_width: in place of base the width that it has. All matrices are then taken to be this much narrower.
        width: the width of model. Default: the columns of its embedding or the inputs of its head, where most of the hidden
            matrices have it, too.
        base_depth, depth: for rule="completep", how many residual blocks the base has, and the model.
        rule: "spectral" (Yang et al. 2023, arXiv:2310.17813), "mup" (Yang et al. 2022, arXiv:2203.03466, table 8) or "completep"
            (Dey et al. 2025, arXiv:2505.01618). They differ in the head: "spectral" gives it a smaller lr, the others leave its lr
            and ask the model to multiply its output.
        updates: how large the optimizer's updates are. "adam": elements of about one size, "sgd": as gradients, "muon": singular values
            of about 1. Default: "adam".
        alpha: for "completep", the power of depth in the multiplier of residual branches, from 0.5 to 1. Residual blocks are the modules
            with a number that have modules of their own ("blocks.3.attn.weight").
        no_decay: whether biases and vectors have weight_decay=0. Default: True.
        overrides, example: as for `steprule.roles`, which says what each parameter is.

    Raises:
        ValueError: an argument makes no sense, shapes do not fit, or it is unknown how a parameter transfers; the message names it.
        TypeError: model or base is no module.
    """
    _check(base, base_width, width, base_depth, depth, rule, updates, alpha)
    table = roles(model, example=example, overrides=overrides)
    _check_known(table, rule)
    ratios = _by_base(table, base, overrides) if base is not None else _by_width(table, base_width, width)
    last = [ratios[row.name][1] for row in table if row.role in _ENDS[:1]]
    wide = max(last or [into for _, into in ratios.values()])
    deep = depth / base_depth if depth and base_depth else 1.0
    ends = {row.name.rpartition(".")[0] for row in table if row.role in _ENDS}
    parts: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in table:
        assert row.param is not None
        by_lr, decay, eps = _multipliers(row, ratios[row.name], (wide, deep, alpha), rule, updates, ends)
        is_vector = row.weight is None and sum(size > 1 for size in row.shape) < 2
        bare = no_decay and (is_vector or row.name.endswith("bias"))
        key = (row.role, by_lr, decay, eps, bare)
        if key not in parts:
            decays = {"weight_decay": 0.0} if bare else {"weight_decay_mult": decay}
            parts[key] = {"params": [], "name": row.role, "lr_mult": by_lr, "eps_mult": eps, **decays}
        parts[key]["params"].append((row.name, row.param))
    frozen = tuple((name, param) for name, param in model.named_parameters() if name in table.frozen)
    return Transfer(tuple(parts.values()), frozen, tuple(_asks(rule, wide, deep, alpha)))


def _multipliers(
    row: Role, ratio: tuple[float, float], scale: tuple[float, float, float], rule: str, updates: str, ends: set[str]
) -> tuple[float, float, float]:
    """Those of lr, weight_decay and eps."""
    (out, into), (wide, deep, alpha) = ratio, scale
    is_end = row.role in _ENDS or (row.role in ("vector", "norm", "scalar") and row.name.rpartition(".")[0] in ends)
    if rule != "spectral" and row.role == "head":
        into = 1 / into if updates == "sgd" else 1.0  # its output is multiplied by 1 / into
    by_width = UPDATES[updates][0](out, into)
    in_block = rule == "completep" and not is_end and row.role not in ("input", *_LOOKED_UP) and _is_numbered(row.name)
    by_depth = deep ** (alpha - 1) if in_block else 1.0
    if updates != "adam":
        return by_width * by_depth, 1 / by_width, 1.0
    # Gradients of all but what the loss sees directly become smaller with the width of the head.
    is_small = not is_end or (rule != "spectral" and row.role == "head")
    eps = (1 / wide if is_small else 1.0) * (deep**-alpha if in_block else 1.0)
    return by_width * by_depth, 1 / by_width, eps


def _is_numbered(name: str) -> bool:
    """Whether a parameter is in a module within a numbered one, as in the blocks of a list."""
    return any(part.isdigit() for part in name.split(".")[:-2])


def _by_width(table: Roles, base_width: Any, width: Any) -> dict[str, tuple[float, float]]:
    """How many times the outputs and inputs of the base each parameter has, where all widths grow alike."""
    times = (_width_of(table) if width is None else width) / base_width
    ends = {row.name.rpartition(".")[0] for row in table if row.role in _ENDS}
    known: dict[str, tuple[float, float]] = {
        **dict.fromkeys(_MATRICES, (times, times)),
        **dict.fromkeys(("input", *_LOOKED_UP, "norm", "vector", "depthwise"), (times, 1.0)),
        "row": (1.0, times),
        **dict.fromkeys(_ENDS, (1.0, times)),
    }
    return {
        row.name: (1.0, 1.0)
        if row.role == "vector" and row.name.rpartition(".")[0] in ends
        else known.get("row" if _is_row(row) else row.role, (1.0, 1.0))
        for row in table
    }


def _is_row(row: Role) -> bool:
    """Whether it is the weight of a layer inside with one output."""
    return row.role == "vector" and row.weight is not None and _sizes(row, row)[0][1] == 1


def _width_of(table: Roles) -> int:
    """The width of a model, which its embedding or head and most of its hidden matrices have."""
    found = {row.shape[-1] for row in table if row.role == "embedding"} or {
        row.shape[0 if "transpose" in str(row.weight) else 1] for row in table if row.role == "head" and row.weight
    }
    if len(found) != 1:
        raise ValueError(
            f"the width of model is not clear: its embedding or head has {sorted(found) or 'none'}; give width="
        )
    width = found.pop()
    hidden = [row for row in table if row.role in _MATRICES]
    others = [row for row in hidden if width not in {*row.shape, *(n for size in _sizes(row, row) for n in size[1:])}]
    if 2 * len(others) > len(hidden):
        raise ValueError(
            f"the width of model is not clear: its embedding or head has {width}, and {others[0].name!r} of shape "
            f"{others[0].shape} has not; give width="
        )
    return width


def _by_base(table: Roles, base: nn.Module, overrides: Overrides) -> dict[str, tuple[float, float]]:
    """The same, from the shapes of both."""
    others = {row.name: row for row in roles(base, overrides=overrides)}
    missing = [row.name for row in table if row.name not in others]
    if missing:
        raise ValueError(f"base has no parameter {missing[0]!r}, which model has: make both by the same function")
    found = {}
    for row in table:
        other = others[row.name]
        if len(other.shape) != len(row.shape):
            raise ValueError(f"{row.name!r} has the shape {row.shape} in model and {other.shape} in base")
        pairs = {(m / k, n / j) for (_, m, n), (_, k, j) in zip(_sizes(row, row), _sizes(other, row), strict=True)}
        if len(pairs) > 1:
            raise ValueError(
                f"the matrices in {row.name!r} grow differently, by {sorted(pairs)}: split them, or give base_width"
            )
        found[row.name] = pairs.pop()
    return found


def _sizes(row: Role, like: Role) -> list[tuple[int, int, int]]:
    """The matrices of a parameter as (count, outputs, inputs)."""
    if row.weight is not None and like.weight is not None:
        return row.weight.sizes(row.shape)
    if like.role in _LOOKED_UP or len(row.shape) < 2 or like.role in ("depthwise", "norm"):
        size = row.shape[-1] if like.role in _LOOKED_UP else math.prod(row.shape[:1])
        return [(1, size, 1)]
    return [(1, row.shape[0], math.prod(row.shape[1:]))]


def _check_known(table: Roles, rule: str) -> None:
    """Raises for parameters of which the rule says nothing."""
    unknown = {
        row.name: f"{row.why}; give it a role by overrides={{{row.name!r}: ...}}"
        for row in table
        if row.role == "other"
    }
    for row in table:
        if row.role == "router" and rule != "spectral":
            unknown[row.name] = f'{rule} says nothing of routers; rule="spectral" does'
        if row.role == "embedding" and row.why.endswith("the head has it too") and rule == "spectral":
            unknown[row.name] = 'an embedding and a head need two learning rates; rule="mup" and "completep" need one'
    if unknown:
        lines = "".join(f"\n  {name}: {why}" for name, why in unknown.items())
        raise ValueError(
            f"transfer does not know how {len(unknown)} parameter{'s' * (len(unknown) > 1)} transfer:{lines}"
        )


def _check(
    base: Any, base_width: Any, width: Any, base_depth: Any, depth: Any, rule: Any, updates: Any, alpha: Any
) -> None:
    """Raises for arguments that make no sense."""
    if (base is None) == (base_width is None):
        raise ValueError("transfer needs one of base, a model of the tuned size, and base_width, its width")
    if base is not None and width is not None:
        raise ValueError(f"width={width!r} goes with base_width; base has shapes of its own")
    for name, value in (("base_width", base_width), ("width", width), ("base_depth", base_depth), ("depth", depth)):
        if value is not None and not (_is_number(value) and 1 <= value <= sys.float_info.max):
            raise ValueError(f"Invalid {name} value: {value!r}; it must be a number of 1 or more")
    if rule not in [*RULES]:
        raise ValueError(f"Invalid rule value: {rule!r}; it can be {', '.join(map(repr, RULES))}")
    if updates not in RULES[rule]:
        raise ValueError(
            f"Invalid updates value: {updates!r}; with rule={rule!r} it can be {', '.join(map(repr, RULES[rule]))}"
        )
    if (base_depth is None) != (depth is None):
        raise ValueError(f"base_depth={base_depth!r} and depth={depth!r} go together")
    if rule != "completep" and (depth is not None or alpha != 1):
        raise ValueError(f'depth and alpha are for rule="completep", and rule={rule!r} does not look at depth')
    if not (_is_number(alpha) and 0.5 <= alpha <= 1):
        raise ValueError(f"Invalid alpha value: {alpha!r}; it must be from 0.5 to 1")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _asks(rule: str, wide: float, deep: float, alpha: float) -> Sequence[str]:
    """What the model has to do."""
    hidden = (
        "initialize hidden matrices with a variance in proportion to 1 / inputs, as torch.nn.Linear does, and divide q times k of "
        "attention by the size of a head, and not by its root, where that grows"
    )
    if rule == "spectral":
        return [f"The model has to: {hidden}, and the head with a standard deviation of 1 / inputs, or with zeros."]
    output = f"multiply the head's output, before its bias, by {1 / wide:g}, and initialize it as the base's head"
    branch = f", multiply what residual branches add by {deep**-alpha:g}" if rule == "completep" else ""
    return [f"The model has to: {hidden}; {output}{branch}."]
