"""What every optimizer takes, and the words of the site."""

from __future__ import annotations

import re

from steprule.docstrings import OPTION_TEXTS
from steprule.hyper import COMMON
from steprule.lessons.glossary import TERMS
from steprule.rule import DECAYS
from steprule.rules.options import OPTIONS


def all_take() -> str:
    """Options of all optimizers."""
    names: dict[tuple[str, ...], list[str]] = {}
    for name, texts in OPTION_TEXTS.items():
        names.setdefault(texts, []).append(f"`{name}`")
    rows = []
    for (what, more, *default), called in names.items():
        said = " ".join(filter(None, [_capital(what), more]))
        first = default[0] if default else "torch.optim's"
        rows.append(
            f"| {', '.join(called)} | {f'`{first}`' if first in ('None', 'False', '0', '0.5') else first} | {said} |"
        )
    return "\n".join(["| argument | default | meaning |", "|---|---|---|", *rows])


def decays() -> str:
    """What `decay` may be."""
    rows = []
    for name, text in DECAYS.items():
        formula, rest = re.split(r"(?<=\w|\))(?=[:,.])", text, maxsplit=1) if re.search(r"[:,.]", text) else (text, "")
        rows.append(f'| `"{name}"` | `{formula}` | {rest.lstrip(":,. ")} |')
    return "\n".join(
        ["| `decay` | added to the gradient (coupled), or subtracted from the weight | |", "|---|---|---|", *rows]
    )


def common() -> str:
    """Hyperparameters that rules share; those of options are told with the options."""
    rows = [
        f"| `{name}` | {_capital(said.words(name == 'betas'))} |"
        for name, said in COMMON.items()
        if name not in OPTIONS
    ]
    return "\n".join(["| argument | meaning |", "|---|---|", *rows])


def glossary() -> str:
    """The words that lessons explain."""
    return "\n\n".join(
        f"**{term}**{{ #{_anchor(term)} }}\n: {meaning}"
        for term, meaning in sorted(TERMS.items(), key=lambda one: one[0].lower())
    )


def _anchor(term: str) -> str:
    return re.sub(r"\W+", "-", term.lower())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
