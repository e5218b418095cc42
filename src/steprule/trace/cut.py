"""Cuts sums and the new values of scalar states out of a formula: they are computed before its elements."""

from __future__ import annotations

from typing import Any

from steprule.trace.expression import SUM_OPS, Expression
from steprule.trace.program import Sum


def separate(scalar_states: tuple[str, ...], outputs: dict[str, Expression]) -> dict[str, Any]:
    """Makes sums and the new values of scalar states inputs of what is left in outputs.

    Returns:
        The fields of the formula that say what they are.
    """
    levels: dict[int, int] = {}
    numbers: dict[Any, int] = {}
    keys: dict[int, int] = {}
    found: list[Expression] = []
    has_size = False

    def visit(node: Expression) -> None:
        nonlocal has_size
        if id(node) in keys:
            return
        nodes = [arg for arg in node.args if isinstance(arg, Expression)]
        for arg in nodes:
            visit(arg)
        levels[id(node)] = max((levels[id(arg)] for arg in nodes), default=0) + (node.op in SUM_OPS)
        what = (node.op, *(keys[id(arg)] if isinstance(arg, Expression) else repr(arg) for arg in node.args))
        keys[id(node)] = numbers.setdefault(what, len(numbers))  # the same for what is written alike
        found.append(node)
        has_size |= node.op == "input" and node.args[0] == "numel"

    for expression in outputs.values():
        visit(expression)
    kept = [name for name in outputs if name in scalar_states]
    new = {name: outputs.pop(name) for name in kept}
    known = {"numel": 0} if has_size else {}
    known |= dict.fromkeys(kept, 0)
    known |= {f"new_{name}": levels[id(expression)] for name, expression in new.items()}
    places = {id(node): place for place, node in enumerate(found)}
    order = sorted(new, key=lambda name: places[id(new[name])])  # each after those that it is made of
    scalar_outputs = {name: Expression(new[name].op, new[name].args, True) for name in order}
    sums: dict[str, Sum] = {}
    names: dict[int, str] = {}
    for node in found:
        if node.op in SUM_OPS:
            key = keys[id(node)]
            if key not in names:
                names[key] = f"sum{len(names)}"
                sums[names[key]] = Sum(node.args[0], node.op == "total_of_all")
                known[names[key]] = levels[id(node)]
            node.op, node.args = "input", (names[key],)
    for name, one in scalar_outputs.items():
        if one.op in SUM_OPS:
            one.op, one.args = "input", (names[keys[id(new[name])]],)
    for name, expression in new.items():
        if expression.op not in ("input", "constant") or expression.args[0] in sums:
            expression.op, expression.args = "input", (f"new_{name}",)
    return {"own": tuple(known), "levels": known, "scalar_outputs": scalar_outputs, "sums": sums}
