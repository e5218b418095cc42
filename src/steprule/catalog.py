"""What ``steprule list`` and ``steprule show`` print of the rules."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steprule.docstrings import words_of
from steprule.formats import STATE_FORMATS, bytes_of, state_format
from steprule.names import did_you_mean
from steprule.registry import TORCHS_OWN
from steprule.rule import NEEDS, Rule
from steprule.rules import RULES
from steprule.trace.tracing import exact_states

KERNELS = ("cpu", "gpu")

_CITATION = re.compile(
    r"[A-Z][\w'-]+(?: et al\.|(?:, [A-Z][\w'-]+)* & [A-Z][\w'-]+)? \d{4}(?:, arXiv:[\w./-]*\w)?(?=[,;.]| \(|$)"
)
_SHAPE = (4096, 4096)
"""Of a matrix that is large enough for every format."""


def find(name: str) -> type[Rule]:
    """The rule of a name as `steprule.rules.RULES` has it; case, "-" and "_" do not matter.

    Raises:
        ValueError: there is none.
    """
    plain = re.sub("[-_]", "", name.lower())
    if plain in TORCHS_OWN:
        raise ValueError(told_of_torchs(plain))
    if plain not in RULES:
        raise ValueError(f"unknown optimizer {name!r}{_nearest(plain.rpartition('.')[2], [*RULES, *TORCHS_OWN])}")
    return RULES[plain]


def told_of_torchs(name: str) -> str:
    """What there is to say of one of torch.optim's own."""
    return (
        f"{name} is torch.optim's own, with no formula here: help(steprule.{TORCHS_OWN[name]}) has its arguments. It keeps "
        f"{_TORCHS_STATES[name]}, in the parameters' dtype"
    )


_TORCHS_STATES = {
    "adafactor": "of a matrix one number a row and one a column (row_var, col_var), of a vector one an element (variance)",
    "lbfgs": "at most 2 * history_size + 2 numbers an element, which is 202 with the default (old_dirs, old_stps, d, prev_flat_grad)",
    "muon": "one number an element (momentum_buffer), and takes matrices only",
}
"""What those keep."""


def paper(rule: type[Rule]) -> str:
    """Authors and year, and arXiv's number where the docstring has it: the first that it cites, or nothing."""
    found = _CITATION.search(" ".join((rule.__doc__ or "").split()))
    return found[0] if found else ""


def summary(rule: type[Rule]) -> str:
    """The first sentence of the docstring."""
    return re.split(r"(?<=\.) (?=[A-Z])", " ".join((rule.__doc__ or "").split()), maxsplit=1)[0]


def state_bytes(rule: type[Rule], state: str, states: str) -> float:
    """The bytes an element that a state takes in a large float32 matrix.

    Args:
        rule: the rule.
        state: one of its states that is no scalar.
        states: one of `steprule.formats.STATE_FORMATS`.
    """
    condition = rule.states[state].when
    hyper = {**rule.hyperparameters, **({condition: True} if condition else {})}
    kind = state_format(states, "float32", _SHAPE, False, state in exact_states(rule, hyper))
    return bytes_of(kind, _SHAPE) / math.prod(_SHAPE)


def settled(text: str) -> tuple[type[Rule], Mapping[str, Any]]:
    """A rule with the options around its formula, and a value for each hyperparameter.

    Args:
        text: a name as for `find`, and after a colon settings as `steprule compare` has them: "adamw:amsgrad=True".

    Raises:
        ValueError: the name, a setting or a value cannot be right.
    """
    name, colon, settings = text.partition(":")
    rule = find(name)
    if not colon:
        return rule, rule.hyperparameters
    import torch

    from steprule.compare.spec import check, parse

    optimizer: Any = check(parse(f"{rule.__name__.lower()}:{settings}"), torch.nn.Linear(1, 1))
    return optimizer.rule, {name: optimizer.param_groups[0][name] for name in optimizer.rule.hyperparameters}


def kernel_text(rule: type[Rule], kernel: str, hyper: Mapping[str, Any] | None = None) -> str:
    """The source that an engine would compile for float32 parameters.

    Args:
        rule: the rule.
        kernel: "cpu" or "gpu".
        hyper: a value for each hyperparameter, by default the defaults.

    Raises:
        ValueError: kernel is neither.
    """
    from steprule.kernels import cpu_pass, gpu_pass
    from steprule.kernels.source import title_of
    from steprule.trace.tracing import trace

    if kernel not in KERNELS:
        raise ValueError(f"--kernel {kernel!r} must be {' or '.join(KERNELS)}")
    formula = trace(rule, hyper or rule.hyperparameters)
    formats = ("float32",) * len(formula.operands)
    write: Any = cpu_pass.write_pass if kernel == "cpu" else gpu_pass.write_pass
    title = title_of(rule)
    # Sums over elements are kernels of their own, which go before.
    return "\n\n".join(write(title, one, formats).text for one in (*formula.readings, formula.last))


def print_list(needs: Sequence[str] = ()) -> None:
    """Prints a table of the rules.

    Args:
        needs: only rules that are good for all of these, keys of `steprule.rule.NEEDS`.

    Raises:
        ValueError: one is unknown.
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    for need in needs:
        if need not in NEEDS:
            raise ValueError(f"--need {need!r} is unknown{_nearest(need, NEEDS)}")
    chosen = {name: rule for name, rule in RULES.items() if set(needs) <= set(rule.needs)}
    output = Table(title=f"{len(chosen)} of {len(RULES)} optimizers", title_justify="left", show_lines=True)
    output.add_column("name\nclass", no_wrap=True)
    output.add_column("bytes an\nelement", justify="right")
    output.add_column("in\ntorch")
    output.add_column("good for", no_wrap=True)
    output.add_column("what it is\npaper\nstates", overflow="fold")
    for name, rule in chosen.items():
        kept = [state for state in rule.states_for(rule.hyperparameters) if state in rule.tensor_states]
        optional = [f"({state})" for state in rule.tensor_states if state not in kept]
        count = sum(state_bytes(rule, state, "float32") for state in kept)
        is_torchs = "yes" if hasattr(torch.optim, rule.__name__) else ""
        lines = [summary(rule), paper(rule), ", ".join(kept + optional)]
        output.add_row(
            f"{name}\n{rule.__name__}", f"{count:g}", is_torchs, "\n".join(rule.needs), "\n".join(filter(None, lines))
        )
    console = Console()
    console.print(output)
    console.print(f"There too, as torch.optim has them: {', '.join(TORCHS_OWN)}.")
    console.print("Bytes are those of float32 states; states in parentheses are only there with other settings.")


def print_rule(name: str, latex: bool = False, kernel: str | None = None) -> None:
    """Prints what there is to know about a rule, or its kernel.

    Args:
        name: as for `settled`.
        latex: print the formula as LaTeX.
        kernel: "cpu" or "gpu" to print the source of that kernel and nothing else.

    Raises:
        ValueError: name or kernel is unknown, or a setting.
    """
    from rich.console import Console
    from rich.table import Table

    from steprule.formula import formula_latex, formula_text

    if name.lower() in TORCHS_OWN and kernel is None:
        print(told_of_torchs(name.lower()))
        return
    rule, hyper = settled(name)
    if kernel is not None:
        print(kernel_text(rule, kernel, hyper))
        return
    write = formula_latex if latex else formula_text
    settings = ", ".join(f"{key}={value!r}" for key, value in hyper.items())
    meanings = "\n".join(f"{key}: {words_of(rule, key)}" for key in hyper)
    parts = [f"{rule.__name__}(params, {settings})", inspect.cleandoc(rule.__doc__ or ""), meanings, write(rule, hyper)]
    for condition in dict.fromkeys(state.when for state in rule.states.values()):
        if condition and not hyper[condition]:
            value = True if isinstance(rule.hyperparameters[condition], bool) else 0.9
            parts.append(f"With {condition}:\n\n{write(rule, {**hyper, condition: value})}")
    if not latex:
        parts.append("A state with a prime has its new value.")
    print(*parts, sep="\n\n", end="\n\n")
    title = "States, and their bytes an element in three formats" if rule.states else "No states"
    output = Table(title=title, title_justify="left")
    for heading in ("state", "begins at", "kept"):
        output.add_column(heading)
    for heading in STATE_FORMATS:
        output.add_column(heading, justify="right")
    for state, said in rule.states.items():
        sizes = ["one number a tensor"]
        if state in rule.tensor_states:
            sizes = [f"{state_bytes(rule, state, kind):.3g}" for kind in STATE_FORMATS]
        output.add_row(state, str(said.begins or 0), f"with {said.when}" if said.when else "always", *sizes)
    Console().print(output)
    for need in rule.needs:
        print(f"{need}: {NEEDS[need]}")
    if rule.when:
        print(f"\nWhen: {rule.when}")


def _nearest(word: str, choices: Iterable[str]) -> str:
    """What to write in place of a word that is none of these."""
    choices = list(choices)
    return did_you_mean(word, choices, otherwise=f"choose from {', '.join(choices)}")
