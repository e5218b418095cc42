"""The text of every kernel is the one that it was: a change of the source that should change no kernel changes none.

`digests.json` has a digest for each rule and engine. Where texts should change, run `python tests/test_digests.py`, which
writes it anew, and say in the commit why they did. Texts are made of the source alone: nothing is compiled, and neither
the machine nor the versions of Python and libraries are in them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from settings import variants

from steprule.formats import state_format, weight_format
from steprule.kernels import cpu_pass, gpu_pass, gpu_reading
from steprule.rule import Rule
from steprule.rules import OWN
from steprule.trace.around import Services
from steprule.trace.norms import Norm
from steprule.trace.program import Program
from steprule.trace.tracing import exact_states, nonnegative_states, trace

FILE = Path(__file__).with_name("digests.json")
ENGINES: dict[str, Any] = {"cpu": cpu_pass.write_pass, "gpu": gpu_pass.write_pass}
READ_BY: dict[str, Any] = {"cpu": cpu_pass.write_pass, "gpu": gpu_reading.write_reading}
KINDS = [
    ("float32", None, None, Services()),
    ("bfloat16", "stochastic", "8bit", Services()),
    ("bfloat16", "24bit", "bfloat16", Services(factor="tensor", average=True, gather=True)),
    ("float32", None, "8bit", Services(factor="row", limit=True, zero=True, average=True, gather=True)),
]
"""The dtype of the parameter, what `weights` and `states` say, and what goes on around the formula."""


def texts(rule: type[Rule], engine: str) -> Iterator[str]:
    """A rule's kernels: with all its flags as most people have them, and with its defaults in every way."""
    for kind in KINDS:
        for hyper in variants(rule) if kind is KINDS[0] else [dict(rule.hyperparameters)]:
            formula = trace(rule, hyper, services=kind[-1])
            if formula.last.sides and kind[-1].factor == "row":
                continue  # which no kernel takes
            formats = formats_of(rule, hyper, formula, *kind[:-1])
            for one in (*formula.readings, formula.last):
                yield ENGINES[engine]("", one, formats).text


def formats_of(
    rule: type[Rule], hyper: dict[str, Any], formula: Program, dtype: str, weights: str | None, states: str | None
) -> tuple[str, ...]:
    nonnegative, exact = nonnegative_states(rule, hyper), exact_states(rule, hyper)
    formats = {"param": weight_format(weights, dtype), "grad": dtype, "param_average": weight_format(weights, dtype)}
    for name in formula.operands:
        if name not in formats:
            formats[name] = (
                dtype
                if name in formula.matrices
                else state_format(states, dtype, (64, 64), name in nonnegative, name in exact)
            )
    return tuple(formats[name] for name in formula.operands)


def norms(engine: str) -> Iterator[str]:
    """What reads gradients before a step."""
    for p in (2.0, 1.0, math.inf, -math.inf, 0.0, 3.5):
        for dtype in ("float32", "bfloat16", "float64"):
            stage = Norm("grad", p, zero=dtype == "float32", check=dtype == "bfloat16").program().last
            yield READ_BY[engine]("", stage, [dtype]).text


def digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def digests(engine: str) -> dict[str, str]:
    every = {rule.__name__: [*texts(rule, engine)] for rule in OWN.values()}
    found = {name: digest(own) for name, own in every.items() if own}
    return {**found, "norms": digest(norms(engine))}


@pytest.mark.parametrize("engine", ENGINES)
def test_no_kernel_has_another_text(engine):
    known, now = json.loads(FILE.read_text())[engine], digests(engine)
    assert len(set(now.values())) == len(now)
    changed = sorted(name for name in known.keys() | now.keys() if known.get(name) != now.get(name))
    assert not changed, f"other kernels on the {engine}; if they should be, run python tests/test_digests.py"


@pytest.mark.parametrize("engine", ENGINES)
def test_digests_see_every_flag_format_and_service(engine):
    """Each text of a rule with a flag is another one."""
    found = [*texts(OWN["adam"], engine)]
    assert len(found) == len(set(found)) == len(variants(OWN["adam"])) + len(KINDS) - 1


if __name__ == "__main__":
    FILE.write_text(json.dumps({engine: digests(engine) for engine in ENGINES}, indent=1) + "\n")
