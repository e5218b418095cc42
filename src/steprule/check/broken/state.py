"""Faults in states and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from steprule.check.broken.correct import AdamW, Group, State
from steprule.check.broken.fault import fault


class Odd:
    """A class that torch.load(weights_only=True) does not know."""


@fault("state_dict_has_torchs_form", "pytorch_optimizer 4.1.0 (MADGRAD)")
class KeepsStatesByName(AdamW):
    """self.state has entries for things that are no parameters."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        super().update(param, grad, state, group)
        self.state["everything"]["step"] = state["step"]  # type: ignore[index]


@fault("resumes_exactly", "kron: state outside of state_dict")
class KeepsStateElsewhere(AdamW):
    """The first moment is in a dictionary of its own, which is not saved."""

    def moments(self, grad: torch.Tensor, state: State, group: Group) -> None:
        elsewhere = self.__dict__.setdefault("elsewhere", {})
        state["exp_avg"] = elsewhere.setdefault(id(state["exp_avg_sq"]), torch.zeros_like(state["exp_avg_sq"]))
        super().moments(grad, state, group)


@fault("resumes_exactly", "pytorch/pytorch#74556: PostLocalSGDOptimizer")
class CountsElsewhere(AdamW):
    """The count of steps is an attribute, which is not saved."""

    def corrections(self, step: int, group: Group) -> tuple[float, float]:
        self.taken = getattr(self, "taken", 0) + 1
        return super().corrections(self.taken, group)


@fault("resumes_from_a_file", "pytorch_optimizer 4.1.0 (SCION)")
class KeepsAnObject(AdamW):
    """A state is an object of a class of its own, which torch.load refuses unless it is told to trust the file."""

    def begin(self, param: torch.Tensor, state: State, group: Group) -> None:
        super().begin(param, state, group)
        state["plan"] = Odd()


@fault("resumes_parameters_without_states", "pytorch/pytorch#2647: Adam")
class LoadsStatesOfAll(AdamW):
    """Loading fails where a parameter has no states yet."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        for group in state_dict["param_groups"]:
            for number in group["params"] if state_dict["state"] else ():
                state_dict["state"][number]["step"]
        super().load_state_dict(state_dict)


@fault("resumes_by_distributed_checkpoint")
class AddsToTheStateDict(AdamW):
    """state_dict has a key beside "state" and "param_groups", which loading needs and other tools drop."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "format": 2}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        assert state_dict["format"] == 2
        super().load_state_dict(state_dict)


@fault("loads_by_keyword")
class LoadsByPosition(AdamW):
    """load_state_dict calls its argument otherwise than torch."""

    def load_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        super().load_state_dict(checkpoint)


@fault("loads_without_sharing", "torch.optim: the states of two optimizers loaded from one dict are the same tensors")
class SharesWhatItLoads(AdamW):
    """States are the tensors of the dict that is loaded, not copies."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        held = [param for group in self.param_groups for param in group["params"]]
        for number, state in state_dict["state"].items():
            self.state[held[number]].update(state)


@fault("restores_settings", "pytorch/xla#9164: only states are loaded")
class KeepsItsOwnLr(AdamW):
    """Loading keeps the settings that the optimizer was made with."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        kept = [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, settings in zip(self.param_groups, kept, strict=True):
            group.update(settings)


@fault("refuses_other_groups")
class LoadsAnything(AdamW):
    """Loading pairs parameters and states as far as both go."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            group.update({key: value for key, value in saved.items() if key != "params"})
        held = [param for group in self.param_groups for param in group["params"]]
        for param, state in zip(held, state_dict["state"].values(), strict=False):
            self.state[param] = {
                key: value.clone() if torch.is_tensor(value) else value for key, value in state.items()
            }


@fault("keeps_dtypes_of_states", "torch.optim.Optimizer.load_state_dict casts states to the parameter's dtype")
class CastsStates(AdamW):
    """Loading casts states to the parameter's dtype."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for param, state in self.state.items():
            for key, value in state.items():
                if torch.is_tensor(value):
                    state[key] = value.to(param.dtype)


@fault("counts_on", "torch.optim counts in float32")
class CountsInFloat32(AdamW):
    """The count of steps is a float32 tensor, which stays at 2**24."""

    def begin(self, param: torch.Tensor, state: State, group: Group) -> None:
        super().begin(param, state, group)
        state["step"] = torch.zeros(())

    def corrections(self, step: Any, group: Group) -> tuple[float, float]:
        return super().corrections(int(step), group)


@fault("counts_on", "pytorch/ao#4915, deepspeedai/DeepSpeed#8496")
class CountsInTheParametersDtype(AdamW):
    """The count of steps has the parameter's dtype, and stays at 256 in bfloat16."""

    def begin(self, param: torch.Tensor, state: State, group: Group) -> None:
        super().begin(param, state, group)
        state["step"] = torch.zeros((), dtype=torch.bfloat16) if param.dtype == torch.bfloat16 else 0

    def corrections(self, step: Any, group: Group) -> tuple[float, float]:
        return super().corrections(int(step), group)


@fault("saving_changes_nothing")
class RoundsWhatItSaves(AdamW):
    """state_dict rounds the states to bfloat16 in their place."""

    def state_dict(self) -> dict[str, Any]:
        for state in self.state.values():
            if state:
                state["exp_avg_sq"].copy_(state["exp_avg_sq"].bfloat16())
        return super().state_dict()


@fault("rests_at_lr_0")
class RefusesLr0(AdamW):
    """A step divides by lr."""

    def decayed(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        return super().decayed(param, group) * (group["lr"] / group["lr"])


@fault("resumes_in_one_that_has_stepped")
class KeepsTheStatesThatItHad(AdamW):
    """States are looked up once, so those that are loaded later have no effect."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        held = self.__dict__.setdefault("held", {})
        super().update(param, grad, held.setdefault(id(param), state), group)


@fault("restores_settings")
class LoadsOneLr(AdamW):
    """All groups get the lr of the first one that is loaded."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
