"""Updates that are orthogonalized: Muon, NorMuon, AdaMuon, MuonEq, PolarGrad."""

from __future__ import annotations

from steprule.pieces import Value, ema, polar
from steprule.rule import Hyperparameter, Rule, TorchArguments
from steprule.rules.scales import SCALES, scale

_NS = (3.4445, -4.7750, 2.0315)
_COEFFICIENTS = Hyperparameter("coefficients of the Newton-Schulz polynomial, a, b and c")
_STEPS = Hyperparameter("steps of Newton-Schulz", "[1, 99]")
_MOMENTUM = Hyperparameter("decay rate of the EMA of gradients", "[0, inf)")
_EPS = Hyperparameter("least norm that an update is divided by", "[0, inf)")
_SCALE = Hyperparameter(f"factor of the shape, one of {', '.join(SCALES)}")


def nesterov_ema(grad: Value, momentum_buffer: Value, momentum: Value, nesterov: bool) -> tuple[Value, Value]:
    """The EMA of gradients, looked at once more ahead if nesterov; and the EMA."""
    momentum_buffer = ema(momentum_buffer, grad, momentum)
    return (ema(grad, momentum_buffer, 1 - momentum) if nesterov else momentum_buffer), momentum_buffer


class Muon(Rule):
    """Momentum, orthogonalized by Newton-Schulz. Jordan 2024, kellerjordan.github.io/posts/muon.

    The learning rate is multiplied by a factor of the matrix's shape, adjust_lr_fn; weight decay is not.
    """

    momentum, ns_coefficients, ns_steps, eps, adjust_lr_fn = _MOMENTUM, _COEFFICIENTS, _STEPS, _EPS, _SCALE
    decay = "decoupled"
    needs = ("memory",)
    keeps_step = False
    when = "Hidden matrices of transformers and other networks, beside AdamW for embeddings, heads and vectors."
    like_torch = TorchArguments("")

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value, *, lr: float = 1e-3, weight_decay: float = 0.1,
        momentum: float = 0.95, nesterov: bool = True, ns_coefficients: tuple[float, float, float] = _NS,
        eps: float = 1e-7, ns_steps: int = 5, adjust_lr_fn: str | None = None,
    ) -> tuple[Value, ...]:  # fmt: skip
        ahead, momentum_buffer = nesterov_ema(grad, momentum_buffer, momentum, nesterov)
        direction = scale(param, adjust_lr_fn) * polar(ahead, ns_coefficients, ns_steps, eps)
        return param - lr * (direction + weight_decay * param), momentum_buffer
