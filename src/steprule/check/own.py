"""What a rule says of itself as claims, and what else is claimed of steprule's own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from steprule.check.claims import Claims
from steprule.rule import Rule
from steprule.rules import OWN
from steprule.trace.tracing import program_of

WITH_SQUARES = ("soap", "shampoo", "asgo", "klshampoo", "klsoap", "splus", "psgdkron")
FOLLOWS_THE_SCALE = {
    "sgd", "asgd", "radam", "madgrad", "yogi", "adafactor", "came", "polargrad", "psgdkron", "dadaptadam", "schedulefreesgd",
    "schedulefreeradam",
}  # fmt: skip
"""Steps that grow with the gradients, begin with some that do, or fit to them; eps of two numbers, or that cannot be 0."""

TRANSPOSED = {"adafactor", "came", "sm3", "adamuon", "mud", "polargrad", *WITH_SQUARES}
ROTATED = {"muon", "polargrad", "scion", "asgo", "klshampoo"}
ORTHOGONAL = {"muon", "polargrad", "scion"}

SQUARES = "squares of gradients are infinite in float32, and so is what they are divided by"
BEGINS = "the first step only begins the second moment, as in the paper"
CONSTANT = "weights and their average are mixed by it, so it must not change"
EXPECTED: Mapping[str, Mapping[str, str]] = {
    "rprop": {"follows_a_changed_lr": "lr is where step sizes begin"},
    "adafactor": {"stays_finite": SQUARES},
    "asgd": {"rests_at_zero_gradients": "lambd decays by itself"},
    "yogi": {"stays_finite": SQUARES, "rests_at_zero_gradients": "both moments begin above 0, as in the authors' code"},
    "adopt": {"moves_at_the_first_step": BEGINS},
    "stableadamw": {"stays_finite": SQUARES},
    "came": {"stays_finite": SQUARES},
    "adammini": {"stays_finite": SQUARES},
    "novograd": {"stays_finite": SQUARES},
    "scion": {
        "uses_every_argument": "eps bounds norms, which are all larger here",
        "rests_at_zero_gradients": "the parameter is drawn into a ball, decay or not",
    },
    "schedulefreesgd": {"takes_one_cycle": CONSTANT},
    "schedulefreeadamw": {"takes_one_cycle": CONSTANT},
    "schedulefreeradam": {"takes_one_cycle": CONSTANT},
    **{
        name: {"stays_finite": SQUARES} for name in WITH_SQUARES if name != "klshampoo"
    },  # which divides gradients before
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "dog": {"reps_rel": 0.01},
    "prodigy": {"d0": 0.01},
    "dadaptadam": {"d0": 0.01},
    "schedulefreeradam": {"silent_sgd_phase": False},
    "adamuon": {"momentum": 0.8, "beta2": 0.8},
    **{name: {"precondition_frequency": 1} for name in WITH_SQUARES},  # or each parameter has its turn
}
"""With which a few steps show what a rule does."""
ACCURACY = {"muon": 0.02, **dict.fromkeys(["normuon", "adamuon", "polargrad", "scion"], 1e-3)}
"""Muon multiplies in bfloat16; the others' iterations make errors of small singular values larger."""


def settings_of(optimizer: Any) -> Mapping[str, Any]:
    """What one of steprule's own optimizers is checked with; of any other, nothing."""
    return SETTINGS.get(_name(optimizer), {})


def _name(optimizer: Any) -> str:
    """What the registry calls the rule of an optimizer, if it is one of steprule's."""
    rule = getattr(optimizer, "rule", None)
    return next((name for name, one in OWN.items() if one is rule), "")


def claims_of(optimizer: Any, settings: Mapping[str, Any] | None = None) -> Claims:
    """What a class that steprule makes of a rule claims without being told: what the rule's formula and attributes show.

        Subject(MyLion, claims_of(MyLion), lr=1e-3)

    Args:
        optimizer: the class. One that no rule is behind claims nothing.
        settings: what it is made with. With others than the rule's hyperparameters, such as states="8bit", only params is claimed.

    Raises:
        ValueError: checks step float32 parameters, which these settings do not take.
    """
    rule = getattr(optimizer, "rule", None)
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        return Claims()
    program = program_of(rule, {**rule.hyperparameters, **(settings or {})})
    params = "any" if program.takes_vectors and not rule.matrices_only else "2d"
    if not (settings or {}).keys() <= rule.hyperparameters.keys():
        if (weights := (settings or {}).get("weights")) is not None:
            raise ValueError(
                f"weights={weights!r} is for bfloat16 and float16 parameters, and checks step float32 ones: leave it out"
            )
        return Claims(params=params, float32_only="states" in (settings or {}))
    matrix = program.sees_matrix
    claims = Claims(
        params=params,
        separate=not program.in_some_steps and not any(one.of_all for one in program.sums.values()),
        elementwise=not matrix and not program.sums,
        complex=not matrix,
        maximize="maximize" in inspect.signature(optimizer).parameters,
        tensor_lr="lr" in rule.hyperparameters,
        accuracy=0.02 if program.joins else 2**-18,
        bfloat16=True,
        decay=rule.decay if rule.decay in ("coupled", "decoupled", "independent") else None,
        formula=rule,
        copies_loaded=True,
        ddp=True,
        fsdp2=not program.has_squares,
    )
    return replace(claims, **_known(_name(optimizer))) if _name(optimizer) else claims


def _known(name: str) -> dict[str, Any]:
    """What is claimed of one of steprule's own besides, by its name in the registry."""
    rule = OWN[name]
    replaced = rule.like_torch and hasattr(torch.optim, rule.__name__)
    return {
        **({"separate": True} if name in WITH_SQUARES else {}),  # with `SETTINGS` none waits for its turn
        "accuracy": ACCURACY.get(name, 2**-18),
        "drop_in_for": f"torch.optim.{rule.__name__}" if replaced else None,
        "scale_invariant": name not in FOLLOWS_THE_SCALE,
        "transpose": name in TRANSPOSED,
        "rotation": name in ROTATED,
        "orthogonal": 0.5 if name in ORTHOGONAL else None,
        "expected_failures": EXPECTED.get(name, {}),
    }
