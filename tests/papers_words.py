"""What the papers' pseudo-code calls the hyperparameters of rules, and who has registered it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import papers
import papers_factored
import papers_kronecker
import papers_matrix

assert papers_matrix and papers_factored and papers_kronecker  # which enter theirs in papers.PAPERS

_NORMS = {"bias_rms": "bias"}
_SCALES = {None: "original", "spectral_unclamped": "spectral", "unit_rms": "longest"}
_DECOUPLED = "muon normuon adamuon muoneq mud mano dion2 polargrad adafactor came adammini sm3 soap klsoap shampoo asgo klshampoo_exact splus psgdkron_quad"
papers.OWN_DECAY |= dict.fromkeys(_DECOUPLED.split(), "decoupled")


def in_papers_words(name: str, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """A rule's hyperparameters as the pseudo-code of its paper takes them."""
    words = dict(hyper)
    if words.get("max_lr") == 0.0:
        words["max_lr"] = None
    if "ns_steps" in words:
        _coefficients(words)
    if name in _TRANSLATED:
        _TRANSLATED[name](words)
    return words


def _coefficients(words: dict[str, Any]) -> None:
    given, steps = words.pop("ns_coefficients"), int(words.pop("ns_steps"))
    words["coefficients"] = papers_matrix.polar_express(steps) if given == "polar_express" else [given] * steps


def _muon(words: dict[str, Any]) -> None:
    scale = words.pop("adjust_lr_fn")
    words |= {"scale": _SCALES.get(scale, scale), "start": "clamped"}


def _scale_of_adamw(words: dict[str, Any]) -> None:
    """Of pseudo-code that has no other."""
    assert words.pop("adjust_lr_fn") == "match_rms_adamw"


def _normuon(words: dict[str, Any]) -> None:
    _scale_of_adamw(words)
    words |= {"betas": (words.pop("momentum"), words.pop("beta2")), "ns_eps": 0.0}


def _adamuon(words: dict[str, Any]) -> None:
    _scale_of_adamw(words)
    assert words.pop("beta2") == words["momentum"]
    words["ns_eps"] = 0.0


def _muoneq(words: dict[str, Any]) -> None:
    _scale_of_adamw(words)
    words["normalize"] = {"row": "r", "col": "c", "rowcol": "rc"}[words.pop("equilibrate")]
    words["eps"] /= (1 - words["momentum"]) ** 2  # it is added to squares of a sum, and ours to those of an average
    words["ns_eps"] = 0.0


def _mud(words: dict[str, Any]) -> None:
    _scale_of_adamw(words)
    words |= {"passes": int(words["passes"]), "eps": 0.0}


def _polargrad(words: dict[str, Any]) -> None:
    words["eps"] = 0.0


def _dion2(words: dict[str, Any]) -> None:
    words |= {"scale": words.pop("adjust_lr_fn"), "ns_eps": 0.0}


def _scion(words: dict[str, Any]) -> None:
    norm = words.pop("norm")
    words["kind"] = _NORMS.get(norm, norm)
    words["momentum"] = 1 - words["momentum"]
    words["unconstrained"] = not words.pop("constrained", True)
    words["ns_eps"] = 0.0


def _came(words: dict[str, Any]) -> None:
    words["d"] = words.pop("clip_threshold")


def _adammini(words: dict[str, Any]) -> None:
    words["blocks"] = {"row": "rows", "tensor": "whole"}[words.pop("block")]


def _soap(words: dict[str, Any]) -> None:
    del words["max_precond_dim"]
    words["carried"] = True


def _shampoo(words: dict[str, Any]) -> None:
    del words["max_precond_dim"]
    beta1, words["graft_beta2"] = words["betas"]
    words |= {"betas": (beta1, words.pop("shampoo_beta")), "exponent": 1 / words.pop("root"), "in_turn": True}


def _asgo(words: dict[str, Any]) -> None:
    words |= {"eps": 0.0, "in_turn": True}


def _klshampoo(words: dict[str, Any]) -> None:
    del words["max_precond_dim"]
    words["init_factor"] = None


def _splus(words: dict[str, Any]) -> None:
    del words["max_precond_dim"]
    words["b1"], words["b2"] = words.pop("betas")
    words |= {"inverse_every": words.pop("precondition_frequency"), "in_turn": True}


def _without_limit(words: dict[str, Any]) -> None:
    del words["max_precond_dim"]


PAPER_OF = {"klshampoo": "klshampoo_exact", "psgdkron": "psgdkron_quad"}
"""What the pseudo-code is called, where that is not the rule's name."""

_TRANSLATED = {
    "muon": _muon, "normuon": _normuon, "adamuon": _adamuon, "muoneq": _muoneq, "mud": _mud, "polargrad": _polargrad,
    "dion2": _dion2, "scion": _scion, "came": _came, "adammini": _adammini, "soap": _soap, "shampoo": _shampoo, "asgo": _asgo,
    "klshampoo": _klshampoo, "splus": _splus, "psgdkron": _without_limit, "klsoap": _without_limit,
}  # fmt: skip
