"""What ``steprule list`` and ``steprule show`` print of the rules."""

from __future__ import annotations

import inspect
import json
import math
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from steprule.docstrings import OPTION_TEXTS, option, words_of
from steprule.formats import STATE_FORMATS, bytes_of, state_format
from steprule.names import did_you_mean
from steprule.registry import TORCHS_OWN, plain, unknown
from steprule.rule import NEEDS, Rule
from steprule.rules import RULES
from steprule.state import SQUARES
from steprule.trace.tracing import exact_states

KERNELS = ("cpu", "gpu")

_CITATION = re.compile(
    r"[A-Z][\w'-]+(?: et al\.|(?:, [A-Z][\w'-]+)* & [A-Z][\w'-]+)? \d{4}(?:, arXiv:[\w./-]*\w)?(?=[,;.]| \(|$)"
)
_SHAPE = (4096, 4096)
"""Of a matrix that is large enough for every format."""


def find(name: str, text: str = "") -> type[Rule]:
    """The rule of a name as `steprule.rules.RULES` has it; case, "-" and "_" do not matter. Or of "module.Class".

    Args:
        name: the name.
        text: what the name was a part of, for the message.

    Raises:
        ValueError: there is none.
    """
    if "." in name and not name.startswith("torch."):
        from steprule.create import optimizer_class

        own: Any = optimizer_class(name)
        return own.rule  # type: ignore[no-any-return]
    known = plain(name.removeprefix("torch.").removeprefix("optim."))
    if known in TORCHS_OWN:
        raise ValueError(told_of_torchs(known))
    if known in RULES and name.startswith("torch."):
        raise ValueError(f"{name} is torch.optim's, with no rule here; {known} is steprule's of that name")
    if known not in RULES:
        raise ValueError(unknown(text or name))
    return RULES[known]


def told_of_torchs(name: str) -> str:
    """What there is to say of one of torch.optim's own."""
    return (
        f"{name} is torch.optim's own, with no formula here: help(steprule.{TORCHS_OWN[name]}) has its arguments. It keeps "
        f"{_TORCHS_STATES[name]}, in the parameters' dtype"
    )


_TORCHS_STATES = {
    "lbfgs": "at most 2 * history_size + 2 numbers an element, which is 202 with the default (old_dirs, old_stps, d, prev_flat_grad)",
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


class Settled(NamedTuple):
    """A rule with the options around its formula, a value for each hyperparameter, and the options that were given."""

    rule: type[Rule]
    hyper: Mapping[str, Any]
    options: Mapping[str, Any]


def settled(text: str) -> Settled:
    """What a text stands for.

    Args:
        text: a name as for `find`, and after a colon settings as `steprule compare` has them: "adamw:amsgrad=True".

    Raises:
        ValueError: the name, a setting or a value cannot be right.
    """
    name, colon, settings = text.partition(":")
    rule = find(name, text)
    if not colon:
        return Settled(rule, rule.hyperparameters, {})
    import torch

    from steprule.compare.spec import check, parse

    spec = parse(f"{name if '.' in name else rule.__name__.lower()}:{settings}")
    optimizer: Any = check(spec, torch.nn.Linear(1, 1))
    hyper = {name: optimizer.param_groups[0][name] for name in optimizer.rule.hyperparameters}
    options = {name: value for name, value in spec.settings if name not in rule.hyperparameters}
    return Settled(optimizer.rule, hyper, options)


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
    if not formula.by_passes:
        raise ValueError(
            f"--kernel {kernel!r}: {rule.__name__} has none, and steps by torch's functions of whole matrices"
        )
    formats = ("float32",) * len(formula.operands)
    write: Any = cpu_pass.write_pass if kernel == "cpu" else gpu_pass.write_pass
    title = title_of(rule)
    # Sums over elements are kernels of their own, which go before.
    return "\n\n".join(write(title, one, formats).text for one in (*formula.readings, formula.last))


def listed(rule: type[Rule]) -> dict[str, Any]:
    """What ``steprule list`` says of a rule."""
    import torch

    kept = [state for state in rule.states_for(rule.hyperparameters) if state in rule.tensor_states]
    return {
        "name": rule.__name__.lower(),
        "class": rule.__name__,
        "summary": summary(rule),
        "paper": paper(rule),
        "bytes_an_element": sum(state_bytes(rule, state, "float32") for state in kept),
        "has_squares": any(state.extent in SQUARES for state in rule.states.values()),
        "in_torch": hasattr(torch.optim, rule.__name__),
        "needs": list(rule.needs),
        "sparse_only": rule.sparse_only,
        "states": _states(rule),
    }


def _states(rule: type[Rule]) -> dict[str, dict[str, Any]]:
    """What there is to say of a rule's states; those that are no number an element have no bytes an element."""
    sizes = {name: {kind: state_bytes(rule, name, kind) for kind in STATE_FORMATS} for name in rule.tensor_states}
    return {
        name: {"begins_at": state.begins or 0, "only_with": state.when or None, "bytes_an_element": sizes.get(name)}
        for name, state in rule.states.items()
    }


def print_list(needs: Sequence[str] = (), as_json: bool = False) -> None:
    """Prints a line or two for each rule, or all that is known as JSON.

    Args:
        needs: only rules that are good for all of these, keys of `steprule.rule.NEEDS`.
        as_json: print JSON.

    Raises:
        ValueError: one is unknown.
    """
    for need in needs:
        if need not in NEEDS:
            raise ValueError(f"--need {need!r} is unknown{_nearest(need, NEEDS)}")
    chosen = [listed(rule) for rule in RULES.values() if set(needs) <= set(rule.needs)]
    if as_json:
        print(json.dumps(chosen, indent=2))
        return
    row = "{:18}{:>6}  {:6}{}".format
    print(
        f"{len(chosen)} of {len(RULES)} optimizers: those of torch.optim first, then by family\n\n{row('', 'bytes', 'in', '')}".rstrip()
    )
    print(row("name", "kept", "torch", "what it is [and is good for]"))
    for one in chosen:
        good_for = [f"{need} only" if need == "sparse" and one["sparse_only"] else need for need in one["needs"]]
        about = one["summary"].replace("``", "") + (f" [{', '.join(good_for)}]" if good_for else "")
        lines = textwrap.wrap(about, width() - len(row("", "", "", "")), break_on_hyphens=False)
        kept = f"{one['bytes_an_element']:g}{'+' if one['has_squares'] else ''}"
        print(row(one["name"], kept, "yes" if one["in_torch"] else "", *lines[:1] or [""]).rstrip())
        for line in lines[1:]:
            print(row("", "", "", line))
    print()
    _tell(
        "Bytes kept are those of the float32 states for each element; + stands for squares beside a matrix as well. "
        "steprule memory counts all of a model."
    )
    _tell("steprule show NAME has the formula, paper, states and settings. For what an optimizer is good for, --need:")
    for need, meaning in NEEDS.items():
        print(f"  {need:12} {meaning}")
    _tell(f"torch.optim's own are in steprule too: {', '.join(TORCHS_OWN)}.")


def shown(name: str) -> dict[str, Any]:
    """What ``steprule show`` says of an optimizer, for machines.

    Args:
        name: as for `settled`.

    Raises:
        ValueError: name is unknown, or a setting.
    """
    from steprule.formula import formula_latex, formula_text

    if name.lower() in TORCHS_OWN:
        return {"name": name.lower(), "class": TORCHS_OWN[name.lower()], "summary": told_of_torchs(name.lower())}
    rule, hyper, options = settled(name)
    return {
        **listed(find(name.partition(":")[0])),
        "about": inspect.cleandoc(rule.__doc__ or ""),
        "when": rule.when,
        "hyperparameters": {
            key: {"value": _plain(value), "meaning": words_of(rule, key)} for key, value in hyper.items()
        },
        "options": dict(options),
        "formula": formula_text(rule, hyper),
        "latex": formula_latex(rule, hyper),
        "states": _states(rule),
    }


def _plain(value: Any) -> Any:
    """A setting as JSON can have it, which knows no infinity."""
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def print_rule(name: str, latex: bool = False, kernel: str | None = None, as_json: bool = False) -> None:
    """Prints what there is to know about a rule, or its kernel.

    Args:
        name: as for `settled`.
        latex: print the formula as LaTeX.
        kernel: "cpu" or "gpu" to print the source of that kernel and nothing else.
        as_json: print all of it as JSON.

    Raises:
        ValueError: name or kernel is unknown, or a setting.
    """
    from steprule.formula import formula_latex, formula_text

    if as_json and kernel is not None:
        raise ValueError("--json and --kernel do not go together: a kernel is printed as it is")
    if latex and kernel is not None:
        raise ValueError("--latex and --kernel do not go together: leave out one of the two")
    if as_json:
        print(json.dumps(shown(name), indent=2))
        return
    if name.lower() in TORCHS_OWN and kernel is None:
        _tell(told_of_torchs(name.lower()))
        return
    rule, hyper, options = settled(name)
    if kernel is not None:
        print(kernel_text(rule, kernel, hyper))
        return
    is_own = find(name.partition(":")[0]) not in RULES.values()
    classes = "a rule of your own" if is_own else f"steprule.{rule.__name__}, steprule.arrays.{rule.__name__}"
    print(f"{name.partition(':')[0] if is_own else rule.__name__.lower()}: {classes}\n")
    for paragraph in filter(None, inspect.cleandoc(rule.__doc__ or "").split("\n\n")):
        print(paragraph if "\n " in paragraph else textwrap.fill(paragraph, width()), end="\n\n")
    _print_settings(rule, hyper, options)
    write = formula_latex if latex else formula_text
    parts = [write(rule, hyper)]
    for condition in dict.fromkeys(state.when for state in rule.states.values()):
        if condition and not hyper[condition]:
            value = True if isinstance(rule.hyperparameters[condition], bool) else 0.9
            parts.append(f"With {condition}:\n\n{write(rule, {**hyper, condition: value})}")
    if not latex:
        parts.append("A state with a prime has its new value.")
    print(*parts, sep="\n\n", end="\n\n")
    _print_states(rule, options.get("states"))
    for need in rule.needs:
        _tell(f"{need}: {NEEDS[need]}")
    if rule.when:
        print()
        _tell(f"When: {rule.when}")


def _print_settings(rule: type[Rule], hyper: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Prints hyperparameters with their values and meanings, and options."""
    from steprule.optimizer.arguments import ALL_OPTIONS

    texts = {f"{name}={value!r}": words_of(rule, name) for name, value in hyper.items()}
    texts |= {
        f"{name}={value!r}": option(name)
        for name, value in options.items()
        if name in OPTION_TEXTS and name not in hyper
    }
    texts |= {
        f"{name}={value!r}": "" for name, value in options.items() if name not in OPTION_TEXTS and name not in hyper
    }
    wide = max(map(len, texts), default=0) + 4
    for setting, meaning in texts.items():
        first = f"  {setting}".ljust(wide)
        print(textwrap.fill(meaning, width(), initial_indent=first, subsequent_indent=" " * wide) or first.rstrip())
    others = ", ".join(name for name in ALL_OPTIONS if name not in options)
    print()
    _tell(f"As every optimizer it takes {others} as well: help(steprule.Optimizer) explains them.")
    print()


_NUMBERS = {
    "scalar": "one number a tensor",
    "rows": "one number a row",
    "cols": "one number a column",
    "left": "rows x rows",
    "right": "columns x columns",
}
"""What those take that are no number an element."""


def _print_states(rule: type[Rule], states: str | None) -> None:
    """Prints the states and what they take: in the format that is given, or in each."""
    kinds = [states] if states else [*STATE_FORMATS]
    if not rule.states:
        print("No states")
        return
    print(f"States, and their bytes an element{f' with states={states!r}' if states else ' in each format'}:\n")
    rows = [("state", "begins", "kept", *kinds)]
    for name, said in _states(rule).items():
        taken = said["bytes_an_element"]
        numbers = [_NUMBERS[rule.states[name].extent]] if taken is None else [f"{taken[kind]:.3g}" for kind in kinds]
        kept = f"with {said['only_with']}" if said["only_with"] else "always"
        rows.append((name, str(said["begins_at"]), kept, *numbers))
    wide = [max(len(row[column]) for row in rows) for column in range(3)]
    sizes = [max(map(len, kinds))] * len(kinds)
    indent = gap = "  "
    if sum(wide) + sum(sizes) + len(gap) * len(rows[0]) > width():
        indent, gap, sizes = "", " ", [*map(len, kinds)]
    for row in rows:
        print(indent + gap.join([*map(str.ljust, row[:3], wide), *map(str.rjust, row[3:], sizes)]))
    print()


def width() -> int:
    """Of lines of text: the terminal's, but no narrower than 60 columns and no wider than 100."""
    return min(max(shutil.get_terminal_size().columns, 60), 100)


def _tell(text: str) -> None:
    """Prints a paragraph."""
    print(textwrap.fill(text, width(), break_on_hyphens=False))


def _nearest(word: str, choices: Iterable[str]) -> str:
    """What to write in place of a word that is none of these."""
    choices = list(choices)
    return did_you_mean(word, choices, otherwise=f"choose from {', '.join(choices)}")
