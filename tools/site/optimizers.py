"""Pages of optimizers: one for each rule, the list of all, and which to try first."""

from __future__ import annotations

import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

from curves import curve

from steprule.catalog import paper, state_bytes, summary
from steprule.docstrings import states as told_of_states
from steprule.docstrings import words_of
from steprule.formats import STATE_FORMATS
from steprule.formula import formula_latex, formula_text
from steprule.lessons.formula import equations_html, source_of
from steprule.rule import DECAYS, NEEDS, Rule
from steprule.rules import OWN

ROOT = Path(__file__).parents[2]
SOURCE = "https://github.com/steprule/steprule/blob/main"
PEERS = ROOT / "tests" / "peers" / "trajectories.json"


def address(rule: type[Rule]) -> str:
    """Where a rule's page lies, from the page of all."""
    return f"{rule.__name__.lower()}.md"


def pages() -> dict[str, str]:
    """The text of each page, by its path."""
    peers = json.loads(PEERS.read_text())["entries"]
    found = {
        f"reference/optimizers/{address(rule)}": page(rule, [one for one in peers if one["rule"] == name])
        for name, rule in OWN.items()
    }
    versions = sorted({f"{one['peer'].split('.')[0]} {one['version']}" for one in peers})
    return found | {"reference/optimizers/index.md": index(versions)}


def addresses() -> list[str]:
    """The pages of single optimizers, by name."""
    return sorted(f"reference/optimizers/{address(rule)}" for rule in OWN.values())


def page(rule: type[Rule], peers: list[dict[str, Any]]) -> str:
    """All about one rule."""
    defaults = ", ".join(f"{name}={value!r}" for name, value in rule.hyperparameters.items())
    needs = ", ".join(f"{need} ({NEEDS[need]})" for need in rule.needs)
    doc = inspect.cleandoc(rule.__doc__ or "")
    parts = [
        f"# {rule.__name__}",
        doc,
        f"**When to use it.** {rule.when}" + (f" Good for: {needs}." if needs else ""),
        f"``` {{ .python .no-run }}\nsteprule.{rule.__name__}(params, {defaults})\n```",
        "## Formula",
        equations_html(formula_latex(rule)),
        "As the code names it; `'` marks a value after this step:",
        f"```text\n{formula_text(rule)}\n```",
        *_flags(rule),
        "## Source",
        f"``` {{ .python .no-run }}\n{source_of(rule.function())}\n```",
        f"[{_file(rule)}]({SOURCE}/{_file(rule)})",
        "## Arguments",
        _arguments(rule),
        *_states(rule),
        "## Other implementations",
        _others(rule, peers),
        "## On a small task",
        curve(rule),
    ]
    return "\n\n".join(parts) + "\n"


def _flags(rule: type[Rule]) -> list[str]:
    """The formula with each flag that changes it."""
    defaults = rule.hyperparameters
    tried: list[dict[str, Any]] = [{"momentum": 0.9}] if defaults.get("momentum") == 0 else []
    for name in (name for name, value in defaults.items() if isinstance(value, bool)):
        needed = {"momentum": 0.9} if name == "nesterov" and "momentum" in defaults else {}
        tried.append({name: not defaults[name], **needed})
    notes, plain = [], formula_text(rule)
    for settings in tried:
        text = formula_text(rule, settings)
        if text != plain:
            called = ", ".join(f"{name}={value!r}" for name, value in settings.items())
            notes.append(f'??? note "With `{called}`"\n\n' + textwrap.indent(f"```text\n{text}\n```", "    "))
    return notes


def _file(rule: type[Rule]) -> str:
    return str(Path(inspect.getfile(rule)).relative_to(ROOT))


def _arguments(rule: type[Rule]) -> str:
    rows = [f"| `{name}` | `{value!r}` | {words_of(rule, name)} |" for name, value in rule.hyperparameters.items()]
    text = "\n".join(["| argument | default | meaning |", "|---|---|---|", *rows])
    text += "\n\nEvery optimizer also takes the [options of formats, services and weight decay](../options.md)."
    if rule.refuses:
        text += f" `decay`, `cautious`, `cautious_decay` and `lookahead` are refused: {rule.refuses}."
    if "weight_decay" in rule.hyperparameters:
        meaning = DECAYS.get(str(rule.decay), "a decay of the paper's own, which is none of the kinds of `decay`")
        text += f" Without `decay`, `weight_decay` means: {meaning.rstrip('.')}."
    for name, why in rule.constants.items():
        text += f" `{name}` must stay what it is in the first step: {why}."
    return text


def _states(rule: type[Rule]) -> list[str]:
    if not rule.states:
        return ["## States", "None."]
    told = told_of_states(
        rule,
        {
            "elements": "of the parameter's shape",
            "scalar": "one number for each tensor",
            "step": "one number for each tensor",
            "rows": "one number for each row",
            "cols": "one number for each column",
            "left": "a matrix of rows by rows",
            "right": "a matrix of columns by columns",
        },
    )
    rows = []
    for name in rule.states:
        sizes = (
            [f"{state_bytes(rule, name, kept):.3g}" for kept in STATE_FORMATS]
            if name in rule.tensor_states
            else [_BESIDE[rule.states[name].extent]] * len(STATE_FORMATS)
        )
        rows.append(f"| `{name}` | {told[name]} | {' | '.join(sizes)} |")
    kept = " | ".join(f"`{one}`" for one in STATE_FORMATS)
    head = f"| state | what it is | {kept} |\n|---|---|{'---:|' * len(STATE_FORMATS)}"
    about = "Bytes an element of a large matrix of m rows and n columns, for each format of `states`."
    return ["## States", about, "\n".join([head, *rows])]


_BESIDE = {"scalar": "0", "rows": "4 / n", "cols": "4 / m", "left": "4 m / n", "right": "4 n / m"}
"""Bytes an element of states that are no number an element, and that formats leave alone."""


def _others(rule: type[Rule], peers: list[dict[str, Any]]) -> str:
    lines = []
    if rule.like_torch is not None:
        lines.append(f"- `torch.optim.{rule.__name__}`: same arguments, errors, states and checkpoints.")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in peers:
        groups.setdefault((_options(rule, one), one["peer"]), []).append(one)
    agree = [peer for (asked, peer), ones in groups.items() if not asked and all(one["agrees"] for one in ones)]
    if agree:
        lines.append(f"- Agrees over 20 steps with {', '.join(f'`{one}`' for one in sorted(agree))}.")
    for (asked, peer), ones in groups.items():
        where = f"With `{asked}` it " if asked else "It "
        agreeing = [one for one in ones if one["agrees"]]
        if agreeing and (asked or len(agreeing) < len(ones)):
            needed = _given(_separating(ones))
            lines.append(f"- {where}agrees over 20 steps with `{peer}`{needed and f' given {needed}'}.")
        for one in ones:
            if one["agrees"] is False:
                lines.append(f"- {where}differs from `{peer}`{_difference(one, ones)}. That one: {one['why']}")
    lines = list(dict.fromkeys(lines))
    lines.append("- Agrees with the paper's pseudocode, transcribed apart from the rule (`tests/papers*.py`).")
    return "\n".join(lines)


def _options(rule: type[Rule], peer: dict[str, Any]) -> str:
    """The options around the formula that a comparison was made with."""
    return ", ".join(f"{name}={value!r}" for name, value in peer["options"].items() if name not in rule.hyperparameters)


_SCHEDULE = "a learning rate that changes"


def _settings(peer: dict[str, Any]) -> dict[str, Any]:
    """What the other implementation was given. Of the learning rate it only matters whether it changes."""
    rates = ("lr", "learning_rate")
    given = {name: value for name, value in peer.get("peer_options", {}).items() if name not in rates}
    return given | ({_SCHEDULE: True} if "lrs" in peer else {})


def _separating(ones: list[dict[str, Any]]) -> dict[str, Any]:
    """What all agreeing comparisons were given and one that differs was not. Agreeing at a rate that changes is no condition."""
    agreeing = [_settings(one) for one in ones if one["agrees"]]
    others = [_settings(one) for one in ones if one["agrees"] is False]
    shared = {name: x for name, x in agreeing[0].items() if all(name in one and one[name] == x for one in agreeing)}
    shared.pop(_SCHEDULE, None)
    return {name: x for name, x in shared.items() if any(name not in one or one[name] != x for one in others)}


def _difference(one: dict[str, Any], ones: list[dict[str, Any]]) -> str:
    """What a comparison that differs was given, or not given, unlike all that agree."""
    agreeing = [_settings(other) for other in ones if other["agrees"]]
    if not agreeing:
        return ""
    own = _settings(one)
    new = {name: x for name, x in own.items() if all(name not in other or other[name] != x for other in agreeing)}
    if new:
        return f" given {_given(new)}"
    lacking = {name: x for name, x in _separating(ones).items() if name not in own}
    return f" without {_given(lacking)}" if lacking else ""


def _given(settings: dict[str, Any]) -> str:
    shown = {name: f"`{name}={str(x) if str(x).startswith('lambda') else repr(x)}`" for name, x in settings.items()}
    return ", ".join(name if name == _SCHEDULE else text for name, text in shown.items())


def index(versions: list[str]) -> str:
    """All rules in one table."""
    rows = []
    for rule in sorted(OWN.values(), key=lambda rule: rule.__name__.lower()):
        size = sum(state_bytes(rule, name, "float32") for name in rule.tensor_states if not rule.states[name].when)
        cited = paper(rule) or ""
        rows.append(f"| [{rule.__name__}]({address(rule)}) | {summary(rule)} | {cited} | {size:g} |")
    return "\n".join(
        [
            "# Optimizers",
            "",
            f"{len(OWN)} optimizers have a formula here. Each has a page, made from the code that runs. The last column is the",
            "bytes of float32 states an element, with the default arguments' states; numbers of rows and columns, and squares at the",
            "sides of a matrix (SOAP, Shampoo and their relatives), come on top of it.",
            "",
            "| optimizer | what it does | paper | bytes |",
            "|---|---|---|---:|",
            *rows,
            "",
            "`LBFGS` is torch.optim's own class: it needs several gradients a step, which a formula cannot express.",
            "",
            "## How they are checked",
            "",
            "Twenty steps of every rule are compared with the paper's pseudocode (`tests/papers*.py`), and with other",
            "implementations where there are any (`tests/peers`). What a page says of them is a test. Their versions:",
            f"{', '.join(versions)}.",
            "",
            "## Left out",
            "",
            "- **`safeguard_warmup`, `slice_p` and `beta3` of Prodigy**, rectified AdaBelief, grafting and other variations that",
            "  single implementations have. Most of them can be written as a [chain](../../invent/chains.md).",
            "",
        ]
    )


def choose() -> str:
    """Tables of what rules are good for, from what rules say of themselves."""
    lines = []
    for need, meaning in NEEDS.items():
        lines += [f"### {need}: {meaning}", "", "| optimizer | when to use it |", "|---|---|"]
        lines += [
            f"| [{rule.__name__}](../reference/optimizers/{address(rule)}) | {rule.when} |"
            for rule in OWN.values()
            if need in rule.needs
        ]
        lines.append("")
    return "\n".join(lines)
