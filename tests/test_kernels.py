"""Kernels as text: whatever names a rule has, and whatever else a formula is made of."""

from __future__ import annotations

import re
from typing import Any

import pytest

from steprule.kernels import cpu_pass, gpu_pass
from steprule.trace.expression import Expression
from steprule.trace.extent import ELEMENTS, NUMBER
from steprule.trace.program import Stage

WRITERS: dict[str, Any] = {"cpu": cpu_pass.write_pass, "gpu": gpu_pass.write_pass}
FORMATS = {
    "float32": ("float32",) * 3,
    "few bits": ("bfloat16 24bit", "bfloat16", "positive8"),
    "rounded at random": ("bfloat16 stochastic", "bfloat16", "bfloat16 dithered"),
}


def stage_of(state: str, setting: str, number: str) -> Stage:
    """A pass with an operand, a hyperparameter and a number of each tensor of these names, and all services."""
    param, grad, kept = (Expression("input", (name,), ELEMENTS) for name in ("param", "grad", state))
    lr, own, step = (Expression("input", (name,), NUMBER) for name in (setting, number, "step"))
    new = (kept + abs(grad)) * 0.5
    outputs = {"param": param - lr * grad / (new * new + own * step), state: new}
    gathered = {"grad": grad, "update": outputs["param"] - param, "param": outputs["param"]}
    return Stage(
        ("param", "grad", state), ((setting, None),), (number,), factor="tensor", outputs=outputs, counted=grad, gathered=gathered
    )  # fmt: skip


def functions(engine: str, formats: str, **names: str) -> list[str]:
    """The code of such a pass, function by function and without words about it."""
    given = {"state": "my_state", "setting": "my_setting", "number": "my_number", **names}
    text = WRITERS[engine]("", stage_of(**given), FORMATS[formats]).text
    return re.split(r"^(?=@)", re.sub(r'"""[\s\S]*?"""|#.*', "", text), flags=re.MULTILINE)


def words(code: str) -> set[str]:
    return set(re.findall(r"\b[^\W\d]\w*", code))


@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("role", ["state", "setting", "number"])
@pytest.mark.parametrize("engine", WRITERS)
def test_a_rules_names_are_told_apart_from_all_of_the_kernels(engine, role, formats):
    """A kernel whose rule uses one of its words is the same kernel, with another word for that in the rule."""
    mine = f"my_{role}"
    plain = functions(engine, formats)
    own = set().union(*(words(one) for one in plain if re.search(r"\b(my_(state|setting|number)|param)\b", one)))
    tried = {name for name in words("".join(plain)) if "my_" not in name and not name.startswith(("new_", "seen_"))}
    tried -= {"param", "grad", "step", "grad_factor"}
    assert len(tried) > 60
    for name in tried:
        names = {mine: name + "_" if name in own else name}
        renamed = re.sub(r"\w+", lambda x, to=names, name=name: to.get(x[0], x[0].replace(mine, name)), "".join(plain))
        assert "".join(functions(engine, formats, **{role: name})) == renamed, f"{name} makes another kernel"


@pytest.mark.parametrize("engine", WRITERS)
def test_each_number_of_a_loop_has_a_name_of_its_own(engine):
    """Among them a power that is used more than once, and what it is a power of."""
    param, grad = (Expression("input", (name,), ELEMENTS) for name in ("param", "grad"))
    square = (param + grad) ** 2
    other = (grad + 1) / (square + 1)
    stage = Stage(("param", "grad"), (), outputs={"param": square + other * other + abs(square)})
    text = WRITERS[engine]("", stage, ("float32", "float32")).text
    assigned = re.findall(r"^ *(t\d+) = ", text, flags=re.MULTILINE)
    assert len(assigned) == 3
    assert len(set(assigned)) == len(assigned)
