"""How an optimizer comes to be: from the arguments of its constructor to what it is made of, and what is set later."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steprule.engine.gpu_graph import wrong_devices
from steprule.optimizer.arguments import (
    SERVICE_OPTIONS,
    check_clip,
    check_halves,
    check_memory,
    make_accumulator,
    make_services,
)
from steprule.optimizer.core import Core
from steprule.optimizer.groups import Groups
from steprule.optimizer.parts import check_spread
from steprule.optimizer.schedules import Schedules
from steprule.rule import Rule
from steprule.rules.options import OPTIONS, seen_by
from steprule.services.clip import as_clip
from steprule.services.step import StepServices
from steprule.settings import check_names
from steprule.tensors.across import Across, of_zero
from steprule.tensors.state import FORMAT_OPTIONS
from steprule.trace.tracing import check_formula, trace


def bind(
    name: str, rule: type[Rule], signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """A value for each argument but params."""
    check_names(name, kwargs, signature.parameters)
    bound = signature.bind(None, *args, **kwargs)
    bound.apply_defaults()
    del bound.arguments["params"]
    settings = dict(bound.arguments)
    its = rule.like_torch
    if its is not None and its.tensor_betas and isinstance(settings["betas"], (tuple, list)):
        settings["betas"] = tuple(b.squeeze() if isinstance(b, Tensor) else b for b in settings["betas"])
    return settings


def check_params(params: Any) -> None:
    """Raises for a model, or its method, in place of its parameters."""
    if isinstance(params, torch.nn.Module) or isinstance(getattr(params, "__self__", None), torch.nn.Module):
        raise TypeError(f"params must be parameters, such as model.parameters(), not {type(params).__name__}")


def begin(groups: Groups, settings: dict[str, Any]) -> tuple[Core, dict[str, Any]]:
    """What an optimizer has for itself, and torch.optim's defaults.

    Args:
        groups: the optimizer's.
        settings: a value for each argument.

    Raises:
        ValueError: a value makes no sense, or not beside the others.
        TypeError: it is of the wrong kind.
    """
    functions = groups.take_functions(settings, calls=0)
    chosen = {name: settings.pop(name) for name in SERVICE_OPTIONS}
    options = {name: settings.pop(name) for name in OPTIONS}
    given = {**chosen, **options}
    options = seen_by(options, settings)
    core = Core(groups.base, options)
    core.schedules = Schedules(functions) if functions else None
    settings |= {name: options[name] for name in core.rule.hyperparameters if name in OPTIONS}
    core.accumulator = make_accumulator(chosen.pop("grads"))
    core.across = make_across(chosen.pop("process_group"))
    if core.across is not None and core.across.has_model:
        core.arguments = given
    core.services = make_services(**chosen)
    groups.check(settings, core)
    if all(settings[name] == default for name, default in FORMAT_OPTIONS.items()):
        for name in FORMAT_OPTIONS:  # as absent as in torch.optim
            del settings[name]
    return core, {**settings, **groups.fixed}


def finish(groups: Groups) -> None:
    """Looks at the parameters once they are there.

    Raises:
        RuleError: the formula cannot be compiled.
        ValueError: parameters share memory, or there are none that an argument is for.
    """
    core = groups.core
    core.is_made = True
    for group in groups.groups:
        trace(core.rule.chosen(group), group)
        check_formula(groups.base.chosen(group), group)
    check_memory(groups.groups)
    check_spread(core, groups.groups)
    if core.across is None:  # others may have what an argument is for
        check_halves(groups.groups, core.accumulator)


def make_across(group: Any) -> Across | None:
    """What parameters are spread over: the group that was given, or that of a ZeroRedundancyOptimizer that asks for this one."""
    if group is not None:
        return Across(group)
    group = of_zero()
    return Across(group, has_model=True) if group is not None else None


def set_cuda_graph(groups: Groups, value: bool) -> None:
    """Has steps on a GPU replayed by CUDA graphs from now on, or not.

    Raises:
        TypeError: it is no bool.
        ValueError: gradients are released, or parameters are not on one GPU.
    """
    core = groups.core
    if not isinstance(value, bool):
        raise TypeError(f"cuda_graph must be True or False, not {value!r}")
    if value and core.release is not None:
        raise ValueError("cuda_graph=True does not go with release_gradients(): it steps parameters one by one")
    devices = {param.device for group in groups.groups for param in group["params"]}
    if value and devices and (wrong := wrong_devices(devices)) is not None:
        raise ValueError(f"cuda_graph=True: {wrong}; move the model there first, or leave it out")
    core.in_graph = value
    core.forget_plans(groups.groups)


def set_process_group(groups: Groups, group: Any) -> None:
    """Another process group from now on, or none; see the argument of the same name.

    Raises:
        TypeError: it is none.
        ValueError: it does not go with something else.
    """
    core = groups.core
    before, core.across = core.across, Across(group) if group is not None else None
    try:
        if core.release is not None:
            raise ValueError("process_group does not go with release_gradients(), which has been called")
        for number in range(len(groups.groups)):
            groups.check_parameters(number)
        check_spread(core, groups.groups)
    except Exception:
        core.across = before
        raise
    core.forget_plans(groups.groups)


def set_clip(groups: Groups, value: Any) -> None:
    """Another way to clip from now on; see `Optimizer.clip`."""
    core, wanted = groups.core, as_clip(value)
    if core.services is not None:
        check_clip(wanted, groups.groups)
        core.services.set_clip(wanted)
    elif wanted is not None:
        core.services = StepServices(wanted, None, None, None)
        try:
            for number in range(len(groups.groups)):
                groups.check_parameters(number)
        except Exception:
            core.services = None
            raise
    core.forget_plans(groups.groups)
