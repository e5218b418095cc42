"""A step of many parameters: what each needs, the plans that serve them, and what must hold to use those again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from operator import attrgetter, is_, itemgetter, le
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import _device_dtype_check_for_fused

from steprule.engine import cpu, gpu
from steprule.engine.eager import EagerStep
from steprule.engine.gpu_plan import GpuPlan
from steprule.engine.own import Planned, run_together
from steprule.engine.plan import FULL, Plan
from steprule.engine.trace import NO_SERVICES, Services, has_own, static_settings
from steprule.formats import FIRST_ELEMENT_KEY, FORMATS, weight_format
from steprule.formats.tensors import zeros
from steprule.services.hooks import weakly
from steprule.services.member import Member, row_of
from steprule.services.step import Loose, StepServices, Work
from steprule.tensors.memory import (
    DTYPES,
    HALVES,
    MIXABLE,
    PLAIN,
    is_abstract,
    is_dense,
    is_readable,
    layout,
    missing_bytes,
    name_of,
    span,
)
from steprule.tensors.state import (
    AVERAGE,
    FORMAT_OPTIONS,
    arrays_of,
    average_format,
    convert,
    correction_dtype,
    counting,
    encode_rounded,
    is_near,
    kept,
    lacking,
    misfit,
    read_state,
    set_arrays,
    state_format,
    step_options,
    weight_arrays,
    wrong_step,
)

if TYPE_CHECKING:
    from steprule.engine.gpu_own import GpuPlanned
    from steprule.optimizer.front import Optimizer
    from steprule.services.device import OnDevice

Kernel = cpu.Kernel | gpu.Kernel

_ADDRESS = Tensor.data_ptr
_STORAGE, _BYTES, _OFFSET = Tensor.untyped_storage, torch.UntypedStorage.nbytes, Tensor.storage_offset
_PARAMS = itemgetter("params")
_GRAD = attrgetter("grad")
_count_write = torch._C._increment_version  # kernels write through addresses: this tells autograd
_END = (object(),)  # where one list ends before the other, it is compared with something else
_ZERO = torch.zeros((), device="cpu")


class Listed(NamedTuple):
    """A parameter where an optimizer lists it: in which group, where in that, and where among all parameters."""

    number: int
    group: dict[str, Any]
    position: int
    param: Tensor
    place: int


class Seen:
    """The parameters of groups and their order, to be compared with later ones."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self._lengths = _lengths_of(groups)
        self._objects = [*groups, *chain(*map(_PARAMS, groups))]

    def holds(self, groups: list[dict[str, Any]]) -> bool:
        """Whether the same groups have the same parameters still."""
        try:
            return _lengths_of(groups) == self._lengths and all(
                map(is_, chain(groups, *map(_PARAMS, groups)), self._objects)
            )
        except (TypeError, KeyError):  # a group that nobody has completed yet
            return False


def _lengths_of(groups: list[dict[str, Any]]) -> list[int]:
    """How many parameters each group has: it shows if one goes to the next group, where the sequence of all stays."""
    return list(map(len, map(_PARAMS, groups)))


def given_name(group: dict[str, Any], index: int) -> str | None:
    """The name that a parameter was given; those that were put into a group by hand have none."""
    names = group.get("param_names") or ()
    return names[index] if index < len(names) else None


def name_in(group: dict[str, Any], number: int, index: int) -> str:
    """What errors call a parameter."""
    name = given_name(group, index)
    return f"parameter {index} of group {number}" + (f" ({name})" if name else "")


class Entry:
    """A parameter with a gradient, at this step."""

    def __init__(
        self, optimizer: Optimizer, number: int, group: dict[str, Any], index: int, param: Tensor, place: int
    ) -> None:
        self.optimizer = optimizer
        self.place = place
        self.rule = optimizer._core.rule
        self.number = number
        self.index = index
        self.group = group
        self.param = param
        self.grad: Tensor = param.grad  # type: ignore[assignment]
        self.names = self.rule.states_for(group)
        self.present = tuple(name for name in self.names if name in self.rule.tensor_states)
        self.scalar_states = tuple(name for name in self.names if name in self.rule.scalar_states)
        self.state: dict[str, Any] = optimizer.state.get(param, {})
        self.state_before = dict(self.state)
        self.has_begun = False  # whether something of its step has been written
        self.services = optimizer._core.services
        self.averages = self.services is not None and self.services.average is not None
        self.is_last = True  # of those of its parameter, which moves the average
        accumulator = optimizer._core.accumulator
        self.corrected = (
            accumulator is not None
            and param in accumulator.corrections
            and self.grad.dtype == param.dtype
            and not self.grad.is_sparse
        )
        self.is_abstract = is_abstract(param)
        self.is_new = all(kept(self.state, name) is None for name in self.present)
        self.who = name_in(group, number, index)
        self._check(self.who)
        self.formats = self._formats()
        self.arrays = (
            [(name, suffix) for name, kind in self.formats.items() for suffix, _ in FORMATS[kind].arrays]
            if self.formats
            else []
        )
        self.keeps_step = self.rule.keeps_step or any(FORMATS[kind].random for kind in self.formats.values())
        self._check_begun()
        self.is_fast = self._fits_an_engine()
        self.engine = "gpu" if gpu.serves(param.device) else "cpu"

    def _served(self) -> Services:
        """What a kernel does besides the rule's formula."""
        return self.services.static(self.group) if self.services is not None else NO_SERVICES

    def kernel_key(self) -> Any:
        """What parameters must have in common to be stepped together."""
        where = self.param.device if self.engine == "gpu" else None
        static = static_settings(self.rule, self.group), self.group.get("maximize", False)
        return (self.engine, where, *static, tuple(self.formats.values()), self._served())

    def kernel(self, gather: bool) -> Kernel:
        """What steps it, with telemetry or without."""
        compiled = gpu.compiled if self.engine == "gpu" else cpu.compiled
        formats = tuple(self.formats.values())
        return compiled(
            self.rule, self.group, self.group.get("maximize", False), formats, replace(self._served(), gather=gather)
        )

    def member(self) -> Member:
        """The parameter as services see it: with its gradient if the eager engine steps it."""
        given = given_name(self.group, self.index)
        name, who = given or f"{self.number}.{self.index}", given or self.who
        free = self.group.get("clip") is False
        if self.is_fast:
            return Member(name, self.place, self.param, free, who)
        return Loose(name, self.place, self.param, free, self.wide_grad(), who)

    def wide_grad(self) -> Tensor:
        """The gradient, with its correction if it has one and no kernel adds that."""
        if self.corrected and not self.is_fast:
            return self.optimizer._core.accumulator.wide(self.param, self.grad)  # type: ignore[union-attr]
        return self.grad

    def _check(self, who: str) -> None:
        param, grad, group = self.param, self.grad, self.group
        for what in ("shape", "dtype", "device"):
            mine, its = getattr(param, what), getattr(grad, what)
            if mine != its and not (what == "dtype" and {mine, its} <= MIXABLE):
                raise RuntimeError(f"the gradient of {who} has the {what} {its}, its parameter {mine}")
        if self.rule.sparse_only and not grad.is_sparse:
            raise RuntimeError(
                f"{self.rule.__name__} does not support dense gradients, please consider Adam instead ({who})"
            )
        if grad.is_sparse and not self.rule.sparse_grads:
            raise RuntimeError(f"{type(self.optimizer).__name__} does not support sparse gradients ({who})")
        if group.get("fused"):
            _device_dtype_check_for_fused(param)
        if group.get("differentiable") and getattr(self.state.get("step"), "requires_grad", False):
            raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
        if group.get("differentiable") and any(group.get(name) for name in ("states", "weights")):
            raise RuntimeError("differentiable=True needs states and weights as they are: states=None, weights=None")
        if problem := misfit(self.rule, self.state, param, who, converted=group.get("states") is not None):
            raise RuntimeError(problem)
        for what, x in (("", param), ("grad", grad), *self.state.items()):
            if isinstance(x, Tensor) and (missing := missing_bytes(x)):
                whose = "the gradient of " if what == "grad" else f"the state {what} of " if what else ""
                raise RuntimeError(
                    f"the storage of {whose}{who} lacks {missing} bytes of those that its shape {tuple(x.shape)} needs: "
                    "it was freed or made smaller"
                )

    def _check_begun(self) -> None:
        """Raises for a step that is no number of steps, and for states that someone has taken out from beside others."""
        step = self.state.get("step")
        if self.keeps_step and step is not None:
            if not isinstance(step, Tensor) or step.numel() != 1:
                raise RuntimeError(f"the state step of {self.who} is {step!r} and must be a tensor of one number")
            if is_near(step) and (problem := wrong_step(step, self.who)):
                raise RuntimeError(problem)
        if missing := lacking(type(self.optimizer).rule, self.state, self.group):
            raise RuntimeError(
                f"the state of {self.who} lacks {', '.join(missing)} beside {', '.join(self.state)}: put it back, or "
                "clear that parameter's state to begin anew"
            )

    def written(self) -> list[tuple[str, Tensor]]:
        """What its step writes to, but for the numbers that it counts by; each with its name in errors."""
        names = {*self.present, *self.state_names(), *([AVERAGE] if self.averages else [])}
        names -= {*self.scalar_states, "step"}
        written = [(self.who, self.param)]
        for name, x in self.state.items():
            if name in names and isinstance(x, Tensor):
                written.append((f"the state {name} of {self.who}", x))
        if self.corrected:
            written.append((f"the correction of the gradient of {self.who}", self.tensor("grad", "_correction")))
        return written

    def _formats(self) -> dict[str, str]:
        """How each operand is kept: the parameter, the gradient and the states that exist; empty for complex ones."""
        if self.param.dtype not in DTYPES:
            return {}
        dtype, chosen = name_of(self.param.dtype), self.group.get("states")
        formats = {"param": weight_format(self.group.get("weights"), dtype), "grad": name_of(self.grad.dtype)}
        if self.corrected:
            formats["grad"] = self.optimizer._core.accumulator.format(dtype)  # type: ignore[union-attr]
        for name in self.present:
            if chosen is not None:
                formats[name] = state_format(self.rule, name, self.group, self.param)
            elif isinstance(self.state.get(name), Tensor):
                formats[name] = DTYPES.get(self.state[name].dtype, dtype)
            else:
                formats[name] = dtype
        if self.averages:
            formats[AVERAGE] = average_format(self.group.get("weights"), dtype)
        return formats

    def _fits_an_engine(self) -> bool:
        """Whether all operands lie in memory as the parameter does, gap-free, in a format that kernels read."""
        param = self.param
        if self.group.get("differentiable") or not self.formats or not is_dense(param):
            return False
        on_gpu = gpu.serves(param.device)
        if param.device.type != "cpu" and not on_gpu:
            return False
        step = self.state.get("step", _ZERO)
        scalars = [self.state.get(name, _ZERO) for name in self.scalar_states]
        if any(
            not isinstance(x, Tensor)
            or x.dtype not in (torch.float32, torch.float64)
            or not (on_gpu or x.device.type == "cpu")
            for x in (*scalars, *([step] if self.keeps_step else []))
        ):
            return False
        kinds = [FORMATS[kind] for kind in self.formats.values()]
        if any(kind.grouped or kind.random == "element" for kind in kinds) and not param.is_contiguous():
            return False  # groups and elements are counted by row
        by_row = self.services is not None and self.services.static(self.group).factor == "row"
        if by_row and param.dim() > 1 and param.numel() and param.stride(0) != param[0].numel():
            return False  # rows that have factors of their own must lie in one stretch
        own = layout(param)
        kept_at = [self.state.get(name + suffix) for name, suffix in self.arrays if suffix != "_base"]
        others = [self.grad, *(x for x in kept_at if isinstance(x, Tensor))]
        if self.corrected:
            others.append(self.tensor("grad", "_correction"))
        return all(is_readable(x, param.device) and layout(x) == own for x in (param, *others))

    def make_state(self) -> None:
        """Creates the states that are missing and converts those that are kept otherwise."""
        if not self.state_names() and not any(self.names) and not self.averages:
            return
        self.state = self.optimizer.state[self.param]
        if self.keeps_step and "step" not in self.state:
            behind = 0 if self.rule.keeps_step or self.is_new else 1
            self.state["step"] = torch.full((), behind, **step_options(self.group, self.param))
        if self.keeps_step:
            self.state["step"] = counting(self.state["step"], self.param)
        if self.is_fast and self.engine == "gpu":
            for number in (*(["step"] if self.keeps_step else []), *self.scalar_states):
                if number in self.state:
                    self.state[number] = self.state[number].to(self.param.device)
        begun = self.param if self.group.get("differentiable") else self.param.detach()  # which autograd is to see
        for name in self.names:  # in update's order, which is torch.optim's
            if name is None or kept(self.state, name) is not None:
                continue
            first = self.rule.begins_at(name, begun, self.group)
            if name in self.scalar_states:
                like = {} if self.rule.states[name].dtype == "step" else {"dtype": torch.float64}
                fresh = torch.empty((), **{**step_options(self.group, self.param), **like})
                self.state[name] = fresh.copy_(_filled(fresh, first))
            elif self.formats and not isinstance(first, Tensor) and first == 0:
                set_arrays(self.state, name, zeros(self.formats[name], self.param))
            else:
                dtype = self.param.dtype if self.param.dtype not in HALVES else torch.float32
                self.state[name] = torch.empty_like(self.param, dtype=dtype, requires_grad=False)
                self.state[name].copy_(begun if first is begun else _filled(self.param, first))
        if not self.formats:
            if self.averages and AVERAGE not in self.state:
                self.state[AVERAGE] = self.param.detach().clone()
            return
        for name in self.present:
            convert(self.state, name, self.formats[name], self.param)
        wanted, correction = correction_dtype(self.formats["param"]), self.state.get("param_correction")
        if wanted is None:
            self.state.pop("param_correction", None)
        elif correction is None or name_of(correction.dtype) != wanted:
            self.state["param_correction"] = zeros(self.formats["param"], self.param)["_correction"]
        if AVERAGE in self.formats:
            if AVERAGE not in self.state:
                own = weight_arrays(self.param, self.state)
                set_arrays(self.state, AVERAGE, {name: x.clone() for name, x in own.items()})
            convert(self.state, AVERAGE, self.formats[AVERAGE], self.param)

    def restore_state(self) -> None:
        """Takes back what make_state has done."""
        if not self.state_before:
            self.optimizer.state.pop(self.param, None)
            return
        state = self.optimizer.state[self.param]
        state.clear()
        state.update(self.state_before)

    def state_names(self) -> set[str]:
        """What the state consists of."""
        arrays = {name + suffix for name, suffix in self.arrays if name != "grad"} - {"param"}
        return arrays | {*self.scalar_states} | ({"step"} if self.keeps_step else set())

    def tensor(self, name: str, suffix: str) -> Tensor:
        """One of the arrays of a kernel."""
        if name == "grad" and suffix:
            return self.optimizer._core.accumulator.corrections[self.param]  # type: ignore[union-attr]
        if suffix or name not in ("param", "grad"):
            return self.state[name + suffix]  # type: ignore[no-any-return]
        return self.param if name == "param" else self.grad

    def prepare_eagerly(self, loose: Loose | None) -> EagerStep:
        """A step by the eager engine, with services if there is a member for them: nothing has changed yet."""
        assert loose is None or self.services is not None
        grad = self.wide_grad() if loose is None else loose.served_grad(self.services)  # type: ignore[arg-type]
        if self.keeps_step:
            step = self.state["step"] + 1
            step = step.double() if self.group.get("capturable") or step.device.type != "cpu" else float(step)
        else:
            step = 1 if self.is_new else 2
        hyper = {name: self._plain(self.group[name]) for name in self.rule.hyperparameters}
        own = {name: self.state[name] for name in ("param", *self.names) if name in self.state}
        own["param"] = self.param
        self._wide: dict[str, Tensor] = {}
        if any(kind not in PLAIN for kind in self.formats.values()) or (
            loose is not None and self.param.dtype in HALVES
        ):
            self._wide = {name: self._read(name) for name in ("param", *self.present)}
        operands = {**own, **self._wide}
        states = [name and operands[name] for name in self.names]
        return EagerStep(self.rule, operands["param"], grad, states, step, hyper, self.group.get("maximize", False))

    def finish_eagerly(self, part: EagerStep, loose: Loose | None, gather: bool) -> None:
        """Takes the step."""
        before = self._read("param") if gather else None
        self.has_begun = True
        part.write()
        if self.keeps_step:
            self.state["step"] += 1
        for name, value in self._wide.items():
            self._store(name, value)
        new = self._wide.get("param")
        self._move_average(new)
        if before is not None and loose is not None:
            is_random = bool(self.formats) and bool(FORMATS[self.formats["param"]].random)
            after = self._read("param")
            loose.gather(before, after if new is None else new, after, is_random)

    def step_eagerly(self, loose: Loose | None, gather: bool) -> None:
        """Both, where no other parameter need wait for what this one's sums are."""
        part = self.prepare_eagerly(loose)
        run_together([part])
        self.finish_eagerly(part, loose, gather)

    def count(self) -> None:
        """All that a step is where there are no numbers."""
        if self.keeps_step:
            self.state["step"] += 1
        _count_write([self.param])

    def _read(self, name: str) -> Tensor:
        """As `Optimizer.read`."""
        return read_state({**self.state, "param": self.param.detach()}, name, self.param.shape)

    def _store(self, name: str, value: Tensor) -> None:
        step = int(self.state["step"]) if self.keeps_step else 1  # which a GPU is waited for to say
        operand, place = [*self.formats].index(name), self.place + FIRST_ELEMENT_KEY
        arrays = encode_rounded(self.formats[name], value, self.group.get("seed", 0), step, operand, place)
        for suffix, array in arrays.items():
            self.tensor(name, suffix).copy_(array)

    def _move_average(self, new: Tensor | None) -> None:
        """Brings the average towards the new weights, given where they are rounded at random."""
        if self.services is None or not self.averages or not self.is_last:
            return
        if not self.formats:  # complex
            self.state[AVERAGE].lerp_(self.param.detach(), self.services.average_weight)
            return
        weight = FORMATS[self.formats["param"]]
        if new is None or not (weight.random or len(weight.arrays) > 1):
            new = self._read("param")
        average = self._read(AVERAGE)
        self._store(AVERAGE, average + self.services.average_weight * (new - average))

    def start_average(self) -> None:
        """The first average is a copy of the weights, to the last bit."""
        own = weight_arrays(self.param, self.state)
        for suffix, array in arrays_of(self.state, AVERAGE).items():
            array.copy_(own[suffix])

    def _plain(self, value: Any) -> Any:
        """Hyperparameters as floats, or as tensors where autograd or a graph must see them."""
        if isinstance(value, (tuple, list)):
            return tuple(self._plain(item) for item in value)
        if not isinstance(value, Tensor):
            return value.item() if isinstance(value, np.ndarray) else value
        if self.group.get("differentiable") or self.group.get("capturable"):
            return value.reshape(())
        return value.item()


class Pass:
    """The plans for a set of tensors, and what must still hold for them to be used again.

    Looked at in every step, since anyone may replace a tensor, move its memory or lay it out anew: kernels write to
    addresses, and know nothing of whose memory that is by now.

    Args:
        optimizer: whose.
        entries: the parameters of this step.
        buckets: the kernels for those that kernels step, with telemetry and without, each with its entries.
        whole: whether they are all that have a gradient. If not, they are one released parameter, listed once or more:
            where it is listed has been looked at before, and only its first group is known here.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        entries: list[Entry],
        buckets: list[tuple[list[Kernel], list[Entry]]],
        whole: bool = True,
    ) -> None:
        core = optimizer._core
        self._rule = core.rule
        groups = self._groups = optimizer.param_groups if whole else [entries[0].group]
        keys = [name for name in (*core.rule.hyperparameters, *optimizer._flags, *FORMAT_OPTIONS) if name in groups[0]]
        self._keys = keys
        settings_of = itemgetter(*keys, keys[0])
        self._settings_of: Callable[[dict[str, Any]], tuple[Any, ...]] = settings_of
        if core.services is not None:
            self._settings_of = lambda group: (*settings_of(group), group.get("clip"))
        self._needs_numbers = not all(bucket[0].engine == "gpu" for _, bucket in buckets)
        self._settings = [self._plain(group) for group in groups]
        self._static = [self._static_of(group) for group in groups]
        self._lengths = list(map(len, [*groups, *(map(_PARAMS, groups) if whole else ())]))

        fast = [entry for _, bucket in buckets for entry in bucket]
        self._params = [entry.param for entry in fast]
        active = set(map(id, self._params))
        self._idle = [p for group in groups for p in group["params"] if id(p) not in active] if whole else []
        self._state_of = optimizer.state
        self._whole = whole
        self._objects = list(self._objects_now(groups, optimizer.state))
        self.complete = len(fast) == len(entries) and all(set(entry.state) == entry.state_names() for entry in fast)
        corrections = [entry.tensor("grad", "_correction") for entry in fast if entry.corrected]
        self._fixed = (self._params, *(entry.state.values() for entry in fast), corrections)
        self._held = list(chain.from_iterable(self._fixed))  # so that no other state can take their places
        if self.complete:
            tensors = [*self._held, *(entry.grad for entry in fast)]
            self._at = list(map(_ADDRESS, tensors))
            spans = np.array([one for one in map(span, self._held) if one[0] != one[1]], np.uint64).reshape(-1, 2)
            self._starts, self._ends = np.sort(spans, 0).T  # of what is written
            self._grad_sizes = np.array([end - start for start, end in (span(entry.grad) for entry in fast)], np.uint64)
            self._same_layout = _layout_check(tensors)
            self._needed = [entry.grad.numel() * entry.grad.element_size() for entry in fast]  # bytes, without a gap

        self._plans: list[tuple[Kernel, Plan | GpuPlan, slice]] = []
        start = 0
        self._services = services = core.services
        self._counters: list[Any] = []
        self._works: list[Any] = []
        self._launchers: list[Callable[[], None]] = []
        self._planned: list[Planned | GpuPlanned] = []
        for kernels, bucket in buckets:
            kernel = kernels[0]
            plan = _plan(kernels, bucket, groups, services, [entry.number if whole else 0 for entry in bucket])
            self._plans.append((kernel, plan, slice(start, start + len(bucket))))
            start += len(bucket)
            if isinstance(plan, Plan) and bucket[0].keeps_step:
                self._counters.append(plan.counter.data)
            if kernel.formula.own:
                self._planned.append(_planned(kernel, plan, bucket))
            if services is not None:
                members = [entry.member() for entry in bucket]
                self._works.append(_work(kernels, plan, members, bucket[0].formats))
            else:
                self._launchers.append(_launcher(kernel, plan))
        self._on_device: OnDevice | None = None
        is_on_device = self.complete and self._works and not self._needs_numbers and whole
        if services is not None and is_on_device and services.nonfinite != "raise" and services.release is None:
            from steprule.services.device import OnDevice

            self._on_device = OnDevice(services, self._works)
        self._accumulator = core.accumulator
        self._move_resting_averages = weakly(optimizer._move_resting_averages)
        self._stepped = {entry.param for entry in entries}
        self._entries = entries

    def run(self, optimizer: Optimizer) -> bool:
        """Steps and returns True, or changes nothing and returns False if something is not as it was."""
        groups, states = optimizer.param_groups, optimizer.state
        try:
            if self._whole:
                lists = [*map(_PARAMS, groups)]
                objects = chain(*lists, states.values(), _END)
            else:
                groups, lists, objects = self._groups, [], chain(map(states.get, self._params), _END)
            tensors: list[Any] = [*chain.from_iterable(self._fixed), *map(_GRAD, self._params)]
            at = list(map(_ADDRESS, tensors))
            if not (
                states is self._state_of
                and all(map(is_, objects, self._objects))
                and self._same_layout(*tensors)
                and (at == self._at or self._follow(at, tensors))
                # A key more may be one that a group cannot have; a parameter may have gone to the next group.
                and list(map(len, [*groups, *lists])) == self._lengths
            ):
                return False
            is_changed = self._settings != list(map(self._settings_of, groups))
        except (AttributeError, RuntimeError, TypeError, ValueError, KeyError):
            return False  # no gradient, a sparse one, a state that is no tensor, a setting that is no number
        if is_changed and not self._refresh(optimizer):
            return False
        for counter in self._counters:
            if counter[FULL]:
                return False
        if self._idle and any(param.grad is not None for param in self._idle):
            return False
        if self._accumulator is not None:
            self._accumulator.settle(self._params)
        if self._on_device is not None:
            self._serve_on(self._on_device)
            return True
        if self._services is not None:
            self._serve()
            return True
        if self._planned:
            run_together(self._planned)
        for launch in self._launchers:
            launch()
        _count_write(self._params)
        return True

    def _follow(self, at: list[int], tensors: list[Tensor]) -> bool:
        """Takes over new addresses of gradients.

        False if it is others that have changed, or a gradient's memory was freed or lies where something is written.
        """
        first = len(self._held)
        if at[:first] != self._at[:first] or at.count(0) != self._at.count(0):
            return False
        grads = tensors[first:]
        is_plain = all(map(le, self._needed, map(_BYTES, map(_STORAGE, grads)))) and not any(map(_OFFSET, grads))
        if not is_plain and any(map(missing_bytes, grads)):
            return False
        starts = np.array(at[first:], np.uint64)
        before = self._starts.searchsorted(starts + self._grad_sizes)  # how many begin before its end, how many end
        if not np.array_equal(before, self._ends.searchsorted(starts, "right")):  # before it begins
            return False
        for _, plan, part in self._plans:
            plan.set_grads(at[first:][part])
        self._at = at
        return True

    def holds_only(self, optimizer: Optimizer) -> bool:
        """Whether all tensors that it keeps alive are the optimizer's still."""
        states = optimizer.state
        objects = self._objects_now(optimizer.param_groups, states)
        fixed = chain.from_iterable(self._fixed)
        return (
            states is self._state_of
            and all(map(is_, objects, self._objects))
            and all(map(is_, chain(fixed, _END), chain(self._held, _END)))
        )

    def _objects_now(self, groups: list[dict[str, Any]], states: Any) -> Iterator[Any]:
        """What must be the same objects."""
        if self._whole:
            return chain(*map(_PARAMS, groups), states.values(), _END)
        return chain(map(states.get, self._params), _END)

    def launch(self) -> bool:
        """The first step, with those entries that are not fast; False if services refuse it, and nothing has changed.

        Each entry's `has_begun` says then, or where it raises, whether something of it has been written.
        """
        entries, self._entries = self._entries, []
        if not self._launch([entry for entry in entries if not entry.is_abstract]):
            return False
        for entry in entries:
            if entry.is_abstract:
                entry.count()
        return True

    def _launch(self, entries: Sequence[Entry]) -> bool:
        loose = [entry for entry in entries if not entry.is_fast]
        if self._services is not None:
            return self._serve(entries, loose)
        steps = self._prepare(entries, [None] * len(loose))
        self._begin(entries)
        run_together([*self._planned, *(step for step in steps if step is not None)])
        for launch in self._launchers:
            launch()
        _count_write(self._params)
        for entry, step in zip(loose, steps, strict=True):
            entry.finish_eagerly(step, None, False) if step is not None else entry.step_eagerly(None, False)
        return True

    @staticmethod
    def _begin(entries: Sequence[Entry]) -> None:
        """From here on what kernels step has changed."""
        for entry in entries:
            entry.has_begun |= entry.is_fast

    @staticmethod
    def _prepare(entries: Sequence[Entry], others: Sequence[Loose | None]) -> list[EagerStep | None]:
        """The steps of those that are not fast; None where it need not be known before anything changes, and takes memory.

        Nor can it where a parameter is listed twice.
        """
        steps: list[EagerStep | None] = []
        seen: set[Tensor] = set()
        for entry in entries:
            if not entry.is_fast:
                has_sums = has_own(entry.rule, entry.group) and entry.param not in seen
                steps.append(entry.prepare_eagerly(others[len(steps)]) if has_sums else None)
            seen.add(entry.param)
        return steps

    def _serve(self, entries: Sequence[Entry] = (), loose: Sequence[Entry] = ()) -> bool:
        """Steps with services; False if they refuse."""
        services = self._services
        assert services is not None
        services.look()
        around = services.release or services
        others: list[Any] = [entry.member() for entry in loose]
        parts: list[Any] = [*self._works, *others]
        if not parts:
            services.rest()
            if services.average is None:
                return True
        if not around.begin(parts):
            return False
        gather = services.gathers
        steps = self._prepare(entries, others)
        self._begin(entries)
        if self._planned or any(steps):
            run_together([*self._planned, *(step for step in steps if step is not None)])
        for work in self._works:
            work.launch(gather)
        _count_write(self._params)
        for entry, step, other in zip(loose, steps, others, strict=True):
            entry.finish_eagerly(step, other, gather) if step is not None else entry.step_eagerly(other, gather)
        if services.average is not None:
            for entry in entries if services.averaged == 0 else ():
                entry.start_average()
            if self._whole:
                self._move_resting_averages(self._stepped, services.average_weight)
        around.finish(parts, gather)
        if self._on_device is not None:
            self._on_device.fill()
        return True

    def _serve_on(self, device: OnDevice) -> None:
        """Steps with services that decide on the device; what a CUDA graph records is never gathered."""
        services = self._services
        assert services is not None
        gather = services.gathers and not gpu.is_recording(device.device)
        weight = device.begin()
        if self._planned:
            run_together(self._planned)
        for work in self._works:
            work.launch(gather)
        _count_write(self._params)
        if weight is not None:
            self._move_resting_averages(self._stepped, weight)
        device.finish(gather)

    def _plain(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """A group's settings with tensors and arrays read, since those may be filled in place."""
        return tuple(_seen(value, self._needs_numbers) for value in self._settings_of(group))

    def _refresh(self, optimizer: Optimizer) -> bool:
        """Takes over new numbers; False if the change calls for other kernels."""
        groups = optimizer.param_groups if self._whole else self._groups
        settings = [self._plain(group) for group in groups]
        changed = {
            name
            for before, now in zip(self._settings, settings, strict=True)
            for name, old, new in zip(self._keys, before, now, strict=False)
            if old is not new and old != new
        }
        is_numbers = all(isinstance(self._rule.hyperparameters.get(name), (float, int, tuple)) for name in changed)
        is_numbers &= "lookahead" not in changed  # which is whole
        if not is_numbers or not optimizer._check_numbers(groups, changed):
            return False  # and all is looked at
        if [self._static_of(group) for group in groups] != self._static:
            return False
        self._settings = settings
        for kernel, plan, _ in self._plans:
            plan.set_hyper(_hyper(kernel, groups, self._services))
        return True

    def _static_of(self, group: dict[str, Any]) -> tuple[Any, ...]:
        formats = group.get("states"), group.get("weights"), group.get("clip")
        return static_settings(self._rule, group), group.get("maximize", False), group.get("differentiable"), formats


def _launcher(kernel: Any, plan: Plan | GpuPlan) -> Callable[[], None]:
    threads = () if isinstance(plan, GpuPlan) else (torch.get_num_threads,)
    return kernel.launcher(plan, *threads)  # type: ignore[no-any-return]


def _planned(kernel: Any, plan: Plan | GpuPlan, bucket: list[Entry]) -> Planned | GpuPlanned:
    states = {name: [entry.state[name] for entry in bucket] for name in kernel.formula.scalar_outputs}
    if isinstance(plan, GpuPlan):
        from steprule.engine.gpu_own import GpuPlanned

        return GpuPlanned(kernel, plan, states)
    arrays = {name: [x.numpy() for x in tensors] for name, tensors in states.items()}
    return Planned(kernel, plan, arrays, torch.get_num_threads)


def _work(kernels: list[Any], plan: Plan | GpuPlan, members: list[Member], formats: dict[str, str]) -> Any:
    if isinstance(plan, GpuPlan):
        from steprule.services.device import GpuWork

        return GpuWork((kernels[0], kernels[-1]), plan, members, formats)
    return Work((kernels[0], kernels[-1]), plan, members, formats)


def _hyper(kernel: Kernel, groups: list[dict[str, Any]], services: StepServices | None) -> list[list[Any]]:
    extra = services.numbers() if services is not None else {}
    names = {"seed", *(name for name, _ in kernel.formula.scalars)}
    own = [{name: _read(group[name], False) for name in names if name in group} for group in groups]
    return [kernel.numbers({**numbers, **extra}) for numbers in own]


def _plan(
    kernels: list[Kernel],
    bucket: list[Entry],
    groups: list[dict[str, Any]],
    services: StepServices | None,
    rows: list[int],
) -> Plan | GpuPlan:
    kernel = kernels[0]
    by_row = kernel.formula.by_row
    keeps_step = bucket[0].keeps_step
    steps = [entry.state["step"] for entry in bucket] if keeps_step else []
    tables: dict[str, Any] = {
        "addresses": [[entry.tensor(*array).data_ptr() for entry in bucket] for array in kernel.source.arrays],
        "sizes": [entry.param.numel() for entry in bucket],
        "groups": rows,
        "hyper": _hyper(kernel, groups, services),
        "step_at": list(map(_ADDRESS, steps)) if keeps_step else None,
        "first_steps": [0.0 if entry.is_new else 1.0 for entry in bucket],
        "rows": [row_of(entry.param) for entry in bucket] if kernel.source.grouped or by_row else None,
        "numbers": [entry.place for entry in bucket],
        "by_row": by_row,
    }
    sources: list[Any] = [one.source for kernel in kernels for one in (kernel, *kernel.readings)]
    if isinstance(kernel, gpu.Kernel):
        return GpuPlan(bucket[0].param.device, sources, **tables)
    is_double = [step.dtype == torch.float64 for step in steps]
    tallies = max(len(source.tallies) for source in sources)
    return Plan(step_is_double=is_double, own=len(kernel.formula.own), tallies=tallies, **tables)


def _filled(like: Tensor, value: Any) -> Tensor:
    """A tensor of this number, that autograd can go through where it is one; complex numbers have it twice."""
    if isinstance(value, Tensor):
        number = value.double().reshape(()).to(like.device).expand(like.shape)
    else:
        number = torch.full_like(like, float(value), dtype=torch.float64, requires_grad=False)
    return torch.complex(number, number) if like.is_complex() else number


def _layout_check(tensors: list[Tensor]) -> Callable[..., bool]:
    """A function of as many tensors that says whether each has the kind, dtype, shape and strides of these.

    torch.compile's guards do that in one call.
    """
    sizes: list[Any] = [list(x.shape) for x in tensors]
    strides: list[Any] = [list(x.stride()) for x in tensors]
    guards = torch._C._dynamo.guards.TensorGuards(
        *tensors,
        dynamic_dims_sizes=sizes,
        dynamic_dims_strides=strides,
    )
    return guards.check


class _Same:
    """Equal to a tensor on a GPU and to no other: comparing numbers would wait for them.

    Args:
        tensor: which is read there in every step.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return self.tensor is (other.tensor if isinstance(other, _Same) else other)


def _read(value: Any, all_of_it: bool) -> Any:
    """A setting with tensors and arrays read; tensors on a GPU only if a plan elsewhere needs their numbers."""
    if isinstance(value, (tuple, list)):
        return tuple(_read(item, all_of_it) for item in value)
    is_held = isinstance(value, Tensor) and (all_of_it or not gpu.serves(value.device))
    return value.item() if is_held or isinstance(value, np.ndarray) else value


def _seen(value: Any, all_of_it: bool) -> Any:
    """A setting as `_read` gives it, to be compared with later ones, on their left."""
    value = _read(value, all_of_it)
    if isinstance(value, tuple):
        return tuple(_Same(item) if isinstance(item, Tensor) else item for item in value)
    return _Same(value) if isinstance(value, Tensor) else value
