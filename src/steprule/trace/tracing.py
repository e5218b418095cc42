"""Turns a rule's formula into an expression, by calling it with symbols instead of numbers: twice, and it must be the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from traceback import walk_tb
from typing import Any

from steprule.hyper import MULTIPLIERS, is_fixed
from steprule.rule import Rule, RuleError, State
from steprule.signature import where
from steprule.trace.around import NO_SERVICES, Services
from steprule.trace.checks import asked_for_none, check_new, check_param, told_of_name, told_of_none
from steprule.trace.cut import Cut, cut, goes_by_passes, sees_matrix, takes_vectors
from steprule.trace.expression import Expression, constant, inputs_of, operations, scalar_name
from steprule.trace.extent import COLS, ELEMENTS, KEPT, NUMBER, PLAIN, ROWS, Extent, join, shown
from steprule.trace.instead import SUMS, with_pieces
from steprule.trace.places import is_ours, place_of
from steprule.trace.program import COUNTS, Matrix, Program, Stage
from steprule.trace.sides import check_sides
from steprule.trace.signs import extremes, nonnegative

_EVALUATE = Rule.evaluate.__code__


def _ask(rule: type[Rule], *arguments: Any) -> tuple[Any, ...]:
    """What the formula returns; what it stumbles over is told with its line."""
    try:
        return rule.evaluate(*arguments)
    except RuleError:
        raise
    except Exception as error:
        frames = [(frame.f_code, line) for frame, line in walk_tb(error.__traceback__)]
        places = [place_of(*one) for one in frames if not is_ours(one[0]) and one[0] is not _EVALUATE]
        hint = f". Write {with_pieces(SUMS)}" if str(error).startswith(("mean()", "total()", "norm()")) else ""
        if isinstance(error, NameError):
            hint = told_of_name(rule, str(getattr(error, "name", "")))
        where_ = places[-1] if places else rule.__name__
        raise RuleError(f"{rule.__name__}.update: {type(error).__name__}: {error} ({where_}){hint}") from error


_steady: dict[Any, Sequence[Any]] = {}
"""What formulas returned, by rule and flags: kernels that were made of it are used again."""


def _check_steady(rule: type[Rule], first: Sequence[Any], second: Sequence[Any]) -> None:
    """Raises for a formula that is another one when it is asked for again: what made it so would be frozen in a kernel."""
    change = _difference(first, second)
    if change is not None:
        raise RuleError(
            f"{rule.__name__}.update is not the same formula when it is asked for twice: {change} ({where(rule.function())}). "
            "What changes between steps must be a state, a hyperparameter or depend on step; rules have no random numbers. "
            "Where what it uses was defined anew, define the rule anew too."
        )


def _difference(first: Sequence[Any], second: Sequence[Any]) -> str | None:
    """Where what a formula returned is not what it returned before, None where it is."""
    seen: set[tuple[int, int]] = set()
    pairs = [*zip(reversed(first), reversed(second), strict=True)]
    while pairs:
        one, other = pairs.pop()
        if (id(one), id(other)) in seen or one is other:
            continue
        seen.add((id(one), id(other)))
        if isinstance(one, Expression) and isinstance(other, Expression):
            if one.op == other.op and len(one.args) == len(other.args):
                pairs += zip(reversed(one.args), reversed(other.args), strict=True)
                continue
        elif repr(one) == repr(other):
            continue
        return f"{_word(one)} became {_word(other)}"
    return None


def _word(value: Any) -> str:
    if not isinstance(value, Expression):
        return str(value)
    return str(value.args[0]) if value.op in ("constant", "input") else f"an operation {value.op!r}"


def trace(
    rule: type[Rule], hyper: Mapping[str, Any], maximize: bool = False, services: Services = NO_SERVICES
) -> Program:
    """Calls the rule's formula with symbols.

    Args:
        rule: the rule.
        hyper: a value for each hyperparameter; only those that are True, False, None or text matter here,
            and which states they call for.
        maximize: negate the gradient first.
        services: what else the pass does; see `Services`.

    Raises:
        RuleError: the formula does what no formula can; the message names the line.
    """
    param, grad, _ = _operands(rule, hyper)
    grad, seen, counted = services.grad(grad)
    outputs, scalars = formulas(rule, hyper, -grad if maximize else grad, (maximize, services.before))
    is_matrix, by_passes, changes = sees_matrix(outputs), goes_by_passes(outputs), dict(outputs)
    for_vectors = takes_vectors(outputs) and not rule.matrices_only
    in_some_steps = "every" in operations(outputs.values())
    extents = {name: KEPT[state.extent] for name, state in rule.states.items() if state.extent != "elements"}
    begun = [name for name, state in rule.states.items() if _may_begin_below_0(state)]
    changes = {name: new for name, new in changes.items() if name == "param" or name in rule.tensor_states}
    signs = nonnegative({name: new for name, new in changes.items() if name not in begun}, (*extents, *COUNTS))
    found = cut(extents, outputs) if by_passes else Cut()
    _check_matrices(rule, found.matrices, scalars)
    extreme, new = extremes(changes), outputs["param"]
    averages = services.averages(new)
    stored, order = {**outputs, **averages}, [*changes, *averages]
    if not by_passes and "total_of_all" in operations(outputs.values()):
        raise RuleError(
            f"{rule.__name__}.update adds up over all tensors beside functions of a matrix ({where(rule.function())}), which no engine does"
        )
    last = Stage(
        operands=("param", "grad", *(name for name in order if name != "param"), *found.matrices),
        scalars=(*scalars, *services.scalars),
        own=found.own,
        factor=services.factor,
        outputs=stored,
        counted=counted,
        gathered=services.gathered(seen, param, new),
        sides=found.sides,
    )
    return Program(found.levels(last), last, signs, extreme, is_matrix, by_passes, for_vectors, in_some_steps)


def formulas(
    rule: type[Rule], hyper: Mapping[str, Any], grad: Expression | None = None, how: Any = (False, NO_SERVICES.before)
) -> tuple[dict[str, Expression], list[tuple[str, int | None]]]:
    """What a step makes of the parameter and of each state, as the rule says it; and the hyperparameters that are numbers.

    Args:
        rule, hyper: as for `trace`.
        grad: what the rule is given for the gradient. Default: that.
        how: what made this of it.

    Raises:
        RuleError: as `trace`.
    """
    settings, scalars = _symbols(rule, hyper)
    param, plain, states = _operands(rule, hyper)
    grad = plain if grad is None else grad
    every = tuple(name and states[name] for name in rule.states_for(hyper))
    result = _ask_twice((rule, static_settings(rule, hyper), how), rule, param, grad, every, _STEP, settings)
    named = {name: new for name, new in zip(("param", *rule.states_for(hyper)), result, strict=True) if name}
    check_new(rule, named, grad.depth)
    outputs = {name: new if isinstance(new, Expression) else constant(new) for name, new in named.items()}
    _check_extents(rule, outputs)
    return {name: _spread(rule, name, new) for name, new in outputs.items()}, scalars


def _spread(rule: type[Rule], name: str, new: Expression) -> Expression:
    """What elements, rows or columns become: a row's or column's value is that of all its elements, and a number that of all."""
    extent = _extent(rule, name)
    is_wider = new.extent in (ROWS, COLS) if extent == ELEMENTS else new.extent == NUMBER and extent in (ROWS, COLS)
    return Expression("mul", (new, constant(1.0)), extent) if is_wider else new


def _extent(rule: type[Rule], name: str) -> Extent:
    """What the parameter or a state has a value for."""
    return KEPT[rule.states[name].extent] if name in rule.states else ELEMENTS


def _symbols(rule: type[Rule], hyper: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, int | None]]]:
    """What stands for the hyperparameters in a formula, and which of them are numbers."""
    settings: dict[str, Any] = {}
    scalars: list[tuple[str, int | None]] = []
    for name, default in rule.hyperparameters.items():
        value = hyper[name]
        if isinstance(default, bool):
            settings[name] = bool(value)
        elif is_fixed(default, value):
            settings[name] = value
        elif isinstance(default, tuple):
            settings[name] = tuple(Expression("input", (scalar_name(name, i),), NUMBER) for i in range(len(default)))
            scalars += [(name, i) for i in range(len(default))]
        else:
            settings[name] = Expression("input", (name,), NUMBER)
            scalars.append((name, None))
    for by in multipliers_of(rule, hyper):
        settings[MULTIPLIERS[by]] = settings[MULTIPLIERS[by]] * Expression("input", (by,), NUMBER)
        scalars.append((by, None))
    return settings, scalars


def _ask_twice(key: Any, rule: type[Rule], *arguments: Any) -> tuple[Any, ...]:
    """What the formula returns, if that is what it always returns."""
    result = _ask(rule, *arguments)
    if key in _steady:
        _check_steady(rule, _steady[key], result)
    else:
        again = _ask(rule, *arguments)
        _check_steady(rule, result, again)
        _steady[key] = again
    return result


_checked: set[Any] = set()
"""Rules and flags that `check_formula` knows."""


def check_formula(rule: type[Rule], hyper: Mapping[str, Any]) -> None:
    """Raises for a formula that could be compiled, and is a mistake.

    Args:
        rule: the rule.
        hyper: as for `trace`.

    Raises:
        RuleError: it loses the parameter, asks whether a state is None that always exists, or gives a square another shape.
    """
    key = (rule, static_settings(rule, hyper))
    if key in _checked:
        return
    settings, _ = _symbols(rule, hyper)
    param, grad, states = _operands(rule, hyper)

    def ask(absent: str = "") -> dict[str, Any]:
        given = tuple(None if name == absent else states.get(name) for name in rule.states)
        result = _ask(rule, param, grad, given, _STEP, settings)
        return {
            name: new for name, new in zip(("param", *rule.states), result, strict=True) if name in ("param", *states)
        }

    new = ask()
    check_param(rule, new)
    check_sides(rule, hyper, new)
    for name in asked_for_none(rule):
        try:
            without = ask(absent=name)
        except Exception:  # it computes with the state, as it may
            continue
        pairs = [(value, without[key]) for key, value in new.items() if without[key] is not None]
        if _difference(*zip(*pairs, strict=True)) is not None:
            raise RuleError(told_of_none(rule, name))
    _checked.add(key)


def _operands(rule: type[Rule], hyper: Mapping[str, Any]) -> tuple[Expression, Expression, dict[str, Expression]]:
    """What stands for the parameter, the gradient and the states that exist."""
    states = {
        name: Expression("input", (name,), KEPT[rule.states[name].extent]) for name in rule.states_for(hyper) if name
    }
    return Expression("input", ("param",), ELEMENTS), Expression("input", ("grad",), ELEMENTS), states


_STEP = Expression("input", ("step",), NUMBER)


def _check_extents(rule: type[Rule], outputs: Mapping[str, Expression]) -> None:
    """Raises for a state that is to become more than it has room for, and for a square that is to become less."""
    for name, new in outputs.items():
        extent = _extent(rule, name)
        if join((extent, new.extent)) != extent or (extent not in PLAIN and new.extent != extent):
            sums = {NUMBER: "total, mean or norm", ROWS: "row_total or row_mean", COLS: "col_total or col_mean"}
            instead = (
                f"Write a sum over the elements: {sums[extent]} of steprule"
                if extent in sums
                else "Write a formula of that shape"
            )
            raise RuleError(
                f"{rule.__name__}.update returned {shown(new.extent)} as {name}, which is {shown(extent)} ({where(rule.function())}). {instead}."
            )


def _check_matrices(
    rule: type[Rule], matrices: Mapping[str, Matrix], scalars: Sequence[tuple[str, int | None]]
) -> None:
    """Raises for a function of matrices whose numbers are none that are known before the step."""
    known = {scalar_name(*scalar) for scalar in scalars}
    for one in matrices.values():
        for x in one.others:
            unknown = inputs_of(x) - known if isinstance(x, Expression) else set()
            if unknown:
                raise RuleError(
                    f"{rule.__name__}.update gives {one.op} a number that depends on {', '.join(sorted(unknown))} "
                    f"({where(rule.function())}). Give it numbers and hyperparameters"
                )


def _may_begin_below_0(state: State) -> bool:
    return state.begins == "param" or (not isinstance(state.begins, str) and state.begins < 0)


def static_settings(rule: type[Rule], hyper: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of the hyperparameters is fixed in a kernel."""
    rule = rule.chosen(hyper)
    settings = [
        bool(hyper[name]) if isinstance(default, bool) else hyper[name]
        for name, default in rule.hyperparameters.items()
        if isinstance(default, bool) or is_fixed(default, hyper[name])
    ]
    return (*settings, *rule.states_for(hyper), *multipliers_of(rule, hyper))


def multipliers_of(rule: type[Rule], hyper: Mapping[str, Any]) -> list[str]:
    """The multipliers beside hyperparameters that the rule has, and that are a number each."""
    numbers = {name for name, default in rule.hyperparameters.items() if isinstance(default, (int, float))}
    return [by for by, name in MULTIPLIERS.items() if by in hyper and name in numbers]


_programs: dict[Any, Program] = {}


def program_of(rule: type[Rule], hyper: Mapping[str, Any]) -> Program:
    """The rule's program for these hyperparameters and nothing else, traced when first asked for."""
    rule = rule.chosen(hyper)
    key = (rule, static_settings(rule, hyper))
    if key not in _programs:
        _programs[key] = program = trace(rule, hyper)
        program.check()
    return _programs[key]


def couples(rule: type[Rule], hyper: Mapping[str, Any]) -> bool:
    """Whether the formula has sums over all tensors, so that none can be stepped without the others."""
    return any(one.of_all for one in program_of(rule, hyper).sums.values())


def sums_of_all(rule: type[Rule], groups: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """For each level of the programs for these groups' hyperparameters the names of its sums over all tensors."""
    found: dict[int, set[str]] = {}
    for group in groups:
        for number, level in enumerate(program_of(rule, group).levels):
            sums = level.reading.sums if level.reading is not None else {}
            found.setdefault(number, set()).update(name for name, one in sums.items() if one.of_all)
    return [sorted(found[number]) for number in sorted(found)]


def nonnegative_states(rule: type[Rule], hyper: Mapping[str, Any]) -> frozenset[str]:
    """`Program.nonnegative` for these hyperparameters."""
    return program_of(rule, hyper).nonnegative


def exact_states(rule: type[Rule], hyper: Mapping[str, Any]) -> frozenset[str]:
    """The states that are kept in float32 at least: those that the rule names, and running maxima and minima.

    Such a one never forgets: of a state that it is compared with it would keep the largest rounding there ever was.
    So that state is exact too.
    """
    return program_of(rule, hyper).extreme.union(name for name in rule.states if rule.is_exact(name, hyper))
