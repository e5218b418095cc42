"""Writes optimizers.md from the registry, the peers' trajectories and the measured tables.

python docs/make_optimizers.py
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

from steprule.docstrings import words_of
from steprule.formula import formula_text
from steprule.hyper import COMMON, common
from steprule.rule import NEEDS, Rule
from steprule.rules import OWN
from steprule.rules.options import DECAYS

HERE = Path(__file__).parent
PEERS = HERE.parent / "tests" / "peers" / "trajectories.json"
sys.path.insert(0, str(HERE.parent / "benchmarks"))

from figures import FIGURES  # noqa: E402
from record import Records  # noqa: E402

INTRODUCTION = """# Every optimizer

Written by `docs/make_optimizers.py` from the rules themselves; `steprule show NAME` prints the same with LaTeX and kernels.

Formulas are those of the code, traced with the default settings: a prime marks a new value, and a line of its own what is
used twice. Every one is compared over twenty steps with the paper's pseudo-code, written apart from it
(`tests/papers.py`), and with other implementations (`tests/peers`); "agrees" and "differs" below are tests. Versions: {versions}.

Every rule takes every format (`states`, `weights`), every service (`clip`, `nonfinite`, `average`, `telemetry`) and, where
they make sense, the options around formulas. What makes no sense is refused with the reason.

## Options around formulas

`decay` says what `weight_decay` means:

{decays}

Where it is not given, the formula's own holds: "own" in a list below is a way that has none of these names, such as LAMB's
inside of the trust ratio. With another, the formula runs without decay and this goes around it.

- `cautious`: the part of a step that goes up the gradient is left out, and the rest made larger by size / (kept + 1) of each
  tensor, as in the authors' code (Liang et al. 2024, arXiv:2411.16085); timm divides by the mean of the mask, at least 0.001. A
  decoupled decay is no part of what is masked. Of a sparse gradient, the elements that it holds are the tensor.
- `cautious_decay`: weights decay only in steps that bring them nearer to 0 (Chen et al. 2025, arXiv:2510.12402).
- `lookahead`, `lookahead_alpha`: Zhang et al. 2019, arXiv:1907.08610; the slow weights begin as the first ones, as in the paper.
- AMSGrad and Nesterov's momentum are arguments of the rules that they fit: `amsgrad` of Adam, AdamW, AdamC, AdaBelief, LaProp
  and MARS, `nesterov` of SGD, Signum and LARS; NAdam is Adam with it.

## Hyperparameters that rules share

{common}

A rule names what it has beside these, and where it means something else by a name. Any hyperparameter may be a function of the
step.

## Left out, and why

- **SM3** keeps a maximum for each row and each column, and an element's accumulator is the smaller of its two: that is a
  reduction along axes and not an elementwise formula. It belongs with Adafactor, to rules that see a matrix.
- **Adafactor, LBFGS, Muon** are torch's own, exported as they are, for the same reason.
- **safeguard_warmup, slice_p and beta3 of Prodigy**, regeneration, grafting, rectified AdaBelief and such variations of single
  implementations: options nobody has asked for yet. `chain` makes most of them.

"""


def paragraph(name: str, rule: type[Rule], entries: list[dict[str, Any]]) -> str:
    """All about one rule."""
    doc = " ".join(inspect.cleandoc(rule.__doc__ or "").split())
    defaults = ", ".join(f"{key}={value!r}" for key, value in rule.hyperparameters.items())
    states = (
        ", ".join(f"{state} (one number)" if state in rule.scalar_states else state for state in rule.states) or "none"
    )
    lines = [f"### {rule.__name__}", "", doc, "", f"**When.** {rule.when}", ""]
    lines += ["```", formula_text(rule), "```", "", f"`{rule.__name__}(params, {defaults})`", ""]
    special = [one for one, said in rule.meanings.items() if said not in common(rule.decay).values()]
    lines += [f"- `{one}`: {words_of(rule, one)}" for one in special]
    lines.append(f"- States: {states}. Decay: {rule.decay if 'weight_decay' in rule.hyperparameters else 'none'}.")
    if rule.needs:
        lines.append(f"- Good for: {', '.join(rule.needs)}.")
    if rule.refuses:
        lines.append(f"- Takes no option around the formula: {rule.refuses}.")
    agree = sorted({f"{one['peer']}" for one in entries if one["agrees"]})
    if agree:
        lines.append(f"- Agrees with: {', '.join(agree)}.")
    notes: dict[str, list[str]] = {}
    for one in entries:
        if not one["agrees"] and one["why"] not in notes.setdefault(one["peer"], []):
            notes[one["peer"]].append(one["why"])
    lines += [f"- Differs: {peer}. {' '.join(whys)}" for peer, whys in sorted(notes.items()) if whys]
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    entries = json.loads(PEERS.read_text())["entries"]
    versions = sorted({f"{one['peer'].split('.')[0]} {one['version']}" for one in entries})
    decays = "\n".join(f'- `"{name}"`: {text}' for name, text in DECAYS.items())
    shared = "\n".join(f"- `{name}`: {said.words(name == 'betas')}" for name, said in COMMON.items())
    text = INTRODUCTION.format(versions=", ".join(versions), decays=decays, common=shared)
    text += "## What they are good for\n\n"
    for need, meaning in NEEDS.items():
        names = ", ".join(rule.__name__ for rule in OWN.values() if need in rule.needs)
        text += f"- **{need}** ({meaning}): {names}\n"
    for title, name in (("Speed", "rules"), ("Training", "training")):
        text += f"\n## {title}\n\n{FIGURES[name](Records())}\n"
    text += "\n## The formulas\n\n"
    text += "\n".join(
        paragraph(name, rule, [one for one in entries if one["rule"] == name]) for name, rule in OWN.items()
    )
    return text


if __name__ == "__main__":
    (HERE / "optimizers.md").write_text(page())
