"""Newton-Schulz polynomials by name: what is published, where, and how many steps of it.

A step makes x of every singular value x of a matrix into a x + b x**3 + c x**5. A set says which (a, b, c) each step has.
All but the two that say so are for matrices that were divided by their Frobenius norm, so that no singular value is above 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from steprule.elementwise import whole_number

Triple: TypeAlias = tuple[float, float, float]
Coefficients: TypeAlias = "str | Triple | Sequence[Triple]"

MOST_STEPS = 99
"""torch.optim.Muon refuses 100 as well."""


@dataclass(frozen=True)
class Published:
    """A set of coefficients.

    Attributes:
        triples: (a, b, c) of each step, as many as were published.
        source: where they stand.
        fewest: fewer steps than these are refused; the others' first steps mean something without the last.
        repeats: whether further steps take the last triple again. Else more steps than published are refused.
        start: "norm", or "aol": rows are first scaled as `rows_evened` in `steprule.matrix.polar` does.
        exact: whether it wants float32: it has no room for singular values that rounding lifts above 1.
    """

    triples: tuple[Triple, ...]
    source: str
    fewest: int = 1
    repeats: bool = True
    start: str = "norm"
    exact: bool = False


_KELLER: Triple = (3.4445, -4.7750, 2.0315)
_POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
_NEWTON_SCHULZ: Triple = (1.875, -1.25, 0.375)
"""The classical one of degree 5, to which Polar Express comes in the end."""
_CUSHIONED: tuple[Triple, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def _narrowed(triple: Triple, factor: float) -> Triple:
    """The polynomial of x / factor."""
    a, b, c = triple
    return a / factor, b / factor**3, c / factor**5


def polar_express(safety: float = 1.01) -> list[Triple]:
    """Polar Express, computed for singular values from 1e-3 to 1, with a safety factor of one's own.

    Rounding may lift singular values a little above where the next polynomial would have them, from where it grows. So all
    but the last are taken at x / safety. The paper says 1.01; "polar_express_dao" has 1.05.

    Args:
        safety: the factor, at least 1.

    Returns:
        Eight triples for `polynomial`; the eighth is the classical Newton-Schulz iteration and may be repeated.

    >>> polar_express(1.05)[0]
    (7.892582874424408, -20.38301394587957, 13.555306149406924)
    """
    if not (math.isfinite(safety) and safety >= 1):
        raise ValueError(f"safety must be a number of at least 1, got {safety}")
    return [*(_narrowed(triple, safety) for triple in _POLAR_EXPRESS), _NEWTON_SCHULZ]


PUBLISHED: dict[str, Published] = {
    "keller": Published(
        (_KELLER,) * 5,
        "Keller Jordan 2024, kellerjordan.github.io/posts/muon. What torch.optim.Muon does. It ends between 0.68 and 1.14, not at 1.",
    ),
    "you": Published(
        (
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        ),
        "YouJiacheng 2025, in KellerJordan/modded-nanogpt; how they were found: leloykun.github.io/ponder/muon-opt-coeffs",
    ),
    "polar_express": Published(
        tuple(polar_express()), "Amsel et al. 2025, arXiv:2505.16932, algorithm 1, with its safety factor of 1.01"
    ),
    "polar_express_dao": Published(
        tuple(polar_express(1.05)[:5]),
        "the same polynomials with a safety factor of 1.05, in Dao-AILab/gram-newton-schulz",
    ),
    "polar_express_cushioned": Published(
        (_narrowed(_CUSHIONED[0], 1.02), *_CUSHIONED[1:]),
        "the same method for 5 steps with a cushion and a safety factor of 1.02, in KellerJordan/modded-nanogpt, which divides "
        "matrices by 1.02 of their norm: that is in the first triple here",
    ),
    "cans": Published(
        (
            (8.4703, -25.1081, 18.6293),
            (4.1828, -3.1087, 0.5806),
            (3.9619, -2.9541, 0.5630),
            (3.2866, -2.4647, 0.5074),
            (2.2737, -1.6447, 0.4162),
        ),
        "Grishina et al. 2025, arXiv:2506.10935: Remez with an interval that adapts; numbers as in "
        "NVIDIA-NeMo/Emerging-Optimizers, muon_utils.py. In bfloat16 a matrix of rank 1 grows without bounds.",
        exact=True,
    ),
    "aol": Published(
        (
            (4.0098, -7.0585, 2.4635),
            (3.4585, -5.5479, 2.5959),
            (2.7573, -3.2939, 1.4254),
            (2.7215, -3.0494, 1.3169),
        ),
        "Turbo-Muon, arXiv:2512.04632: 4 steps after almost-orthogonal rows; numbers as in NVIDIA-NeMo/Emerging-Optimizers, "
        "muon_utils.py",
        start="aol",
    ),
    "deepseek": Published(
        (_KELLER,) * 8 + ((2.0, -1.5, 0.5),) * 2,
        "DeepSeek-V4's technical report: 8 steps of Keller Jordan's and 2 that end at 1",
        fewest=10,
    ),
    "cubic5": Published(
        (
            (3.3656576, -3.3420992, 0.0),
            (2.5744352, -1.4957376, 0.0),
            (2.5368962, -1.4312570, 0.0),
            (2.4418906, -1.2764040, 0.0),
            (2.2230472, -0.9630650, 0.0),
        ),
        "arXiv:2606.00371: cubic, so without the square of a Gram matrix; numbers as in NVIDIA-NeMo/Emerging-Optimizers, "
        "muon_utils.py",
        fewest=5,
        repeats=False,
    ),
}
"""By name."""


def polynomial(coefficients: Coefficients = "keller", steps: int | None = None) -> list[Triple]:
    """The (a, b, c) of each step.

    Past the published steps the last triple is taken again, which for every set here that allows it keeps singular values
    where they are, or brings them nearer to 1. "cubic5" has 5 steps and no others, "deepseek" at least 10.

    Args:
        coefficients: a name in `PUBLISHED`; one (a, b, c) for every step; or a sequence of them.
        steps: how many, from 1 to 99; None is as many as were published or given, and 5 for a single triple.

    >>> polynomial("keller", 2)
    [(3.4445, -4.775, 2.0315), (3.4445, -4.775, 2.0315)]
    >>> polynomial([(2.0, -1.5, 0.5), (1.875, -1.25, 0.375)], 3)[1:]
    [(1.875, -1.25, 0.375), (1.875, -1.25, 0.375)]
    """
    found = published(coefficients)
    if steps is None:
        return list(found.triples)
    steps = whole_number("steps", steps, MOST_STEPS)
    count = len(found.triples)
    if steps < found.fewest or (steps > count and not found.repeats):
        allowed = f"at least {found.fewest}" if found.repeats else f"exactly {count}"
        raise ValueError(
            f"{coefficients!r} has {allowed} steps, got steps={steps}; leave steps out, or take another set"
        )
    return [*found.triples[:steps], *[found.triples[-1]] * (steps - count)]


def published(coefficients: Coefficients) -> Published:
    """The set of a name; or one's own triples as such a set."""
    if isinstance(coefficients, str):
        if coefficients not in PUBLISHED:
            raise ValueError(
                f"coefficients must be three numbers, a list of such, or one of {', '.join(PUBLISHED)}; got {coefficients!r}"
            )
        return PUBLISHED[coefficients]
    try:
        given = list(coefficients)
        rows = [given] * 5 if given and all(isinstance(number, int | float) for number in given) else given
        triples = tuple(_triple(row) for row in rows)
    except (TypeError, ValueError):
        triples = ()
    if not triples or not all(math.isfinite(number) for triple in triples for number in triple):
        raise ValueError(f"coefficients must be three finite numbers, a list of such, or a name; got {coefficients!r}")
    return Published(triples, "given by the caller")


def _triple(row: Any) -> Triple:
    a, b, c = row
    return float(a), float(b), float(c)
