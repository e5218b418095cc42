"""Sums over parts made those over the wholes, by as few calls of torch.distributed as there can be.

Every process must have numbers for the same tensors, in the same order: else calls would be of different lengths, which ends in a
hang or in wrong numbers. So numbers go in an order that no process decides by itself, and one number more in a step's first call says
whether a process has others than in the step before. Only then do processes compare what they have, by a further call.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steprule.engine.run import SideSums, Sums
from steprule.formats.parts import whole_of
from steprule.tensors.fingerprint import DisagreementError, Fingerprint, is_raised, said
from steprule.tensors.reach import Reach, reaches_of, reduced
from steprule.trace.extent import COLS, ELEMENTS, ROWS, Extent
from steprule.trace.program import LARGEST

_ONLY_COMPARED = ""
"""The name of sums where there are none, and processes only compare whose they would be."""


class Totals:
    """Makes sums over what is here those over the wholes: a `steprule.engine.run.Complete`.

    Where a mesh has all processes, one call of torch.distributed goes over all of them, and each of n replicas adds the n-th part of
    its sums: so replicas are compared as well, and have the same to the last bit. Of smaller meshes there is a call for each dimension along
    which a tensor is cut. There is one more where there are largest or smallest elements among the numbers.

    Every call says whether this process has failed since the first, and every process goes on to all calls of a step. A number
    more in the calls that there are does it.

    Attributes:
        is_open: whether nothing has been added up yet in this step.
        failed: what has failed since then.
        own: what all processes must have alike. The first call of a step says whether they do.
    """

    def __init__(self) -> None:
        self.is_open = False
        self.failed: Exception | None = None
        self.own = Fingerprint()
        self._awaits: Callable[[], bool] | None = None
        self._groups: list[Reach] = []
        self._agreed = _NOTHING
        self.forget([])

    def forget(self, params: Sequence[Tensor]) -> None:
        """Has these parameters from now on, wholes in the optimizer's order."""
        self._places = {id(param): place for place, param in enumerate(params)}
        every = [reaches_of(param, over) for param in params for over in (ELEMENTS, ROWS, COLS)]
        groups = list(dict.fromkeys(chain.from_iterable(every)))
        groups.sort(key=Reach.order)
        if groups != self._groups:
            self._groups, self._agreed = groups, _NOTHING
        self._layouts: dict[Any, _Layout] = {}
        self._agreed.let_go()

    def __call__(self, works: Sequence[Any], sums: Sequence[Sums]) -> Sequence[Sums]:
        """Those over the wholes; see `steprule.engine.run.Complete`."""
        if not works:
            self.take_part()
        elif not sums and self.is_open:
            sums = [{_ONLY_COMPARED: [0.0] * len(work.params)} for work in works]
        if not self._groups or not any(sums):
            return sums
        layout = self._layout(works, sums)
        flat = np.concatenate([_array(values) for own in sums for values in own.values()])
        if self.is_open:
            self._open(layout, flat)
        elif self._add_up(layout, flat, self.failed is not None):
            self.hear()
        return layout.given_back(sums, flat)

    def begin(self, awaits: Callable[[], bool] | None = None) -> None:
        """A step begins.

        Args:
            awaits: says whether the first call of a process group is still to come, if there is one.
        """
        self.failed, self._awaits = None, awaits

    def keep(self, error: Exception) -> None:
        """See `steprule.engine.run.Complete`."""
        is_early = self.is_open or (self._awaits is not None and self._awaits())
        if is_early or (isinstance(error, DisagreementError) and error is not self.failed):  # which is told otherwise
            raise error
        self.failed = self.failed or error

    def hear(self) -> None:
        """Takes note that another process has failed, or this one."""
        self.failed = self.failed or DisagreementError(True)

    def settle(self, has_changed: bool) -> None:
        """See `steprule.engine.run.Complete`."""
        error, self.failed = self.failed, None
        if isinstance(error, DisagreementError):
            error.has_changed = has_changed
        if error is not None:
            raise error

    def take_part(self, has_failed: bool = False) -> None:
        """Is there when others add up what this process has nothing of.

        Args:
            has_failed: whether this process cannot take the step.

        Raises:
            DisagreementError: others have something.
        """
        if self.is_open and self._groups:
            self._open(_Layout([], [], [], [], self, []), np.zeros(0), has_failed)

    def has_any(self, flag: bool) -> bool:
        """Whether any process has raised this flag; all call it at the same place, outside of steps."""
        return self._add_up(_NOTHING, np.zeros(0), flag, self.own.mark)

    def _layout(self, works: Sequence[Any], sums: Sequence[Sums]) -> _Layout:
        """Where numbers are, remembered from step to step."""
        names = [tuple(_Name.of(name, values) for name, values in own.items()) for own in sums]
        keys = [one.rooms and one.rooms.key for one in works]
        params = [param for work in works for param in work.params]
        key = (*names, *keys, *map(len, (work.params for work in works)), *map(id, params))
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) > 16:  # as where other parameters have gradients in every step
                self._layouts.clear()
            lengths = [[_lengths(values) for values in own.values()] for own in sums]
            layout = self._layouts[key] = _Layout(
                params, [work.params for work in works], names, lengths, self, [key for key in keys if key]
            )
        return layout

    def _open(self, layout: _Layout, flat: np.ndarray, has_failed: bool = False) -> None:
        """A step's first call, which is as long as the one of the step before."""
        self.is_open = False
        key = layout.key + 0.5 * (not np.isfinite(flat[layout.plain]).all())  # by which a step may be skipped
        is_new = has_failed or key != self._agreed.key
        before = self._agreed if is_new else layout
        if not self._add_up(before, np.zeros(before.size) if is_new else flat, is_new, self.own.mark):
            return
        # and so it is new in all processes, and nothing of it has been added up
        self.agree(key, layout.places, has_failed)
        self._agreed = layout
        self._add_up(layout, flat)

    def _add_up(self, layout: _Layout, flat: np.ndarray, flag: bool | None = None, mark: int | None = None) -> bool:
        """Adds up, in place; whether any process has raised a flag, if there are some, or has another mark.

        Later calls than the first, which has a mark, go to those only with whom there is something to add up.
        """
        from torch.distributed import ReduceOp

        is_told = False
        for number, reach in enumerate(self._groups):
            added, compared, shares, signs = layout.indices[number] if layout.indices else (_NONE, _NONE, _NONE, _NONE)
            calls = [(ReduceOp.SUM, added, shares, 1.0), (ReduceOp.MAX, compared, signs, signs)]
            calls = [call for call in calls if len(call[1])] or calls[:1]
            for place, (operation, index, factors, back) in enumerate(calls):
                has_flag = flag is not None and place == 0 and (len(index) > 0 or (mark is not None and not is_told))
                if not has_flag and not len(index):
                    continue
                own, is_largest = flat[index] * factors, operation is ReduceOp.MAX
                if is_largest:  # not every backend would hand on NaN
                    own = np.where(np.isnan(own), math.inf, np.where(own == math.inf, _MOST, own))
                done = reduced(
                    np.append(own, said(bool(flag), mark, is_largest)) if has_flag else own, reach, operation
                )
                if has_flag:
                    flag = is_raised(done[len(index) :].tolist(), is_largest)
                is_told |= has_flag and reach.mesh is None
                done = done[: len(index)]
                if is_largest:
                    done = np.where(done == math.inf, math.nan, np.where(done == _MOST, math.inf, done))
                flat[index] = done * back
        return bool(flag)

    def agree(self, key: float, places: Sequence[int], has_failed: bool) -> bool:
        """Compares what processes have, and returns whether all know the key; all call it at the same place.

        Args:
            key: must be the same in all; NaN where it is not known here.
            places: of the parameters that take the step.
            has_failed: whether this process cannot take it.

        Raises:
            DisagreementError: it is not the same, or one of them has failed; in all processes.
        """
        count = len(self._places)
        # as long in all processes, whatever parameters these have
        most, least = _ends([float(has_failed), count, key, math.isnan(key), *self.own.numbers], self._groups)
        counts = int(least[1]), int(most[1])
        if most[0] or counts[0] < counts[1]:
            raise DisagreementError(bool(most[0]), counts)
        self.own.check(most[4:] == least[4:], lambda numbers: np.equal(*_ends(numbers, self._groups)))
        if most[2] > least[2]:
            own = np.full(count, math.nan if math.isnan(key) else 0.0)
            own[places] = 1.0
            raise DisagreementError(
                counts=counts, places=np.flatnonzero(np.greater(*_ends(own, self._groups))).tolist()
            )
        return not most[3]


def _ends(numbers: Sequence[float] | np.ndarray, reaches: Sequence[Reach]) -> tuple[np.ndarray, np.ndarray]:
    """The largest and the smallest that any process has of each number, of which some may have NaN in its place."""
    from torch.distributed import ReduceOp

    own = np.array(numbers, np.float64)
    both = np.concatenate([own, -own])
    both[np.isnan(both)] = -math.inf
    for reach in reaches:
        both = reduced(both, reach, ReduceOp.MAX)
        if reach.mesh is None:
            break
    return both[: len(numbers)], -both[len(numbers) :]


class _Layout:
    """Where the numbers of a call are.

    Args:
        params: of all works, which are kept alive for as long as this is.
        works: those of each.
        names: of each work's sums.
        lengths: how many numbers each of its tensors has for each of them.
        totals: whose call it is.
        keys: what else must be the same in all processes.

    Attributes:
        size: how many numbers there are.
        indices: for each group those that are added up, those of which the largest is taken, and by what each are multiplied before.
        plain: the numbers of tensors of which no process has parts.
        places: of the parameters of which processes have parts.
        key: a number that tells this from others, the same in all processes.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        works: Sequence[Sequence[Tensor]],
        names: Sequence[Sequence[_Name]],
        lengths: Sequence[Sequence[Any]],
        totals: Totals,
        keys: Sequence[Any],
    ) -> None:
        self._held = params
        places = [[totals._places.get(id(whole_of(param)), -1) for param in own] for own in works]
        entries: list[_Entry] = []
        self.size = 0
        for own, params_of_work, places_of_work, lengths_of_work in zip(names, works, places, lengths, strict=True):
            for name, every in zip(own, lengths_of_work, strict=True):
                counts = [1] * len(params_of_work) if every is None else every.tolist()
                for param, place, count in zip(params_of_work, places_of_work, counts, strict=True):
                    reaches = reaches_of(whole_of(param), name.over)
                    entries.append(_Entry(name, place, count, reaches, range(self.size, self.size + count)))
                    self.size += count
        order = sorted((entry for entry in entries if entry.reaches), key=lambda entry: entry[:2])
        sent = [entry for entry in order if entry.name.name != _ONLY_COMPARED]
        self.indices = [_index(sent, reach) for reach in totals._groups]
        self.plain = _places_of([entry for entry in entries if not entry.reaches])
        self.places = sorted({entry.place for entry in order})
        self.key = float(zlib.crc32(repr([[entry[:2] for entry in order], *keys]).encode()))
        self._is_cut = [any(reaches_of(whole_of(param)) for param in own) for own in works]

    def let_go(self) -> None:
        """Keeps no parameters alive: there is no other layout that theirs could be taken for."""
        self._held = ()

    def given_back(self, sums: Sequence[Sums], flat: np.ndarray) -> list[Sums]:
        """Numbers in the form in which others were given; the others where no process has parts."""
        result: list[Sums] = []
        start = 0
        for own, is_cut in zip(sums, self._is_cut, strict=True):
            made = {}
            for name, values in own.items():
                here = values.values if isinstance(values, SideSums) else values
                end = start + (here.numel() if isinstance(here, Tensor) else len(here))
                made[name], start = _like(here, flat[start:end]) if is_cut else here, end
            result.append(made)
        return result


class _Name(NamedTuple):
    """What numbers of a call are.

    Attributes:
        is_compared: whether it is the largest or smallest of them that is wanted.
        name: theirs.
        over: what they are over: `ROWS` or `COLS`, or elements.
    """

    is_compared: bool
    name: str
    over: Extent

    @classmethod
    def of(cls, name: str, values: Any) -> _Name:
        if isinstance(values, SideSums):
            return cls(values.over.how == LARGEST, name, values.over.extent)
        return cls(name.startswith(("top_", "low_")), name, ELEMENTS)


class _Entry(NamedTuple):
    """The numbers of a tensor in a call, one after another."""

    name: _Name
    place: int
    size: int
    reaches: Mapping[Reach, float]
    at: range


_NONE = np.zeros(0, np.int64)
_MOST = np.finfo(np.float64).max
"""What stands for inf where the largest is wanted, and inf for NaN."""


class _Nothing:
    """What processes agree on before the first step."""

    size, key, indices, places = 0, -1.0, (), ()

    def let_go(self) -> None:
        """Has nothing to let go."""


_NOTHING: Any = _Nothing()


def _index(sent: Sequence[_Entry], reach: Reach) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    chosen = [entry for entry in sent if reach in entry.reaches]
    compared = [entry for entry in chosen if entry.name.is_compared]
    added = [entry for entry in chosen if not entry.name.is_compared]
    shares = [np.full(entry.size, entry.reaches[reach]) for entry in added]
    signs = [np.full(entry.size, -1.0 if entry.name.name.startswith("low_") else 1.0) for entry in compared]
    factors = [np.concatenate([np.zeros(0), *own]) for own in (shares, signs)]
    return _places_of(added), _places_of(compared), factors[0], factors[1]


def _places_of(entries: Sequence[_Entry]) -> np.ndarray:
    return np.concatenate([_NONE, *(np.arange(entry.at.start, entry.at.stop) for entry in entries)])


def _lengths(values: Any) -> Any:
    """How many numbers each tensor has; None for one."""
    return values.lengths if isinstance(values, SideSums) else None


def _array(values: Any) -> np.ndarray:
    if isinstance(values, SideSums):
        values = values.values
    if isinstance(values, Tensor):
        return values.detach().double().cpu().numpy().reshape(-1)
    if isinstance(values, np.ndarray):
        return values.astype(np.float64, copy=False)
    return np.array([float(one) for one in values], np.float64)


def _like(values: Any, numbers: np.ndarray) -> Any:
    """Numbers in the form in which others were given."""
    if isinstance(values, Tensor):
        return torch.from_numpy(numbers.copy()).to(values.device, values.dtype).reshape(values.shape)
    return numbers if isinstance(values, np.ndarray) else numbers.tolist()
