"""What steprule says of each of its optimizers, in the words of steprule.check."""

from __future__ import annotations

import inspect

import papers
from papers_words import PAPER_OF, in_papers_words

import steprule
from steprule.check import Claims, Subject
from steprule.rules import OWN
from steprule.trace.tracing import program_of

NOT_SEPARATE = {"prodigy", "dadaptadam", "dog"}
WITH_SQUARES = ("soap", "shampoo", "asgo", "klshampoo", "klsoap", "splus", "psgdkron")
WITH_SUMS = {*NOT_SEPARATE, "lars", "lamb", "novograd", "stableadamw", "mars"}
NO_MAXIMIZE = {"muon"}
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
EXPECTED = {
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
SETTINGS = {
    "dog": {"reps_rel": 0.01},
    "prodigy": {"d0": 0.01},
    "dadaptadam": {"d0": 0.01},
    "schedulefreeradam": {"silent_sgd_phase": False},
    "adamuon": {"momentum": 0.8, "beta2": 0.8},
    **{name: {"precondition_frequency": 1} for name in WITH_SQUARES},  # or each parameter has its turn
}
ACCURACY = {"muon": 0.02, **dict.fromkeys(["normuon", "adamuon", "polargrad", "scion"], 1e-3)}
"""Muon multiplies in bfloat16; the others' iterations make errors of small singular values larger."""


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
    rule = OWN[name]
    program = program_of(rule, rule.hyperparameters)
    matrix, in_parts = program.sees_matrix, not program.has_squares
    elementwise = not matrix and name not in WITH_SUMS
    claims = Claims(
        params="any" if program.takes_vectors else "2d",
        separate=name not in NOT_SEPARATE,
        elementwise=elementwise,
        complex=not matrix,
        maximize=name not in NO_MAXIMIZE,
        tensor_lr=True,
        bfloat16=True,
        accuracy=ACCURACY.get(name, 2**-18),
        decay=rule.decay if rule.decay in ("coupled", "decoupled", "independent") else None,
        formula=paper(name),
        drop_in_for=f"torch.optim.{rule.__name__}" if rule.like_torch else None,
        scale_invariant=name not in FOLLOWS_THE_SCALE,
        transpose=name in TRANSPOSED,
        rotation=name in ROTATED,
        orthogonal=0.5 if name in ORTHOGONAL else None,
        copies_loaded=True,
        ddp=True,
        fsdp2=in_parts,
        expected_failures=EXPECTED.get(name, {}),
    )
    return Subject(getattr(steprule, rule.__name__), claims, f"steprule:{rule.__name__}", **SETTINGS.get(name, {}))
