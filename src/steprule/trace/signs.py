"""Which states are never negative, and which are running maxima or minima: formats go by that."""

from __future__ import annotations

from collections.abc import Mapping

from steprule.trace.expression import SUM_OPS, Expression, operations, reads


def nonnegative(outputs: Mapping[str, Expression], own: tuple[str, ...]) -> frozenset[str]:
    """The states whose new value is not negative if their old values are not, hyperparameters being at least 0.

    Of own numbers, such as a sum, nothing is known.
    """
    candidates = set(outputs) - {"param"}
    while True:
        known: dict[int, bool] = {}
        kept = {name for name in candidates if _is_nonnegative(outputs[name], candidates, own, known)}
        if kept == candidates:
            return frozenset(kept)
        candidates = kept


def _is_nonnegative(x: Expression, states: set[str], own: tuple[str, ...], known: dict[int, bool]) -> bool:
    if id(x) not in known:  # without this, x * x would ask for x twice, and so on
        known[id(x)] = _find_sign(x, states, own, known)
    return known[id(x)]


def _find_sign(x: Expression, states: set[str], own: tuple[str, ...], known: dict[int, bool]) -> bool:
    if x.op == "constant":
        return bool(x.args[0] >= 0)
    if x.op in SUM_OPS or x.op == "transpose":
        return _is_nonnegative(x.args[0], states, own, known)
    if x.scalar and SUM_OPS.isdisjoint(operations([x])):  # lr, 1 - beta, ...
        return x.op != "neg" and not reads(x, own)
    if x.op == "input":
        return x.args[0] in states
    if x.op == "mul" and x.args[0] is x.args[1]:
        return True
    if x.op == "add" and x.args[1].op == "mul" and x.args[1].args[0].scalar:
        difference = x.args[1].args[1]
        if difference.op == "sub" and difference.args[1] is x.args[0]:  # avg + weight * (value - avg)
            parts = (x.args[0], difference.args[0])
            return all(_is_nonnegative(part, states, own, known) for part in parts)
    sign = [_is_nonnegative(arg, states, own, known) for arg in x.args if isinstance(arg, Expression)]
    if x.op in ("add", "mul", "div", "minimum", "matmul"):
        return all(sign)
    if x.op in ("where", "every"):
        return all(sign[1:])
    if x.op == "pow":
        return sign[0] or (x.args[1].op == "constant" and x.args[1].args[0] % 2 == 0)
    return x.op in ("abs", "sqrt", "cbrt", "exp") or (x.op == "maximum" and any(sign))


def extremes(outputs: Mapping[str, Expression]) -> frozenset[str]:
    """Running maxima and minima, and the states that they are compared with."""
    found = set()
    for name, new in outputs.items():
        if new.op in ("maximum", "minimum") and any(arg.op == "input" and arg.args[0] == name for arg in new.args):
            found |= {name, *(other for other, value in outputs.items() if any(arg is value for arg in new.args))}
    return frozenset(found)
