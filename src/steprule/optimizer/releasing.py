"""What gradient release (stepping in backward) asks of an optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parameter import is_lazy

from steprule.formats.parts import cuts_of, is_sharded
from steprule.optimizer.groups import Groups
from steprule.optimizer.parts import RELEASED
from steprule.optimizer.steps import Steps
from steprule.services.hooks import processes
from steprule.services.release import Release
from steprule.services.step import StepServices
from steprule.step.listed import list_all
from steprule.trace.tracing import couples, program_of


def release_gradients(groups: Groups, steps: Steps, model: torch.nn.Module) -> None:
    """Hooks a model's backward passes; see `Optimizer.release_gradients`."""
    _check(groups, model)
    core = groups.core
    services = core.services or StepServices(None, None, None, None)
    services.look()
    core.release = services.release = Release(services, model, steps.take_one, steps.look_before_release)
    core.services = services
    core.forget_plans(groups.groups)
    groups.watch()


def _check(groups: Groups, model: Any) -> None:
    """Raises for what cannot be stepped inside backward."""
    core = groups.core
    if core.release is not None:
        raise RuntimeError("release_gradients() was called before: gradients are released already")
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"release_gradients() takes the model whose backward passes it hooks, not {model!r}")
    if core.services is not None and core.services.nonfinite == "raise":
        raise ValueError(
            'nonfinite="raise" does not go with release_gradients(): by the time a gradient is found not to be finite, '
            'others have been used; nonfinite="skip" leaves its parameter alone, and with measure() all of them'
        )
    if core.in_graph:
        raise ValueError("release_gradients() does not go with cuda_graph=True: it steps parameters one by one")
    if core.across is not None:
        raise ValueError(
            "process_group=... does not go with release_gradients(): processes step other parameters inside backward, and none "
            "waits there for the others' norms and sums"
        )
    for group in groups.groups:
        if couples(core.rule, group):
            raise ValueError(
                f"{groups.name} does not go with release_gradients(): it needs a sum over all parameters before any of them is "
                "updated, and release_gradients() updates them one by one. Use it without release_gradients()"
            )
        if group.get("differentiable"):
            raise ValueError("differentiable=True does not go with release_gradients(), which drops gradients")
    is_averaged = isinstance(model, torch.nn.parallel.DistributedDataParallel)
    own = set(model.parameters())
    for number, group, index, param, _ in list_all(groups.groups):
        who = f"parameter {index} of group {number}"
        if program_of(core.rule, group).joins and cuts_of(param):
            raise ValueError(
                f"{RELEASED.format(groups.name)}, and {who} is a DTensor, of which other processes have parts"
            )
        if param not in own:
            raise ValueError(f"{who} is not one of the model that release_gradients() was given")
        if processes() > 1 and not is_averaged and not is_sharded(param):
            raise ValueError(
                f"release_gradients() cannot know when the gradient of {who} is complete in a run of several processes, since it is "
                "no DTensor and the model is no DistributedDataParallel: give it the DistributedDataParallel module, shard that "
                "parameter too, or step without release_gradients()"
            )
        if is_lazy(param):
            raise ValueError(
                f"{who} has no shape yet: run one forward pass before release_gradients(), which gives the parameters of "
                "lazy modules theirs"
            )
