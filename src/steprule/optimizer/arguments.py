"""The arguments of an optimizer: their names, defaults and checks."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from steprule.formats import STATE_FORMATS, WEIGHT_FORMATS
from steprule.rule import Rule
from steprule.rules.options import DECAYS, OPTIONS
from steprule.services import Average, Telemetry
from steprule.services.accumulate import GRAD_FORMATS, Accumulator
from steprule.services.average import as_average
from steprule.services.clip import Clip, ClipValue, as_clip
from steprule.services.step import NONFINITE, StepServices
from steprule.tensors.state import FORMAT_OPTIONS

FLAGS: dict[str, Any] = {
    "foreach": None, "maximize": False, "capturable": False, "differentiable": False, "fused": None,
}  # fmt: skip
SERVICE_OPTIONS: dict[str, Any] = {
    "clip": None, "nonfinite": None, "average": None, "telemetry": None, "grads": None,
}  # fmt: skip
ALL_OPTIONS = {**FORMAT_OPTIONS, **SERVICE_OPTIONS, **OPTIONS}
OPTION_DOCS = """
Arguments that all optimizers take, by name:
    maximize: follow the gradient upwards. Default: False.
    differentiable: let autograd pass through the step (slower). Default: False.
    foreach, fused, capturable: accepted for torch.optim's sake and kept in the groups; the engine is chosen by
        what the tensors are. fused=True, as there, refuses parameters that are not floating point.
    states: how states are kept: "float32", "bfloat16" or "8bit" (a code each and a base for every 128, in tensors
        whose rows have 32 or more; others keep float32). Default: the parameter's dtype.
    weights: how bfloat16 and float16 parameters are kept: "stochastic" (rounded up or down at random, so that small
        updates count on average), "24bit" or "32bit" (with an error-correction of 8 or 16 bits in the state, in
        place of a float32 master copy). Default: rounded to nearest, which loses small updates.
    seed: for random roundings, an int from 0 to 2**53; the same on every replica. Default: 0.
    clip: how gradients are clipped inside the step: a number, the largest norm of all together, or ClipNorm,
        ClipValue, ClipAdaptive or ClipQuantile from steprule.services. A group with "clip": False is left out.
        Gradients themselves stay as they are; `grad_norm` has their norm. Default: not at all.
    nonfinite: what happens if a gradient is not finite: "skip" the step, "zero" those elements, or "raise".
        Default: they spread, as in torch.optim.
    average: an exponential average of the weights: its decay, or an Average from steprule.services. Default: none.
    telemetry: gather norms and more every so many steps: an int, or a Telemetry from steprule.services.
        Default: never.
    grads: how gradients of bfloat16 and float16 parameters are summed over micro-batches: "float32", or "24bit" or
        "32bit" (with an error-correction beside param.grad). Default: in the parameter's dtype.
    decay: what weight_decay means: "coupled" (added to the gradient, L2), "decoupled" (times lr), "independent" (of
        lr), "corrected" (times lr**2 / max_lr) or "initial" (towards the first weights, times lr). Default: what the
        formula says.
    cautious: leave out the part of a step that goes up the gradient. Default: False.
    cautious_decay: decay a weight only in steps that bring it nearer to 0. Default: False.
    lookahead: after how many steps the weights go back to a slower copy that has moved lookahead_alpha (0.5) of the
        way to them; 0 for never. Default: 0.
"""

_literal: Any = Literal
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("foreach", "fused"), bool | None),
    **dict.fromkeys(("maximize", "capturable", "differentiable", "cautious", "cautious_decay"), bool),
    "states": _literal[STATE_FORMATS] | None,
    "weights": _literal[WEIGHT_FORMATS] | None,
    "seed": int,
    "clip": float | Clip | None,
    "nonfinite": _literal[NONFINITE] | None,
    "average": float | Average | None,
    "telemetry": int | Telemetry | None,
    "grads": _literal[GRAD_FORMATS] | None,
    "decay": _literal[tuple(DECAYS)] | None,
    "lookahead": int,
    "lookahead_alpha": float | Tensor | Callable[[int], float],
}


def is_torchs(rule: type[Rule]) -> bool:
    """Whether a rule stands in for a class of torch.optim."""
    return rule.like_torch is not None and hasattr(torch.optim, rule.__name__)


def flags_of(rule: type[Rule]) -> tuple[str, ...]:
    """The flags of torch.optim that a rule's optimizer takes."""
    return tuple(rule.like_torch.flags.split() if rule.like_torch is not None else FLAGS)


def signature_of(rule: type[Rule]) -> inspect.Signature:
    """The arguments of a rule's optimizer, as its users see them."""
    its = rule.like_torch
    by_position = its.positional.split() if its is not None else []
    by_name = its.keyword_only.split() if its is not None else []
    defaults = {**rule.hyperparameters, **_equal_defaults(rule)}
    flags = flags_of(rule)
    ordered = [name for name in rule.hyperparameters if name not in by_name] + by_position
    named = [*(name for name in flags if name not in by_position), *by_name, *ALL_OPTIONS]
    types = {name: _type_of(default) for name, default in rule.hyperparameters.items()}
    types |= {name: _TYPES[name] for name in (*flags, *ALL_OPTIONS)}
    defaults |= {**{name: FLAGS[name] for name in flags}, **ALL_OPTIONS}
    kind = inspect.Parameter
    kinds = dict.fromkeys(ordered, kind.POSITIONAL_OR_KEYWORD) | dict.fromkeys(named, kind.KEYWORD_ONLY)
    parameters = [kind("params", kind.POSITIONAL_OR_KEYWORD, annotation=ParamsT)]
    parameters += [kind(n, one, default=defaults[n], annotation=types[n]) for n, one in kinds.items()]
    return inspect.Signature(parameters)


def _type_of(default: Any) -> Any:
    """What a hyperparameter may be, seen from its default: any of them may be a function of the step."""
    if isinstance(default, bool):
        return bool | Callable[[int], bool]
    if isinstance(default, (int, float)):
        return float | Tensor | Callable[[int], float | Tensor]
    return Sequence[float | Tensor] | Callable[[int], Sequence[float | Tensor]] if isinstance(default, tuple) else Any


def is_elsewhere(value: Any) -> bool:
    """Whether a setting is in tensors of another device, which would have to be waited for."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(one, Tensor) and one.device.type != "cpu" for one in values)


def _equal_defaults(rule: type[Rule]) -> dict[str, Any]:
    """torch.optim's defaults for its rules where they are ours but for the type: 0 and not 0.0."""
    its = inspect.signature(getattr(torch.optim, rule.__name__)).parameters if is_torchs(rule) else {}
    return {
        name: its[name].default
        for name, value in rule.hyperparameters.items()
        if name in its and its[name].default == value
    }


def make_services(clip: Any, nonfinite: Any, average: Any, telemetry: Any) -> StepServices | None:
    """The services that a constructor's arguments ask for, or None."""
    if nonfinite not in (None, *NONFINITE):
        raise ValueError(f"Invalid nonfinite value: {nonfinite!r}; {_hint(nonfinite, NONFINITE)}")
    if telemetry is not None and not isinstance(telemetry, Telemetry):
        telemetry = Telemetry(every=telemetry)
    chosen = as_clip(clip), nonfinite, as_average(average), telemetry
    return StepServices(*chosen) if any(one is not None for one in chosen) else None


def make_accumulator(grads: Any) -> Accumulator | None:
    """What sums gradients as the constructor's grads asks for, or None."""
    if grads not in (None, *GRAD_FORMATS):
        raise ValueError(f"Invalid grads value: {grads!r}; {_hint(grads, GRAD_FORMATS)}")
    if grads == "float32" and not hasattr(Tensor, "grad_dtype"):
        raise ValueError(
            'grads="float32" needs a torch whose tensors have grad_dtype; grads="32bit" does the same in any'
        )
    return Accumulator(grads) if grads is not None else None


def _hint(value: Any, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value), choices, 1, 0.4)
    return f"did you mean {near[0]!r}?" if near else "it can be " + ", ".join(map(repr, (None, *choices)))


def check_formats(settings: Mapping[str, Any]) -> None:
    """Raises for formats that there are not, and for a seed that is none."""
    for name, choices in (("states", STATE_FORMATS), ("weights", WEIGHT_FORMATS)):
        value = settings.get(name)
        if value is not None and value not in choices:
            raise ValueError(f"Invalid {name} value: {value!r}; {_hint(value, choices)}")
    seed = settings.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= 2**53:
        raise ValueError(f"Invalid seed value: {seed!r}; it must be an int from 0 to 2**53")


def check_clip(clip: Clip | None, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises for parameters that the clip does not take."""
    for group in groups:
        for index, param in enumerate(group["params"]):
            if isinstance(clip, ClipValue) and param.is_complex():
                raise ValueError(f"clip={clip} does not take {param.dtype} (parameter {index} of its group)")


def check_tensors(settings: Mapping[str, Any], name: Literal["lr", "betas"]) -> None:
    """Raises for lr or betas as tensors where torch.optim's Adam does."""
    unsupported = settings.get("foreach") and not settings.get("capturable")
    if name == "lr" and isinstance(settings.get("lr"), Tensor) and unsupported:
        raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
    if name == "betas" and "betas" in settings:
        betas = settings["betas"]
        if not (all(isinstance(b, float) for b in betas) or all(isinstance(b, Tensor) for b in betas)):
            raise ValueError("betas must be either both floats or both Tensors")
        if isinstance(betas[0], Tensor) and unsupported:
            raise ValueError("betas[0] as a Tensor is not supported for capturable=False and foreach=True")


def check_sparse_only(rule: type[Rule], number: int, params: Sequence[Tensor]) -> None:
    """Raises for parameters of a group that a rule of sparse gradients does not take."""
    sparse = [[number, index] for index, param in enumerate(params) if param.is_sparse]
    if sparse:
        raise ValueError(f"Sparse params at indices {sparse}: {rule.__name__} requires dense parameter tensors")
    wide = [[number, index] for index, param in enumerate(params) if param.is_complex()]
    if wide:
        raise ValueError(f"Complex params at indices {wide}: {rule.__name__} does not support complex parameters")


def docstring(rule: type[Rule]) -> str:
    """What a class says of itself: what its rule does, and its own arguments."""
    lines = [inspect.cleandoc(rule.__doc__ or rule.__name__), "", "Args:"]
    lines.append("    params: parameters, (name, parameter) pairs, or dicts of those with settings of their own.")
    for name, default in rule.hyperparameters.items():
        lines.append(f"    {name}: {_HYPER_DOCS.get(name, 'see the formula')}. Default: {default}.")
    lines.append(f"    {', '.join(flags_of(rule))}: as in torch.optim.")
    lines.append("    states, weights, seed, grads: how states, weights and sums of gradients are kept.")
    lines.append("    clip, nonfinite, average, telemetry: what else happens in a step.")
    lines.append(f"    {', '.join(OPTIONS)}: what goes around the formula.")
    lines += ["", "help(steprule.Optimizer) has those that all optimizers take in full.", ""]
    return "\n".join([*lines, "Raises:", "    ValueError: a hyperparameter is out of range.", ""])


_HYPER_DOCS = {
    "lr": "learning rate, a float or a 1-element tensor, at least 0",
    "momentum": "share of the buffer that a step keeps, at least 0",
    "dampening": "share of the gradient that is kept out of the buffer",
    "weight_decay": "weight decay, at least 0",
    "nesterov": "Nesterov's momentum; needs momentum and no dampening",
    "alpha": "beta of the mean square, at least 0",
    "eps": "added to the denominator, at least 0",
    "centered": "divide by the standard deviation instead of the root mean square",
    "betas": "betas of the mean and the mean square, each in [0, 1)",
    "amsgrad": "divide by the largest mean square so far",
    "decoupled_weight_decay": "decay as AdamW does",
}
