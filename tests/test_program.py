"""What holds of every program: nothing reads what is not there yet, or is gone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from settings import variants

from steprule import Rule, State, norm, row_total, total_of_all
from steprule.rules import OWN
from steprule.trace.around import Services
from steprule.trace.expression import Expression
from steprule.trace.extent import ELEMENTS, NUMBER
from steprule.trace.norms import Norm
from steprule.trace.program import ADD, LARGEST, ROW, SMALLEST, TENSOR, Level, Program, Sum
from steprule.trace.tracing import trace


class Mine(Rule):
    """Two levels of sums, a state for each element and one for each tensor."""

    seen = State("scalar")

    def update(param, grad, exp_avg, seen, *, step, lr=0.1):
        seen = seen + norm(grad)
        exp_avg = exp_avg + grad / seen
        return param - lr * exp_avg / (step + total_of_all(abs(exp_avg))), exp_avg, seen


SERVICES = {
    "none": Services(),
    "all": Services(factor="row", limit=True, zero=True, average=True, gather=True),
}


@pytest.mark.parametrize("services", SERVICES)
@pytest.mark.parametrize("name", OWN)
def test_programs_hold_what_they_promise(name, services):
    for hyper in variants(OWN[name]):
        program = trace(OWN[name], hyper, services=SERVICES[services])
        program.check()
        assert program.levels[0].reading is None
        assert all(level.reading is not None for level in program.levels[1:])


@pytest.fixture
def program() -> Program:
    return trace(Mine, Mine.hyperparameters)


def test_stages_are_in_order(program):
    assert [[*level.numbers] for level in program.levels] == [[], ["seen"], []]
    assert [level.known for level in program.levels] == [("seen",), ("new_seen", "sum0"), ("sum1",)]
    assert [[*reading.sums] for reading in program.readings] == [["sum0"], ["sum1"]]
    assert [*program.last.outputs] == ["param", "exp_avg"]


def element(name: str) -> Expression:
    return Expression("input", (name,), ELEMENTS)


def number(name: str) -> Expression:
    return Expression("input", (name,), NUMBER)


def with_level(program: Program, place: int, level: Level) -> Program:
    return replace(program, levels=(*program.levels[:place], level, *program.levels[place + 1 :]))


def with_sums(program: Program, place: int, **sums: Sum) -> Program:
    level = program.levels[place]
    assert level.reading is not None
    return with_level(program, place, replace(level, reading=replace(level.reading, sums=sums)))


def stored_early(program: Program) -> Program:
    level = program.levels[1]
    assert level.reading is not None
    reading = replace(level.reading, outputs={"exp_avg": element("grad")})
    return with_level(program, 1, replace(level, reading=reading))


BROKEN = {
    "the pass of level 1 reads sum1, which is not known yet": lambda program: with_sums(
        program, 1, sum0=Sum(number("sum1"))
    ),
    "the pass of level 2 reads seen_sq, which is not known yet": lambda program: with_sums(
        program, 2, sum1=Sum(element("seen_sq"), of_all=True)
    ),
    "new_seen of level 1 reads grad, which is not known yet": lambda program: with_level(
        program, 1, replace(program.levels[1], numbers={"seen": element("grad")})
    ),
    "the last pass reads momentum, which is not known yet": lambda program: replace(
        program, last=replace(program.last, outputs={**program.last.outputs, "param": number("momentum")})
    ),
    "the last pass reads grad_factor, which is not known yet": lambda program: replace(
        program, last=replace(program.last, counted=element("grad_factor"))
    ),
    "the pass of level 2 reads exp_avg, which has been stored by then": stored_early,
    "levels add up tensors; sum0 is largest of each tensor": lambda program: with_sums(
        program, 1, sum0=Sum(element("grad"), LARGEST)
    ),
    "level 1 makes ['new_seen'] in the order ()": lambda program: with_level(program, 1, replace(program.levels[1], order=())),
    "the last pass stores ['param']": lambda program: replace(
        program, last=replace(program.last, outputs={"param": element("param")})
    ),
    "level 1 makes {'sum0'} and does not say so": lambda program: with_level(
        program, 1, replace(program.levels[1], known=("new_seen",))
    ),
    "levels know ['seen', 'new_seen', 'sum0', 'sum1'], and tensors have ('seen',)": lambda program: replace(
        program, last=replace(program.last, own=("seen",))
    ),
}  # fmt: skip


@pytest.mark.parametrize("told", BROKEN)
def test_what_breaks_a_promise_is_told(program, told):
    with pytest.raises(AssertionError) as error:
        BROKEN[told](program).check()
    assert str(error.value).startswith(told)


class Evened(Rule):
    """Rows of one length."""

    def update(param, grad, *, lr=0.1):
        return param - lr * grad / row_total(grad * grad)


def test_a_pass_reads_no_rows_that_it_is_not_given():
    program = trace(Evened, Evened.hyperparameters)
    program.check()
    with pytest.raises(AssertionError, match=r"^the last pass reads part0, which is not known yet"):
        replace(program, last=replace(program.last, sides={})).check()


# Norms, which are programs of one pass that only adds up

NORMS = {
    "2": (2.0, ADD, True),
    "1": (1.0, ADD, False),
    "0": (0.0, ADD, False),
    "3": (3.0, ADD, True),
    "inf": (math.inf, LARGEST, False),
    "-inf": (-math.inf, SMALLEST, False),
}
"""The p, how elements become one number, and whether it is computed in float64, where powers do not overflow."""


@pytest.mark.parametrize("axis", [TENSOR, ROW])
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("operand", ["param", "grad"])
def test_norms_hold_what_they_promise(operand, p, axis):
    value, how, wide = NORMS[p]
    for zero, check in ((False, False), (True, False), (False, True)):
        program = Norm(operand, value, axis, zero, check).program()
        program.check()
        assert program.levels == () and program.operands == (operand,)
        one = program.last.sums[operand]
        assert (one.how, one.axis, one.of_all, program.last.wide) == (how, axis, False, wide)


def norm_with(**changes: object) -> Program:
    program = Norm("grad", 2.0).program()
    return replace(program, last=replace(program.last, **changes))


BROKEN_NORMS = {
    "the last pass reads param, which is not known yet": {"sums": {"grad": Sum(element("param"))}},
    "grad is middle of each tensor": {"sums": {"grad": Sum(element("grad"), "middle")}},
    "grad is add of each column": {"sums": {"grad": Sum(element("grad"), axis="column")}},
    "the last pass cannot wait for grad of all tensors": {"sums": {"grad": Sum(element("grad"), of_all=True)}},
    "the last pass stores ['grad']": {"outputs": {"grad": element("grad")}},
}


@pytest.mark.parametrize("told", BROKEN_NORMS)
def test_what_breaks_a_promise_of_norms_is_told(told):
    with pytest.raises(AssertionError) as error:
        norm_with(**BROKEN_NORMS[told]).check()
    assert str(error.value).startswith(told)
