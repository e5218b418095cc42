"""Second moments that are kept for rows and columns instead of elements: Adafactor, CAME, Adam-mini, SM3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steprule.pieces import (
    Value,
    col_largest,
    col_mean,
    debias,
    ema,
    maximum,
    mean,
    minimum,
    row_largest,
    row_mean,
    rows,
    sqrt,
    where,
)
from steprule.rule import Hyperparameter, Rule, State, TorchArguments
from steprule.rules.adam import BETAS

_CLIP = "largest RMS of an update, which is scaled down to it"


def factors(row_sq: Value, col_sq: Value) -> tuple[Value, Value]:
    """What rows and columns are divided by, for elements to be divided by the root of ``row_sq col_sq / mean(row_sq)``."""
    whole = col_mean(row_sq)
    return sqrt(row_sq / where(whole > 0, whole, 1.0)), sqrt(col_sq)


def within(direction: Value, most: Value) -> Value:
    """A direction scaled down to this RMS where it is above."""
    return direction / maximum(1.0, sqrt(mean(direction * direction)) / most)


def _from_torch(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state with the second moments of a vector's elements as those of a row's columns."""
    own = {name: x for name, x in state.items() if name != "variance"}
    if "variance" in state and "row_var" not in state:
        own["row_var"], own["col_var"] = state["variance"].mean().reshape(1, 1), state["variance"].reshape(1, -1)
    return own


def _for_torch(state: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
    """The other way round."""
    return {"variance": state["col_var"].reshape(shape)} if len(shape) < 2 and "col_var" in state else {}


class Adafactor(Rule):
    """Second moments of rows and columns, and steps in proportion to the weights. Shazeer & Stern 2018, arXiv:1804.04235, algorithm 4.

    lr is the largest relative step; a step is at most 1 / sqrt(step) of the weights' RMS. There is no first moment. As in
    torch.optim, the last two dimensions are a matrix, and eps[0] is None for the epsilon of the parameter's dtype. A vector,
    and a matrix of one row, has a second moment for each element.
    """

    beta2_decay = Hyperparameter("power of the step at which the second moment forgets", "(-inf, 0]")
    eps = Hyperparameter("least root of the second moment, and least RMS of the weights", "[0, inf)")
    d = Hyperparameter(_CLIP, "[1, inf)")
    row_var, col_var = State("rows"), State("cols")
    stacks = True
    decay = "decoupled"
    needs = ("memory", "no-schedule")
    when = "Models whose optimizer states take too much memory, and T5's recipes."
    like_torch = TorchArguments(
        "foreach maximize",
        words={
            "lr": "Learning rate should be >= 0 but is: {}",
            "beta2_decay": "beta2_decay should be <= 0 but is: {}",
            "eps[0]": "epsilon1 should be >= 0 but is: {}",
            "eps[1]": "epsilon2 should be >= 0 but is: {}",
            "d": "Clipping threshold d should be >= 1 but is: {}",
            "weight_decay": "weight_decay should be >= 0 but is: {}",
        },
        taken=_from_torch,
        given=_for_torch,
    )

    @staticmethod
    def update(
        param: Value, grad: Value, row_var: Value, col_var: Value, *, step: Value, lr: float = 1e-2, beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3), d: float = 1.0, weight_decay: float = 0.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        beta2, square = 1 - step**beta2_decay, grad * grad
        row_var, col_var = ema(row_var, row_mean(square), beta2), ema(col_var, col_mean(square), beta2)
        share = where(rows(param) == 1, 1.0, row_var / maximum(col_mean(row_var), eps[0]))  # a row is no product
        direction = within(grad / maximum(sqrt(share) * sqrt(col_var), eps[0]), d)
        size = maximum(eps[1], sqrt(mean(param * param))) * minimum(lr, 1 / sqrt(step))
        return param - (size * direction + lr * weight_decay * param), row_var, col_var


class CAME(Rule):
    """Adafactor with momentum, divided by how far updates are from it. Luo et al. 2023, arXiv:2307.02047, algorithm 2.

    The first steps are long: nothing makes up for second moments that begin at 0. Warm lr up. The last two dimensions are a
    matrix. Vectors, and matrices of one row, are not divided by how far updates are from the momentum.
    """

    betas = Hyperparameter("decay rates of momentum, second moment and distances", "[0, 1)")
    eps = Hyperparameter("added to squares of gradients, and of distances", "[0, inf)")
    clip_threshold = Hyperparameter(_CLIP, "(0, inf)")
    exp_avg_sq_row, exp_avg_sq_col = State("rows"), State("cols")
    exp_avg_res_row, exp_avg_res_col = State("rows"), State("cols")
    stacks = True
    keeps_step = False
    decay = "decoupled"
    needs = ("memory",)
    when = "In place of AdamW, where there is room for one state."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq_row: Value, exp_avg_sq_col: Value, exp_avg_res_row: Value,
        exp_avg_res_col: Value, *, lr: float = 2e-4, betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16), clip_threshold: float = 1.0, weight_decay: float = 0.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        square = grad * grad + eps[0]
        exp_avg_sq_row = ema(exp_avg_sq_row, row_mean(square), betas[1])
        exp_avg_sq_col = ema(exp_avg_sq_col, col_mean(square), betas[1])
        row, col = factors(exp_avg_sq_row, exp_avg_sq_col)
        direction = within(grad / (row * col), clip_threshold)
        exp_avg = ema(exp_avg, direction, betas[0])
        apart = (direction - exp_avg) * (direction - exp_avg) + eps[1]
        exp_avg_res_row = ema(exp_avg_res_row, row_mean(apart), betas[2])
        exp_avg_res_col = ema(exp_avg_res_col, col_mean(apart), betas[2])
        row, col = factors(exp_avg_res_row, exp_avg_res_col)
        direction = where(rows(param) == 1, exp_avg, exp_avg / (row * col))
        new = param - lr * (direction + weight_decay * param)
        return new, exp_avg, exp_avg_sq_row, exp_avg_sq_col, exp_avg_res_row, exp_avg_res_col


class AdamMini(Rule):
    """AdamW with one second moment for each row, that is for each neuron. Zhang et al. 2024, arXiv:2406.16793, algorithm 1.

    A vector has one for all. The paper's queries and keys have one for each head, which rows are parts of; with block="tensor" a
    tensor has one for all, as the paper's values may.
    """

    block = Hyperparameter("what shares a second moment", texts=("row", "tensor"))
    betas = BETAS
    row_sq = State("rows")
    decay = "decoupled"
    needs = ("memory",)
    when = "In place of AdamW, where there is room for one state."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, row_sq: Value, *, step: Value, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.1, block: str = "row",
    ) -> tuple[Value, ...]:  # fmt: skip
        beta1, beta2 = betas
        exp_avg = ema(exp_avg, grad, beta1)
        square = grad * grad
        row_sq = ema(row_sq, row_mean(square) if block == "row" else mean(square), beta2)
        direction = debias(exp_avg, beta1, step) / (sqrt(debias(row_sq, beta2, step)) + eps)
        return param - lr * (direction + weight_decay * param), exp_avg, row_sq


class SM3(Rule):
    """Adagrad with one sum of squares for each row and each column. Anil et al. 2019, arXiv:1901.11150, algorithm SM3-II.

    The sum for an element is the smaller of its row's and its column's. A vector has one for each element.
    """

    momentum = Hyperparameter("decay rate of the EMA of updates", "[0, 1)")
    row_max, col_max = State("rows"), State("cols")
    keeps_step = False
    decay = "decoupled"
    needs = ("memory", "sparse")
    when = "Large embeddings and translation models, in place of Adagrad."

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value, row_max: Value, col_max: Value, *, lr: float = 0.1,
        momentum: float = 0.9, weight_decay: float = 0.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        least = minimum(row_max, col_max) + grad * grad
        row_max, col_max = row_largest(least), col_largest(least)
        is_zero = least == 0  # which NaN is not, so that weights show it
        direction = where(is_zero, 0.0, grad / sqrt(where(is_zero, 1.0, least)))
        momentum_buffer = ema(momentum_buffer, direction, momentum)
        return param - lr * (momentum_buffer + weight_decay * param), momentum_buffer, row_max, col_max
