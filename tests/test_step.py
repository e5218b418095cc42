"""What a step is: its order, and that services and formulas see completed sums alone."""

from __future__ import annotations

import pytest
import torch
from dropin import random

import steprule
from steprule.engine.run import take_step
from steprule.step import plan
from steprule.trace.norms import Norm

WANTS = Norm("grad", 2.0, check=True)


class Noting:
    """Work that notes what it is asked for."""

    program = rooms = None

    def __init__(self, name, depth, noted):
        self.name, self.depth, self.in_turn, self._noted = name, depth, name in "xy", noted

    def __getattr__(self, what):
        return lambda *given: self._noted.append(" ".join(map(str, (self.name, what, *given))))

    def read(self, wants):
        assert wants is WANTS
        self._noted.append(f"{self.name} read")
        return {"total_grad": self.name}

    def sums(self, level):
        self._noted.append(f"{self.name} sums {level}")
        return {}


class Asking:
    """Services that take a step or not."""

    def __init__(self, takes, noted, wants=WANTS, counts=True):
        self.takes, self._noted, self.wants, self.gathers, self.counts = takes, noted, wants, True, counts

    def ask(self, works, sums, complete):
        self._noted.append(f"ask {[own['total_grad'] for own in sums]}")
        return self.takes

    def note(self, works, gathered, complete):
        self._noted.append(f"note {gathered}")


def noted_of(depths, takes=True, wants=WANTS, first=True, counts=True):
    noted = []

    def complete(works, sums):
        noted.append("complete")
        return sums

    complete.failed = None
    works = [Noting(name, depth, noted) for name, depth in depths.items()]
    begin = (lambda: noted.append("begin")) if first else None
    assert take_step(works, Asking(takes, noted, wants, counts), complete, begin) is takes
    return noted


READ = ["a read", "b read", "complete", "ask ['a', 'b']"]
LEVELS = [
    "b count", "b run 0", "b sums 0", "complete", "b put 0 {}", "b run 1", "b sums 1", "complete", "b put 1 {}",
]  # fmt: skip
LAST = ["a step True", "b step True", "note True"]


def test_the_order_of_a_step():
    assert noted_of({"a": 0, "b": 2}) == [*READ, "a prepare", "b prepare", *LEVELS, "begin", *LAST]


def test_works_that_share_memory_find_their_numbers_in_turn():
    x, y = (
        [f"{name} count", f"{name} run 0", f"{name} sums 0", f"{name} put 0 {{}}", f"{name} step True"] for name in "xy"
    )
    begun = ["ask []", "x prepare", "a prepare", "y prepare", "complete", "begin"]
    assert noted_of({"x": 1, "a": 0, "y": 1}, wants=None) == [*begun, "a step True", *x, *y, "note True"]


def test_a_step_that_a_plan_has_taken_before_is_looked_at_no_more():
    assert noted_of({"a": 0, "b": 2}, first=False) == [*READ, *LEVELS, *LAST]


def test_a_refused_step_goes_no_further():
    assert noted_of({"a": 0, "b": 2}, takes=False) == READ


def test_nothing_is_read_that_nobody_wants_to_know():
    steps = ["a step True", "note True"]
    for counts in (False, True):  # processes compare what they step before anything changes
        assert noted_of({"a": 0}, wants=None, first=False, counts=counts) == ["ask []", "complete", *steps]


def test_what_is_compared_with_the_first_sums_is_not_compared_before():
    assert noted_of({"b": 2}, wants=None, first=False, counts=False) == ["ask []", *LEVELS, "b step True", "note True"]


@pytest.fixture
def completing(monkeypatch):
    """Steps of plans whose sums are multiplied, as if as many processes had the same."""

    def begin(times):
        names = []

        def complete(works, sums):
            names.append([*sums[0]])
            return [{name: _times(times, values) for name, values in own.items()} for own in sums]

        complete.failed = None
        monkeypatch.setattr(
            plan, "take_step", lambda works, around, _, *given: take_step(works, around, complete, *given)
        )
        return names

    return begin


def _times(times, values):
    return [times * x for x in values] if isinstance(values, list) else times * values


def make(optimizer, strided, **options):
    param = random((6, 4), 1, torch.float32)
    param = (param.repeat(1, 2)[:, ::2] if strided else param).requires_grad_()
    param.grad = torch.empty_like(param).copy_(random((6, 4), 2))
    return param, optimizer([param], lr=0.1, **options)


@pytest.mark.parametrize("strided", [False, True], ids=["compiled", "eager"])
def test_every_sum_is_completed_before_it_is_used(strided, completing):
    """The services' reading, LAMB's norms and what telemetry counts, in the first step and those after it."""
    names = completing(1)
    _, optimizer = make(steprule.LAMB, strided, clip=1.0, telemetry=2)
    optimizer.step()
    first = [name for name in names if name]
    assert first == [["total_grad"], ["sum0", "sum1"]]
    names.clear()
    optimizer.step()
    second = [name for name in names if name]
    assert second[:-1] == first and "total_lost" in second[-1]


@pytest.mark.parametrize("strided", [False, True], ids=["compiled", "eager"])
def test_decisions_are_of_completed_sums(strided, completing):
    """Four times the sum of squares is twice the norm: by clipping the gradient is made shorter."""
    limit = 1.5 * float(random((6, 4), 2).norm())
    param, alone = make(steprule.SGD, strided, clip=limit)
    start = param.detach().clone()
    alone.step()
    assert alone.clipped_steps == 0
    gone = param.detach() - start
    completing(4.0)
    param, among_four = make(steprule.SGD, strided, clip=limit)
    among_four.step()
    assert float(among_four.grad_norm) == pytest.approx(2 * limit / 1.5) and among_four.clipped_steps == 1
    torch.testing.assert_close(param.detach() - start, 0.75 * gone, rtol=1e-5, atol=1e-7)
