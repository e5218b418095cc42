"""The front of NumPy arrays."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from steprule.arrays.arguments import at_step, docstring, signature_of, split
from steprule.arrays.checks import Array, as_grads, check_apart, check_param, count_of
from steprule.arrays.states import begin, kind_of
from steprule.arrays.whole import step_whole
from steprule.docstrings import ARRAYS
from steprule.engine.cpu import Kernel, available_threads
from steprule.engine.own import Planned
from steprule.engine.run import find_numbers
from steprule.names import name_of
from steprule.rule import Rule
from steprule.rules.options import OPTIONS, with_options
from steprule.settings import as_tuples, check_names, check_names_of, check_rule, constructor
from steprule.state import no_matrix
from steprule.trace.numbers import check_nan
from steprule.trace.tracing import check_formula, program_of, trace


class Optimizer:
    """Runs a rule over NumPy arrays.

    A rule becomes an optimizer by a subclass of one line: ``class Lion(arrays.Optimizer, rule=LionRule): ...``

    Args:
        params: arrays of float32, float64 or float16, changed in place by `step`.
        settings: the rule's hyperparameters, by name, each a value or a function of the step, which counts from 1; and the
            options decay, cautious, cautious_decay, lookahead and lookahead_alpha.

    Attributes:
        params: the arrays.
        settings (dict[str, Any]): hyperparameters by name, values or functions, read anew at every step: assign to change one.
        state: for each array a dict of its states, arrays like it, and its number of steps so far, ``step``.

    Raises:
        TypeError: params are not arrays of floats, or a setting is unknown.
        ValueError: a setting is out of range, or an array is read-only, given twice or in the memory of another.
    """

    rule: type[Rule]

    def __init_subclass__(cls, rule: type[Rule] | None = None) -> None:
        super().__init_subclass__()
        if rule is not None:
            check_rule(f"class {cls.__name__}(arrays.Optimizer, rule=...)", rule)
            check_names_of(rule, ("params", "settings", "state", "self", *OPTIONS))
            cls.rule = rule
            cls.__doc__ = cls.__doc__ or docstring(rule)
            if "__init__" not in vars(cls):
                cls.__init__ = constructor(cls, signature_of(rule), ARRAYS)  # type: ignore[method-assign]

    def __init__(self, params: Sequence[Array], *others: Any, **settings: Any) -> None:
        known = self.rule.hyperparameters
        if others:
            raise TypeError(f"{type(self).__name__} takes settings by name: {next(iter(known), 'name')}={others[0]!r}")
        self._options, self.settings = split(type(self).__name__, type(self).rule, settings)
        self.rule = with_options(type(self).rule, **self._options)
        self.settings |= {name: self._options[name] for name in self.rule.hyperparameters if name in OPTIONS}
        self._calls = 0
        now = self._settings_now()
        trace(self.rule, now)
        check_formula(type(self).rule, now)
        check_nan(self.rule, now)
        if isinstance(params, np.ndarray):
            raise TypeError("params must be a list of arrays, not one array")
        self.params: list[Array] = list(params)
        if not self.params:
            raise ValueError("params is empty: there is nothing to optimize")
        for index, param in enumerate(self.params):
            check_param(index, param)
            if any(param is other for other in self.params[:index]):
                raise ValueError(f"params[{index}] is given twice: leave it out here")
        check_apart([(f"params[{index}]", param) for index, param in enumerate(self.params)])
        self._check_matrices(now)
        self.state: list[dict[str, Any]] = [{"step": 0} for _ in self.params]

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses an attribute that would look like a setting and do nothing, unless a class has defined it."""
        if not hasattr(type(self), name):
            if name in type(self).rule.hyperparameters:
                raise AttributeError(f"an attribute {name} would do nothing: assign to settings[{name!r}]")
            if name in OPTIONS:
                raise AttributeError(
                    f"an attribute {name} would do nothing: {name} is chosen when an optimizer is made"
                )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        size = sum(param.size for param in self.params)
        count = f"{len(self.params)} array{'s' * (len(self.params) != 1)} of {size:,} element{'s' * (size != 1)}"
        shown = [
            f"{name}={name_of(value)}(step)" if callable(value) else f"{name}={value!r}"
            for name, value in self.settings.items()
        ]
        shown += [
            f"{name}={value!r}"
            for name, value in self._options.items()
            if value != OPTIONS[name] and name not in self.settings
        ]
        return f"{type(self).__name__}({', '.join([count, *shown])})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "rule"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.rule = with_options(type(self).rule, **self._options)

    def evaluated(self) -> list[Array]:
        """The weights to evaluate: copies of params, or of the averages that a rule such as ScheduleFreeAdamW's keeps."""
        formula = self.rule.evaluated
        if formula is None:
            return [param.copy() for param in self.params]
        names = inspect.signature(formula).parameters
        settings = {name: value for name, value in self._settings_now().items() if name in names}
        needed = [name for name in self.rule.states if name in names]
        return [
            np.asarray(formula(param, **{name: state[name] for name in needed}, **settings), param.dtype)
            if all(name in state for name in needed)
            else param.copy()
            for param, state in zip(self.params, self.state, strict=True)
        ]

    def step(self, grads: Sequence[Array | None]) -> None:
        """Takes one step.

        Args:
            grads: a gradient for each of params, of its shape and left untouched: an array, or a list of numbers. One of
                another dtype is converted to the parameter's. None leaves that array and its states as they are.

        Raises:
            ValueError: the number of gradients, a shape, a dtype or a setting does not match, or a parameter or a
                state has become one that cannot be stepped; nothing has changed.
            TypeError: a setting is unknown, or a parameter no array of floats; nothing has changed.
        """
        arrays = as_grads(self.params, grads)
        if len(self.state) != len(self.params):
            raise ValueError(
                f"there are {len(self.state)} states for {len(self.params)} params: state[i] is params[i]'s"
            )
        settings = self._settings_now()
        self._check_matrices(settings)
        names = tuple(filter(None, self.rule.states_for(settings)))
        written: list[tuple[str, Array]] = []
        read: list[tuple[str, Array, range]] = []
        for index, (param, grad, state) in enumerate(zip(self.params, arrays, self.state, strict=True)):
            if grad is not None:
                self._check_state(index, names)
                first = len(written)
                written.append((f"params[{index}]", param))
                written += [(f"the state {name} of params[{index}]", state[name]) for name in names if name in state]
                read.append((f"grads[{index}]", grad, range(first, len(written))))
        check_apart(written, read)
        self._take_step(settings, names, arrays)
        self._calls += 1

    def _check_matrices(self, settings: Mapping[str, Any]) -> None:
        """Raises for vectors, where the rule takes matrices."""
        if not program_of(self.rule, settings).takes_vectors:
            for index, param in enumerate(self.params):
                if param.ndim < 2:
                    raise ValueError(no_matrix(self.rule, f"params[{index}]", param.shape))

    def _take_step(self, settings: Mapping[str, Any], names: Sequence[str], grads: Sequence[Array | None]) -> None:
        """Takes a step that nothing speaks against, with these settings and states of these names."""
        if program_of(self.rule, settings).sees_matrix:
            step_whole(self.rule, self.params, grads, self.state, settings)
            return
        present = tuple(name for name in names if name in self.rule.tensor_states)
        buckets: dict[str, list[int]] = {}
        kernels = {}
        for index, grad in enumerate(grads):
            if grad is not None:
                dtype = self.params[index].dtype.name
                buckets.setdefault(dtype, []).append(index)
                if dtype not in kernels:
                    kernels[dtype] = Kernel.compiled(self.rule, settings, False, [dtype] * (2 + len(present)))
        for indices in buckets.values():
            for index in indices:
                begin(self.rule, names, self.params[index], self.state[index], settings)
        work: list[Callable[[], None]] = []
        planned: list[Planned] = []
        packed: list[tuple[list[list[Any]], list[list[Any]]]] = []
        for dtype, indices in buckets.items():
            operands = [
                [self.params[index], grads[index], *(self.state[index][name] for name in present)] for index in indices
            ]
            packed.append((operands, [[np.require(x, requirements=["C", "A"]) for x in row] for row in operands]))
            kernel, arrays = kernels[dtype], packed[-1][1]
            columns = [[array.ctypes.data for array in column] for column in zip(*arrays, strict=True)]
            plan = kernel.plan(
                {(name, ""): column for name, column in zip(kernel.stage.operands, columns, strict=True)},
                sizes=[row[0].size for row in arrays],
                hyper=[kernel.numbers(settings)],
                first_steps=[float(self.state[index]["step"]) for index in indices],
            )
            states = {name: [self.state[index][name] for index in indices] for name in kernel.program.numbers}
            if kernel.program.own:
                planned.append(Planned(kernel, plan, states, available_threads))
            work.append(kernel.launcher(plan, available_threads))
        find_numbers(planned)
        for launch in work:
            launch()
        for operands, arrays in packed:  # arrays with gaps in memory go by way of a copy
            for originals, copies in zip(operands, arrays, strict=True):
                for position, (original, written) in enumerate(zip(originals, copies, strict=True)):
                    if original is not written and position != 1:
                        original[...] = written
        for indices in buckets.values():
            for index in indices:
                self.state[index]["step"] += 1

    def _settings_now(self) -> dict[str, Any]:
        """The settings for the next step; raises for those that someone has changed to what makes no sense."""
        known = self.rule.hyperparameters
        check_names(f"{type(self).__name__}.settings", self.settings, known)
        missing = [name for name in known if name not in self.settings]
        if missing:
            raise ValueError(f"{missing[0]} is missing in settings; its default is {known[missing[0]]!r}")
        self.settings |= as_tuples(self.settings, self.rule)
        return at_step(self.settings, self.rule, self._calls + 1)

    def _check_state(self, index: int, names: Sequence[str]) -> None:
        """Raises for a state that is not as `step` would make it."""
        param, state = self.params[index], self.state[index]
        has_begun = count_of(index, state.get("step")) or any(name in state for name in names)
        missing = [name for name in names if name not in state and not self.rule.states[name].when]
        if has_begun and missing:
            raise ValueError(
                f"the state of params[{index}] lacks {', '.join(missing)} beside {', '.join(state)}: put it back; "
                f"state[{index}] = {{'step': 0}} begins anew"
            )
        for name in names:
            if name not in state:
                continue
            shape, dtype = kind_of(self.rule, name, param, self.settings)
            value, what = state[name], f"the state {name} of params[{index}]"
            if not isinstance(value, np.ndarray):
                raise ValueError(f"{what} must be a NumPy array, not {type(value).__name__}")
            if value.shape != shape or value.dtype != dtype:
                raise ValueError(
                    f"{what} has shape {value.shape} and dtype {value.dtype} and must have {shape} and {dtype}; "
                    f"state[{index}] = {{'step': 0}} begins anew"
                )
            if not value.flags.writeable:
                raise ValueError(f"{what} is read-only: put a copy there, numpy.array(x)")

    def state_dict(self) -> dict[str, Any]:
        """States and settings in torch.optim's form, as copies: ``{"state": ..., "param_groups": [...]}``.

        Of a function of the step it has the value for the next step, and how many steps there were as "calls".
        """
        calls = {"calls": self._calls} if any(map(callable, self.settings.values())) else {}
        return {
            "state": {index: copy.deepcopy(state) for index, state in enumerate(self.state) if state["step"]},
            "param_groups": [{**copy.deepcopy(self._settings_now()), **calls, "params": list(range(len(self.params)))}],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned, as copies. Functions of the step stay, and go on where the saved ones were.

        Raises:
            KeyError: it is no optimizer's.
            ValueError: it belongs to other arrays or another rule; nothing has changed.
        """
        for key in ("param_groups", "state"):
            if key not in state_dict:
                raise KeyError(f"state_dict has no {key!r}: it is not what an optimizer's state_dict() returned")
        groups = state_dict["param_groups"]
        if len(groups) != 1 or len(groups[0]["params"]) != len(self.params):
            raise ValueError(
                f"state_dict holds {[len(group['params']) for group in groups]} params where there are {len(self.params)}"
            )
        settings = {name: value for name, value in groups[0].items() if name in self.rule.hyperparameters}
        settings = {name: value for name, value in settings.items() if not callable(self.settings[name])}
        settings |= as_tuples(settings, self.rule)
        saved = {
            int(key) if isinstance(key, str) and key.isdigit() else key: x for key, x in state_dict["state"].items()
        }
        strangers = [key for key in saved if key not in range(len(self.params))]  # JSON has texts as keys
        if strangers:
            raise ValueError(
                f"state_dict has a state for {strangers[0]!r}, which is not an index of the {len(self.params)} params"
            )
        state: list[dict[str, Any]] = []
        for index, param in enumerate(self.params):
            loaded = {name: x for name, x in saved.get(index, {}).items() if x is not None}
            step = loaded.pop("step", None if loaded and self.rule.keeps_step else int(bool(loaded)))
            fresh: dict[str, Any] = {"step": count_of(index, step)}
            always = [name for name, state in self.rule.states.items() if not state.when]
            missing = [name for name in always if name not in loaded] if loaded or fresh["step"] else []
            unknown = [name for name in loaded if name not in self.rule.states]
            if missing or unknown:
                lacks = [f"lacks {', '.join(missing)}"] if missing else []
                lacks += [f"has {', '.join(unknown)}, which it does not know"] if unknown else []
                raise ValueError(
                    f"the state of params[{index}] is not {self.rule.__name__}'s: it {' and '.join(lacks)}; load it into an optimizer "
                    "like the one that saved it"
                )
            for name, value in loaded.items():
                shape, dtype = kind_of(self.rule, name, param, {**self.settings, **settings})
                array = np.asarray(value).astype(dtype)  # a copy, also of a tensor
                if array.shape != shape:
                    raise ValueError(
                        f"state {name} of params[{index}] has shape {array.shape}, not {shape}; load it into an optimizer of arrays "
                        "shaped like those that it was saved for"
                    )
                fresh[name] = array
            state.append(fresh)
        calls = groups[0].get("calls", max(one["step"] for one in state))
        if not isinstance(calls, int) or calls < 0:
            raise ValueError(f"calls={calls!r} in state_dict must be a number of steps")
        at_step({**self.settings, **settings}, self.rule, calls + 1)
        self.settings.update(copy.deepcopy(settings))
        self.state, self._calls = state, calls
