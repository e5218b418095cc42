"""The arguments of an optimizer: their names, defaults and checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from steprule.docstrings import PARAMS, arguments, class_docstring, states, texts_of, torch_class
from steprule.formats import STATE_FORMATS, WEIGHT_FORMATS
from steprule.names import did_you_mean
from steprule.rule import DECAYS, Rule, RuleError
from steprule.rules.options import OPTIONS
from steprule.services import Average, Telemetry
from steprule.services.accumulate import GRAD_FORMATS, Accumulator
from steprule.services.average import as_average
from steprule.services.clip import Clip, as_clip
from steprule.services.step import NONFINITE, StepServices
from steprule.settings import type_of
from steprule.step.listed import name_in
from steprule.tensors.across import ProcessGroup
from steprule.tensors.memory import HALF_DTYPES, dtype_name, find_shared
from steprule.tensors.state import FORMAT_OPTIONS

FLAGS: dict[str, Any] = {
    "foreach": None, "maximize": False, "capturable": False, "differentiable": False, "fused": None,
}  # fmt: skip
SERVICE_OPTIONS: dict[str, Any] = {
    "clip": None, "nonfinite": None, "average": None, "telemetry": None, "grads": None, "process_group": None,
}  # fmt: skip
ALL_OPTIONS = {**FORMAT_OPTIONS, **SERVICE_OPTIONS, **OPTIONS}

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
    "process_group": ProcessGroup | None,
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
    its, flags = rule.like_torch, flags_of(rule)
    by_position = its.positional.split() if its is not None else []
    by_name = its.keyword_only.split() if its is not None else []
    named_in = (
        ("flags", flags, FLAGS),
        ("positional", by_position, flags),
        ("keyword_only", by_name, rule.hyperparameters),
    )
    for what, given, known in named_in:
        for name in given:
            if name not in known:
                raise RuleError(
                    f"{rule.__name__}.like_torch: {what} names the unknown {name!r}; there are {', '.join(known) or 'none'}"
                )
    defaults = {**rule.hyperparameters, **_equal_defaults(rule)}
    ordered = [name for name in rule.hyperparameters if name not in by_name] + by_position
    named = [*(name for name in flags if name not in by_position), *by_name, *ALL_OPTIONS]
    types = {
        name: type_of(default, texts_of(rule, name), float | Tensor) for name, default in rule.hyperparameters.items()
    }
    types |= {name: _TYPES[name] for name in (*flags, *ALL_OPTIONS)}
    defaults |= {**{name: FLAGS[name] for name in flags}, **ALL_OPTIONS}
    kind = inspect.Parameter
    kinds = dict.fromkeys(ordered, kind.POSITIONAL_OR_KEYWORD) | dict.fromkeys(named, kind.KEYWORD_ONLY)
    parameters = [kind("params", kind.POSITIONAL_OR_KEYWORD, annotation=ParamsT)]
    parameters += [kind(n, one, default=defaults[n], annotation=types[n]) for n, one in kinds.items()]
    return inspect.Signature(parameters)


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


def refuse_attribute(name: str, rule: type[Rule]) -> NoReturn:
    """Raises for an attribute with the name of an argument, that would look like a setting and be none."""
    is_constant = name in (*SERVICE_OPTIONS, *OPTIONS) and name not in rule.hyperparameters
    remedy = (
        "is chosen when an optimizer is made: make another, and give it this one's state_dict()"
        if is_constant
        else f"is a setting of parameter groups: for group in optimizer.param_groups: group[{name!r}] = ..."
    )
    raise AttributeError(f"an attribute {name} would do nothing: {name} {remedy}")


def make_services(clip: Any, nonfinite: Any, average: Any, telemetry: Any) -> StepServices | None:
    """The services that a constructor's arguments ask for, or None."""
    if nonfinite not in (None, *NONFINITE):
        raise ValueError(f"Invalid nonfinite value: {nonfinite!r}{_hint(nonfinite, NONFINITE)}")
    if telemetry is not None and not isinstance(telemetry, Telemetry):
        try:
            telemetry = Telemetry(every=telemetry)
        except ValueError:
            raise ValueError(
                f"telemetry={telemetry!r} must be an int of 1 or more (record every so many steps), a "
                "steprule.services.Telemetry, or None"
            ) from None
    chosen = as_clip(clip), nonfinite, as_average(average), telemetry
    return StepServices(*chosen) if any(one is not None for one in chosen) else None


def make_accumulator(grads: Any) -> Accumulator | None:
    """What sums gradients as the constructor's grads asks for, or None."""
    if grads not in (None, *GRAD_FORMATS):
        raise ValueError(f"Invalid grads value: {grads!r}{_hint(grads, GRAD_FORMATS)}")
    if grads == "float32" and not hasattr(Tensor, "grad_dtype"):
        raise ValueError(
            'grads="float32" needs a torch whose tensors have grad_dtype; grads="32bit" does the same in any'
        )
    return Accumulator(grads) if grads is not None else None


def _hint(value: Any, choices: Sequence[str]) -> str:
    word = "" if isinstance(value, bool) else str(value)  # "True" is near to "raise"
    return did_you_mean(word, choices, 0.4, f"it can be {', '.join(map(repr, (None, *choices)))}")


def check_formats(settings: Mapping[str, Any]) -> None:
    """Raises for states and weights that name no format, and for a seed that is no integer in its range."""
    for name, choices in (("states", STATE_FORMATS), ("weights", WEIGHT_FORMATS)):
        value = settings.get(name)
        if value is not None and value not in choices:
            raise ValueError(f"Invalid {name} value: {value!r}{_hint(value, choices)}")
    seed = settings.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= 2**53:
        raise ValueError(f"Invalid seed value: {seed!r}; it must be an int from 0 to 2**53")


def check_clip(clip: Clip | None, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises for parameters that the clip does not take."""
    for group in groups:
        for index, param in enumerate(group["params"]):
            if clip is not None and not clip.axis and param.is_complex():
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


def check_halves(groups: Sequence[Mapping[str, Any]], accumulator: Accumulator | None) -> None:
    """Raises for what is for half-precision parameters if there are none."""
    wanted = [f"weights={group['weights']!r}" for group in groups if group.get("weights") is not None]
    wanted += [f"grads={accumulator.kind!r}"] if accumulator is not None else []
    if not wanted:
        return
    dtypes = {param.dtype for group in groups for param in group["params"]}
    if dtypes.isdisjoint(HALF_DTYPES):
        names = " or ".join(sorted(map(dtype_name, dtypes)))
        raise ValueError(f"{wanted[0]} is for bfloat16 and float16 parameters; these are all {names}")


def check_memory(groups: Sequence[dict[str, Any]]) -> None:
    """Raises for parameters that lie in the same memory. Later it is looked at whenever a plan is made."""
    trained: dict[int, tuple[str, Tensor]] = {}  # one may be listed twice
    for number, group in enumerate(groups):
        for index, param in enumerate(group["params"]):
            if param.requires_grad:
                trained.setdefault(id(param), (name_in(group, number, index), param))
    wrong = find_shared(list(trained.values()))
    if wrong is not None:
        raise ValueError(wrong)


def check_sparse_only(rule: type[Rule], number: int, params: Sequence[Tensor]) -> None:
    """Raises for parameters of a group that a rule of sparse gradients does not take."""
    sparse = [[number, index] for index, param in enumerate(params) if param.is_sparse]
    if sparse:
        raise ValueError(f"Sparse params at indices {sparse}: {rule.__name__} requires dense parameter tensors")
    wide = [[number, index] for index, param in enumerate(params) if param.is_complex()]
    if wide:
        raise ValueError(f"Complex params at indices {wide}: {rule.__name__} does not support complex parameters")


def docstring(rule: type[Rule]) -> str:
    """What a class says of itself."""
    name = torch_class(rule)
    example = [
        "import torch, steprule",
        "weight = torch.nn.Parameter(torch.ones(2, 3))",
        f"optimizer = {name}([weight])",
        "weight.grad = torch.ones(2, 3).to_sparse()" if rule.sparse_only else "weight.square().sum().backward()",
        "optimizer.step()",
    ]
    if rule.evaluated is not None:
        example.append("optimizer.eval()  # weight is its average until optimizer.train()")
    step = {"step": "the number of steps so far, a scalar tensor."} if rule.keeps_step else {}
    return class_docstring(
        rule,
        arguments(rule, signature_of(rule), PARAMS) + _MORE,
        {**step, **states(rule, _KINDS)},
        "optimizer.state[param]",
        example,
    )


_MORE = """
A hyperparameter may be a function of the step, which counts from 1.
help(steprule.Optimizer) says more of what all optimizers take.
"""
_KINDS = {
    "elements": "shape and dtype of the parameter, or as the argument states says",
    "scalar": "a scalar tensor of float64",
    "rows": "float32 of shape (rows, 1)",
    "cols": "float32 of shape (1, columns)",
    "left": "float32 of shape (rows, rows)",
    "right": "float32 of shape (columns, columns)",
    "step": "a scalar tensor",
}
