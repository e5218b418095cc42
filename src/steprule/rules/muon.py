"""Updates that see a weight as a matrix: Muon and its variants, Mano, and Scion, which has a norm for each kind of layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from steprule.matrix.coefficients import PUBLISHED, polynomial
from steprule.pieces import (
    Value,
    abs,
    col_mean,
    col_total,
    cols,
    decorrelate,
    ema,
    floor,
    maximum,
    mean,
    norm,
    polar,
    row_mean,
    row_total,
    rows,
    sign,
    sqrt,
    top_share,
    total,
    where,
)
from steprule.rule import Hyperparameter, Rule, State, TorchArguments
from steprule.rules.scales import SCALES, scale, sized

_NS = (3.4445, -4.7750, 2.0315)
_SETS = tuple(PUBLISHED)
_COEFFICIENTS = Hyperparameter(
    "coefficients a, b and c of the Newton-Schulz polynomial, or a tuple with such three for each step", texts=_SETS
)
_STEPS = Hyperparameter("steps of Newton-Schulz", "[1, 99]", whole=True)
_MOMENTUM = Hyperparameter("decay rate of the EMA of gradients", "[0, 1)")
_BETA2 = Hyperparameter("decay rate of the second moment", "[0, 1)")
_EPS = Hyperparameter("least norm that an update is divided by", "[0, inf)")
_SCALE = Hyperparameter("factor of the shape, by which lr is multiplied", texts=tuple(SCALES))


def nesterov_ema(grad: Value, momentum_buffer: Value, momentum: Value, nesterov: bool) -> tuple[Value, Value]:
    """The EMA of gradients, looked at once more ahead if nesterov; and the EMA."""
    momentum_buffer = ema(momentum_buffer, grad, momentum)
    return (grad + momentum * (momentum_buffer - grad) if nesterov else momentum_buffer), momentum_buffer


class _Orthogonalized:
    """What these rules say of themselves in common."""

    momentum, ns_coefficients, ns_steps, adjust_lr_fn = _MOMENTUM, _COEFFICIENTS, _STEPS, _SCALE
    beta2, eps = _BETA2, _EPS
    decay: ClassVar[str | None] = "decoupled"
    keeps_step = False

    @staticmethod
    def check(*, ns_coefficients: Any = _NS, ns_steps: Any = 5, **others: Any) -> None:
        """Raises for fewer or more steps than a published set has."""
        try:
            polynomial(ns_coefficients, int(ns_steps))
        except ValueError as error:
            raise ValueError(f"ns_coefficients={ns_coefficients!r}, ns_steps={ns_steps!r}: {error}") from None


class Muon(_Orthogonalized, Rule):
    """Momentum, orthogonalized by Newton-Schulz. Jordan 2024, kellerjordan.github.io/posts/muon.

    The learning rate is multiplied by a factor of the matrix's shape, adjust_lr_fn; weight decay is not.
    """

    momentum = Hyperparameter(_MOMENTUM.meaning, "[0, inf)")  # torch.optim's
    needs = ("memory",)
    when = "Hidden matrices of transformers and other networks, beside AdamW for embeddings, heads and vectors."
    like_torch = TorchArguments(
        "",
        checks=True,
        words={
            "lr": "Learning rate should be >= 0 but is: {}",
            "momentum": "momentum should be >= 0 but is: {}",
            "weight_decay": "weight decay should be >= 0 but is: {}",
            "adjust_lr_fn": "Adjust learning rate function {} is not supported",
        },
        unmissed=("momentum_buffer",),
    )

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value, *, lr: float = 1e-3, weight_decay: float = 0.1,
        momentum: float = 0.95, nesterov: bool = True, ns_coefficients: Any = _NS, eps: float = 1e-7, ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> tuple[Value, ...]:  # fmt: skip
        ahead, momentum_buffer = nesterov_ema(grad, momentum_buffer, momentum, nesterov)
        direction = scale(param, adjust_lr_fn) * polar(ahead, ns_coefficients, ns_steps, eps)
        return param - lr * (direction + weight_decay * param), momentum_buffer


class NorMuon(_Orthogonalized, Rule):
    """Muon with a second moment for each row, that is for each neuron. Li et al. 2025, arXiv:2510.05491, algorithm 1.

    The update is made as long as an exact polar factor times adjust_lr_fn, so that by default its RMS is 0.2.
    """

    eps = Hyperparameter("added to the root of the second moment", "[0, inf)")
    needs = ("memory",)
    when = "In place of Muon, where neurons should move at the same speed."
    row_sq = State("rows")

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value, row_sq: Value, *, lr: float = 1e-3, weight_decay: float = 0.1,
        momentum: float = 0.95, beta2: float = 0.95, nesterov: bool = False, ns_coefficients: Any = _NS, eps: float = 1e-10,
        ns_steps: int = 5, adjust_lr_fn: str = "match_rms_adamw",
    ) -> tuple[Value, ...]:  # fmt: skip
        ahead, momentum_buffer = nesterov_ema(grad, momentum_buffer, momentum, nesterov)
        whole = polar(ahead, ns_coefficients, ns_steps)
        squares = row_mean(whole * whole)
        row_sq = ema(row_sq, squares, beta2)
        root = sqrt(row_sq) + eps
        length = sqrt(cols(param) * total(squares / (root * root)))  # of whole / root
        direction = sized(param, whole / root, length, adjust_lr_fn)
        return param - lr * (direction + weight_decay * param), momentum_buffer, row_sq


class AdaMuon(_Orthogonalized, Rule):
    """Muon of the signs of the momentum, with a second moment for each element. Si et al. 2025, arXiv:2507.11005, algorithm 1.

    The update is made as long as an exact polar factor times adjust_lr_fn, so that by default its RMS is 0.2. The paper has
    momentum for beta2.
    """

    eps = Hyperparameter("added to the root of the second moment, and to the norm of the update", "[0, inf)")
    when = "In place of Muon, where there is room for two states."

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value, exp_avg_sq: Value, *, lr: float = 1e-3, weight_decay: float = 0.1,
        momentum: float = 0.95, beta2: float = 0.95, nesterov: bool = False, ns_coefficients: Any = _NS, eps: float = 1e-8,
        ns_steps: int = 5, adjust_lr_fn: str = "match_rms_adamw",
    ) -> tuple[Value, ...]:  # fmt: skip
        ahead, momentum_buffer = nesterov_ema(grad, momentum_buffer, momentum, nesterov)
        whole = polar(sign(ahead), ns_coefficients, ns_steps)
        exp_avg_sq = ema(exp_avg_sq, whole * whole, beta2)
        even = whole / (sqrt(exp_avg_sq) + eps)
        direction = sized(param, even, norm(even) + eps, adjust_lr_fn)
        return param - lr * (direction + weight_decay * param), momentum_buffer, exp_avg_sq


class MuonEq(_Orthogonalized, Rule):
    """Muon whose momentum has rows, columns or both divided by their norms before. Chang et al. 2026, arXiv:2603.28254."""

    equilibrate = Hyperparameter("what is divided by its norm", texts=("row", "col", "rowcol"))
    eps = Hyperparameter("added to squares of norms", "[0, inf)")
    needs = ("memory",)
    when = "In place of Muon, where few steps of Newton-Schulz leave small singular values behind."

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value, *, lr: float = 1e-3, weight_decay: float = 0.1,
        momentum: float = 0.95, nesterov: bool = True, equilibrate: str = "row", eps: float = 1e-8,
        ns_coefficients: Any = _NS, ns_steps: int = 5, adjust_lr_fn: str = "match_rms_adamw",
    ) -> tuple[Value, ...]:  # fmt: skip
        ahead, momentum_buffer = nesterov_ema(grad, momentum_buffer, momentum, nesterov)
        even = ahead / sqrt(row_total(ahead * ahead) + eps) if "row" in equilibrate else ahead
        even = even / sqrt(col_total(ahead * ahead) + eps) if "col" in equilibrate else even
        direction = scale(param, adjust_lr_fn) * polar(even, ns_coefficients, ns_steps)
        return param - lr * (direction + weight_decay * param), momentum_buffer


class MUD(_Orthogonalized, Rule):
    """Muon with triangular solves in place of Newton-Schulz. Southworth & Thomas 2026, arXiv:2603.17970.

    Rows of 0, and rows that are sums of others, get no update.
    """

    passes = Hyperparameter("triangular solves", "[1, 99]", whole=True)
    needs = ("memory",)
    when = "In place of Muon, where Newton-Schulz takes too long: on CPUs, or beside small batches."

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value, *, lr: float = 1e-3, weight_decay: float = 0.1,
        momentum: float = 0.95, nesterov: bool = True, passes: int = 1, adjust_lr_fn: str = "match_rms_adamw",
    ) -> tuple[Value, ...]:  # fmt: skip
        ahead, momentum_buffer = nesterov_ema(grad, momentum_buffer, momentum, nesterov)
        direction = scale(param, adjust_lr_fn) * decorrelate(ahead, passes)
        return param - lr * (direction + weight_decay * param), momentum_buffer


class PolarGrad(_Orthogonalized, Rule):
    """Muon times the nuclear norm of the momentum, which makes it steepest descent. Lau et al. 2025, arXiv:2505.21799, algorithm 1.

    The nuclear norm, the sum of the singular values, is the product of the momentum with its polar factor.
    """

    ns_coefficients = Hyperparameter("coefficients of the Newton-Schulz polynomial", texts=_SETS)
    needs = ("memory",)
    when = "In place of Muon, where the update should become small as the gradient does."

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value, *, lr: float = 0.02, weight_decay: float = 0.0,
        momentum: float = 0.95, ns_coefficients: str = "polar_express", ns_steps: int = 8,
    ) -> tuple[Value, ...]:  # fmt: skip
        momentum_buffer = ema(momentum_buffer, grad, momentum)
        whole = polar(momentum_buffer, ns_coefficients, ns_steps)
        direction = total(momentum_buffer * whole) * whole
        return param - lr * (direction + weight_decay * param), momentum_buffer


class Dion2(_Orthogonalized, Rule):
    """Muon of the rows, or columns if they are fewer, with the most momentum. Ahn et al. 2025, arXiv:2512.16928, algorithm 1.

    Those are a fraction of the shorter side. The momentum of what has been stepped is multiplied by ef_decay, and the rest waits. Products
    of matrices are as much smaller.
    """

    fraction = Hyperparameter("share of the rows or columns that are stepped", "(0, 1]")
    ef_decay = Hyperparameter("what is left of the momentum of what has been stepped", "[0, 1]")
    when = "In place of Muon, where matrices are so large that Newton-Schulz takes too long."

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value, *, lr: float = 0.01, weight_decay: float = 0.01,
        fraction: float = 0.25, ef_decay: float = 0.95, ns_coefficients: Any = _NS, ns_steps: int = 5,
        adjust_lr_fn: str = "spectral",
    ) -> tuple[Value, ...]:  # fmt: skip
        ahead = momentum_buffer + grad
        by_rows, by_cols = (top_share(along(abs(ahead)), fraction) for along in (row_total, col_total))
        part = where(rows(param) <= cols(param), by_rows, by_cols) * ahead
        direction = scale(param, adjust_lr_fn) * polar(part, ns_coefficients, ns_steps)
        return param - lr * (direction + weight_decay * param), ahead - (1 - ef_decay) * part


def _tangent(ahead: Value, param: Value, along: Any, eps: Value) -> Value:
    """Momentum without its part along each row, or column, of the weights, of norm 1; 0 where that is nothing but rounding."""
    square, inner = along(ahead * ahead), along(ahead * param)
    share = inner / maximum(along(param * param), eps * eps)
    rest = square - share * inner  # the square of the norm, without another pass
    is_some = rest > 1e-6 * square
    return where(is_some, 1 / sqrt(where(is_some, rest, 1.0)), 0.0) * (ahead - share * param)


class Mano(Rule):
    """Momentum without its part along the weights, normalized. Gu & Xie 2026, arXiv:2601.23000, algorithm 1, version 1.

    Columns are looked at in odd steps and rows in even ones. An update's RMS is 0.2.
    """

    momentum = _MOMENTUM
    nesterov = Hyperparameter("mix the gradient in once more")
    eps = Hyperparameter("least norm of weights", "[0, inf)")
    decay = "decoupled"
    matrices_only = True
    needs = ("memory",)
    when = "In place of Muon, where products of matrices take too long."

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value, *, step: Value, lr: float = 1e-3, weight_decay: float = 0.1,
        momentum: float = 0.95, nesterov: bool = False, eps: float = 1e-8,
    ) -> tuple[Value, ...]:  # fmt: skip
        ahead, momentum_buffer = nesterov_ema(grad, momentum_buffer, momentum, nesterov)
        by_rows = sqrt(cols(param)) * _tangent(ahead, param, row_total, eps)
        by_cols = sqrt(rows(param)) * _tangent(ahead, param, col_total, eps)
        direction = 0.2 * where(floor(step / 2) * 2 == step, by_rows, by_cols)
        return param - lr * (direction + weight_decay * param), momentum_buffer


_NORMS: Mapping[str, Callable[..., Value]] = {
    "spectral": lambda x, *ns, eps: sqrt(rows(x) / cols(x)) * polar(x, *ns),
    "col": lambda x, *_, eps: x / (sqrt(col_mean(x * x)) + eps),
    "row": lambda x, *_, eps: x / (sqrt(row_total(x * x) * cols(x)) + eps),
    "embedding": lambda x, *_, eps: x / (sqrt(row_mean(x * x)) + eps),
    "sign": lambda x, *_, eps: sign(x) / cols(x),
    "bias_rms": lambda x, *_, eps: x / (sqrt(mean(x * x)) + eps),
}
"""The direction of norm 1 that goes along a matrix the furthest, by the norm's name."""


class Scion(_Orthogonalized, Rule):
    """Steps of the same length in a norm that fits the layer. Pethick et al. 2025, arXiv:2502.07529, algorithms 1 and 2.

    Each parameter group has its norm: "spectral" for hidden matrices, "embedding" for nn.Embedding and "col" for another first
    layer of one-hot inputs, "sign" or "row" for the head, "bias_rms" for vectors. constrained=True also keeps weights within
    radius in that norm; False is the unconstrained variant, without any decay. The reference code's momentum is 1 - momentum,
    and its factor for a convolution's weight is smaller by the kernel's side.
    """

    norm = Hyperparameter("norm of the layer", texts=tuple(_NORMS))
    radius = Hyperparameter("length of the update, and how far weights get where they are constrained", "[0, inf)")
    constrained = Hyperparameter("also pull weights to 0 by lr")
    eps = Hyperparameter("added to root mean squares", "[0, inf)")
    needs = ("memory",)
    when = "Where one learning rate should do for networks of any width."

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value, *, lr: float = 2**-12, momentum: float = 0.9,
        norm: str = "spectral", radius: float = 50.0, constrained: bool = True, eps: float = 1e-8,
        ns_coefficients: Any = _NS, ns_steps: int = 5,
    ) -> tuple[Value, ...]:  # fmt: skip
        momentum_buffer = ema(momentum_buffer, grad, momentum)
        direction = radius * _NORMS[norm](momentum_buffer, ns_coefficients, ns_steps, eps=eps)
        return param - lr * (direction + param if constrained else direction), momentum_buffer
