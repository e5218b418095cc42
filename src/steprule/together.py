"""Several optimizers as one: another rule for each part of a model, behind torch.optim's interface."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_pre_hooks

from steprule.optimizer import Optimizer
from steprule.step.listed import Seen


class Together(torch.optim.Optimizer):
    """Steps several optimizers as one, steprule's or any others::

        optimizer = Together([
            steprule.AdamW(embeddings, lr=1e-3),
            steprule.SGD(others, lr=0.1, momentum=0.9),
        ])

    Schedulers see the parameter groups of all. Services that look at all gradients, such as clip, look at those of one
    optimizer.

    A step is taken by all or by none: what an optimizer of steprule's would refuse is found before the first of them
    steps. This cannot be asked of other optimizers, of those with step pre-hooks, and of classes that have a
    step method of their own. These step first, in the order given: if one raises an error, those before it have stepped.

    Args:
        optimizers: at least one. No parameter may be in two of them. None may be one that needs a closure, as
            torch.optim.LBFGS does.

    Attributes:
        optimizers: the optimizers, in the order given.

    Raises:
        ValueError: there is no optimizer, or a parameter is in two.
        TypeError: one is no optimizer, or needs a closure; or a setting is given, which is to be given to the optimizers.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], **settings: Any) -> None:
        for name, value in settings.items():
            raise TypeError(
                f"Together got {name}={value!r}: it has no settings of its own. Give {name} to its optimizers; each looks at its own "
                "parameters, and create_optimizer makes one optimizer of two rules, with one norm of all gradients"
            )
        if not isinstance(optimizers, Iterable):
            raise TypeError(f"optimizers must be a list of optimizers, not {optimizers!r}")
        self.optimizers = list(optimizers)
        self._seen: Seen | None = None
        self._is_due = False  # whether hooks of a step are running, for which other processes wait
        self._check_optimizers()
        self._is_made = False
        super().__init__(self.param_groups, {})
        self._is_made = True

    def _check_optimizers(self) -> None:
        """Raises for what is no optimizer, and for a parameter that is in two."""
        if not self.optimizers:
            raise ValueError("optimizers is empty: Together needs at least one")
        owner: dict[Tensor, int] = {}
        for number, optimizer in enumerate(self.optimizers):
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise TypeError(f"optimizers[{number}] must be an optimizer, not {optimizer!r}")
            closure = inspect.signature(optimizer.step).parameters.get("closure")
            if closure is not None and closure.default is closure.empty:
                raise TypeError(
                    f"optimizers[{number}] is {type(optimizer).__name__}, which evaluates the model several times a step by "
                    "the closure that it needs: step it by itself"
                )
            for param in (param for group in optimizer.param_groups for param in group["params"]):
                if owner.setdefault(param, number) != number:
                    raise ValueError(
                        f"a parameter of shape {tuple(param.shape)} is in optimizers[{owner[param]}] and in "
                        f"optimizers[{number}]; each must be in one"
                    )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers, in a new list. Settings may be changed in them; groups are added to one
        of `optimizers`."""
        return [group for one in self.optimizers for group in one.param_groups]

    @param_groups.setter
    def param_groups(self, _: Any) -> None:
        self._refuse("param_groups")  # but for the list that torch.optim's constructor begins with

    @property
    def state(self) -> Any:
        """The states of all optimizers: what is read and written here is read and written there."""
        return _States(self.optimizers)

    @state.setter
    def state(self, _: Any) -> None:
        self._refuse("state")

    @property
    def cuda_graph(self) -> Any:
        """Its optimizers', one after another; each is set by itself."""
        return [getattr(one, "cuda_graph", False) for one in self.optimizers]

    @cuda_graph.setter
    def cuda_graph(self, _: Any) -> None:
        self._refuse("cuda_graph")

    def _refuse(self, name: str) -> None:
        if self._is_made:
            raise AttributeError(
                f"the {name} of a Together belong to its optimizers: set optimizers[0].{name} and so on, or change what "
                "is in them"
            )

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        self._is_due = False
        closure = _closure(*args, **kwargs)
        loss = None
        if closure is not None:
            kwargs = {}
            with torch.enable_grad():
                loss = closure()
        if self._seen is None or not self._seen.holds(self.param_groups):
            self._check_optimizers()
            self._seen = Seen(self.param_groups)
        # closure=None is torch.distributed.checkpoint's way to ask for states, with an lr that looking at schedules would set
        may_ask = kwargs.get("closure", self) is None
        every = self.optimizers
        if len(every) > 1 and not (may_ask and any([one._steps.only_asks_for_states() for one in _all_of(every)])):
            _ask(every)
        ordered = sorted(every, key=_is_sure)
        for number, optimizer in enumerate(ordered, 1):
            try:
                optimizer.step(**kwargs)
            except Exception:
                for later in ordered[number:]:  # which other processes come to
                    _tell(later)
                raise
        return loss

    _hooked_step = torch.optim.Optimizer.profile_hook_step(_step)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Takes a step of each optimizer, or of none if one of steprule's refuses it.

        Args:
            closure: evaluates the model again, calls backward and returns the loss. It is called once, before all steps.

        Returns:
            What closure returned, or None.
        """
        if type(self).step is not Together.step:  # whose hooks have run
            return self._step(*args, **kwargs)
        self._is_due = True
        try:
            return self._hooked_step(*args, **kwargs)
        except Exception:
            if self._is_due:
                _tell(self)
            raise

    step.hooked = True  # type: ignore[attr-defined]  # it runs them itself

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients of all parameters."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def train(self) -> None:
        """Calls train() of the optimizers that have it, such as ScheduleFreeAdamW."""
        self._tell("train")

    def eval(self) -> None:
        """Calls eval() of the optimizers that have it."""
        self._tell("eval")

    def _tell(self, what: str) -> None:
        for optimizer in self.optimizers:
            if hasattr(optimizer, what):
                getattr(optimizer, what)()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Not here: add it to one of `optimizers`.

        Raises:
            TypeError: always, but for torch.optim's constructor.
        """
        if self._is_made:
            raise TypeError("Together takes no param_group: add it to one of its optimizers")

    def state_dict(self) -> dict[str, Any]:
        """The states and groups of all, as torch.optim's: parameters are numbered through.

        State that belongs to no parameter has the key (number of the optimizer, its key there).
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        saved: dict[str, Any] = {"state": {}, "param_groups": []}
        for place, optimizer in enumerate(self.optimizers):
            own = optimizer.state_dict()
            first = sum(len(group["params"]) for group in saved["param_groups"])
            numbers = {old: old + first for group in own["param_groups"] for old in group["params"]}
            saved["state"] |= {numbers.get(key, (place, key)): state for key, state in own["state"].items()}
            saved["param_groups"] += [
                {**group, "params": [numbers[old] for old in group["params"]]} for group in own["param_groups"]
            ]
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, saved)
            saved = saved if changed is None else changed
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned.

        Raises:
            ValueError: it is of other optimizers; nothing has changed.
        """
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        saved = self._split(state_dict)
        before = [optimizer.state_dict() for optimizer in self.optimizers]
        done: list[int] = []
        try:
            for number, (optimizer, own) in enumerate(zip(self.optimizers, saved, strict=True)):
                optimizer.load_state_dict(own)
                done.append(number)
        except Exception:
            for number in done:
                self.optimizers[number].load_state_dict(before[number])
            raise
        for told in self._optimizer_load_state_dict_post_hooks.values():
            told(self)

    def _split(self, state_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """What each of the optimizers has in a state dict of all."""
        for key in ("param_groups", "state"):
            if key not in state_dict:
                raise ValueError(f"state_dict is not that of a Together: it has no {key!r}")
        groups = list(state_dict["param_groups"])
        sizes = [len(optimizer.param_groups) for optimizer in self.optimizers]
        if len(groups) != sum(sizes):
            raise ValueError(f"state_dict holds {len(groups)} groups where there are {sum(sizes)}")
        parts: list[dict[str, Any]] = []
        home: dict[str, int] = {}  # the optimizer of each number, as a text, which JSON has as keys
        for place, size in enumerate(sizes):
            own, groups = groups[:size], groups[size:]
            home |= {str(number): place for group in own for number in group["params"]}
            parts.append({"state": {}, "param_groups": own})
        for key, state in state_dict["state"].items():
            if str(key) in home:
                parts[home[str(key)]]["state"][key] = state
            elif isinstance(key, tuple) and len(key) == 2 and key[0] in range(len(sizes)):
                parts[key[0]]["state"][key[1]] = state
            else:
                raise ValueError(
                    f"state_dict holds state of {key!r}, which is the number of no parameter: state that belongs to none has "
                    "(number of the optimizer, key) as its key"
                )
        return parts

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "optimizers": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        once = ("state", "param_groups")  # of the optimizers, which have them
        super().__setstate__({name: value for name, value in state.items() if name not in once})
        self._seen, self._is_made, self._is_due = None, True, False


def _closure(closure: Callable[[], Any] | None = None) -> Callable[[], Any] | None:
    return closure


class _States(MutableMapping[Any, Any]):
    """The states of several optimizers: each is read, made and deleted in the one that has its parameter."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers

    def _home(self, key: Any) -> Any:
        for one in self._optimizers:
            if key in one.state:
                return one.state
        for one in self._optimizers:
            if any(key is param for group in one.param_groups for param in group["params"]):
                return one.state
        shown = f"a parameter of shape {tuple(key.shape)}" if isinstance(key, Tensor) else repr(key)
        raise KeyError(f"none of these optimizers has {shown}: its state is to be put into the state of one of them")

    def __getitem__(self, key: Any) -> Any:
        return self._home(key)[key]

    def get(self, key: Any, default: Any = None) -> Any:
        """As torch.optim's: a state that was not there is not made."""
        if key in self:
            return self[key]
        return default

    def __setitem__(self, key: Any, state: Any) -> None:
        self._home(key)[key] = state

    def __delitem__(self, key: Any) -> None:
        del self._home(key)[key]

    def __contains__(self, key: Any) -> bool:
        return any(key in one.state for one in self._optimizers)

    def __iter__(self) -> Iterator[Any]:
        return (key for one in self._optimizers for key in one.state)

    def __len__(self) -> int:
        return sum(len(one.state) for one in self._optimizers)

    def __repr__(self) -> str:
        return repr(dict(self))


def _can_be_asked(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer is known to refuse before its step what it refuses."""
    if isinstance(optimizer, Together):
        is_plain = inspect.unwrap(type(optimizer).step) is inspect.unwrap(Together.step)
        return is_plain and all(map(_can_be_asked, optimizer.optimizers)) and not optimizer._optimizer_step_pre_hooks
    return (
        isinstance(optimizer, Optimizer)
        and type(optimizer).step is Optimizer.step
        and not optimizer._optimizer_step_pre_hooks  # which may mend what would be refused
        and not _global_optimizer_pre_hooks
    )


def _is_sure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it can be asked in all processes: they take the steps in one order, also where one of them has a hook for itself."""
    return _can_be_asked(optimizer) and all([one._steps.agreement.is_sure for one in _all_of([optimizer])])


def _tell(optimizer: torch.optim.Optimizer) -> None:
    """Tells other processes, who wait in the optimizer's next step for this one, that it does not take it."""
    if isinstance(optimizer, Optimizer):
        optimizer._steps.agreement.tell()
    elif isinstance(optimizer, Together) and len(optimizer.optimizers) == 1:
        _tell(optimizer.optimizers[0])
    elif isinstance(optimizer, Together):
        with contextlib.suppress(Exception):
            _ask(optimizer.optimizers, RuntimeError("a step has failed"))


def _ask(optimizers: Sequence[torch.optim.Optimizer], failed: Exception | None = None) -> None:
    """Raises what a step of one of them would refuse, here or in a process that would wait for this one; nothing has changed.

    Args:
        optimizers: all, in the same order in all processes.
        failed: why this process does not take the step. Default: it takes it, as far as is known.
    """
    every = [(one._steps.agreement, _can_be_asked(one)) for one in _all_of(optimizers)]
    ordered = sorted(optimizers, key=_can_be_asked)
    waits = any([one.waits for one, _ in every])
    try:
        for optimizer in ordered if waits else ordered[1:]:  # when the first refuses, nothing has changed
            _check_step(optimizer)
    except Exception as error:
        failed = failed or error
    for agreement, can_be_asked in every if waits else ():  # which all processes do
        try:
            agreement.ask(failed is not None, compares=can_be_asked)
        except RuntimeError as error:
            failed = failed or error
    if failed is not None:
        raise failed


def _all_of(optimizers: Sequence[Any]) -> Iterator[Optimizer]:
    """Those of steprule's, also where they are in a Together in turn."""
    for one in optimizers:
        if isinstance(one, Together):
            yield from _all_of(one.optimizers)
        elif isinstance(one, Optimizer):
            yield one


def _check_step(optimizer: Any) -> None:
    """Raises what a step of the optimizer would refuse, if it can be asked; no parameter and no state has changed."""
    if not _can_be_asked(optimizer):
        return
    if isinstance(optimizer, Together):
        for one in optimizer.optimizers:
            _check_step(one)
        return
    optimizer._steps.check()
