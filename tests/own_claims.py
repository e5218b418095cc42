"""Each of steprule's optimizers with what is claimed of it, and its paper's pseudo-code as the formula."""

from __future__ import annotations

import inspect
from dataclasses import replace

import papers
from papers_words import PAPER_OF, in_papers_words

import steprule
from steprule.check import Subject, claims_of
from steprule.check.own import settings_of
from steprule.rules import OWN


def paper(name):
    """The paper's pseudo-code as a formula that takes the rule's settings."""

    def formula(param, grads, **settings):
        return papers.PAPERS[PAPER_OF.get(name, name)](
            [param], [[g] for g in grads], **in_papers_words(name, settings)
        )[-1][0]

    known = [inspect.Parameter(one, inspect.Parameter.KEYWORD_ONLY) for one in OWN[name].hyperparameters]
    first = [inspect.Parameter(one, inspect.Parameter.POSITIONAL_ONLY) for one in ("param", "grads")]
    formula.__signature__ = inspect.Signature([*first, *known])
    return formula


def own(name):
    """One of steprule's optimizers with all that is claimed of it."""
    optimizer = getattr(steprule, OWN[name].__name__)
    claims = replace(claims_of(optimizer), formula=paper(name))
    return Subject(optimizer, claims, f"steprule:{optimizer.__name__}", **settings_of(optimizer))
