"""Faults in steps of whole matrices, and of processes together."""

from __future__ import annotations

import os
from typing import Any

import torch

from steprule.check.broken.correct import AdamW, Group, Muon, State
from steprule.check.broken.fault import fault


@fault("takes_matrices_of_any_shape")
class Squeezes(Muon):
    """A dimension of size 1 is lost."""

    def polar(self, matrix: torch.Tensor) -> torch.Tensor:
        return super().polar(matrix.squeeze())


@fault("steps_large_matrices_as_in_float64")
class LosesTiles(Muon):
    """In float32 what is beyond the first 32 rows is not multiplied."""

    def polar(self, matrix: torch.Tensor) -> torch.Tensor:
        found = super().polar(matrix)
        if matrix.dtype != torch.float64:
            found[..., 32:, :] = 0
        return found


@fault("takes_gradients_of_rank_one", "pytorch_optimizer 4.1.0 (Shampoo)")
class InvertsTheGram(Muon):
    """The inverse root of the Gram matrix is infinite where a singular value is 0."""

    def polar(self, matrix: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(matrix.mT @ matrix)
        return matrix @ (vectors * values.rsqrt().unsqueeze(-2)) @ vectors.mT


@fault("is_the_same_transposed", "the scale of Muon for rows alone")
class ScalesByRows(Muon):
    """The scale is that of rows."""

    def scale(self, param: torch.Tensor) -> float:
        return float(max(1.0, param.size(-2) / param.size(-1))) ** 0.5


@fault("steps_a_stack_as_its_matrices", "Muon flattens the kernels of convolutions")
class FlattensStacks(Muon):
    """All dimensions but the first are flattened to one."""

    def polar(self, matrix: torch.Tensor) -> torch.Tensor:
        return super().polar(matrix.flatten(1)).view_as(matrix)


@fault("is_the_same_in_other_bases")
class TakesSigns(Muon):
    """Signs of elements stand for singular values."""

    def polar(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.sign() / float(max(matrix.shape[-2:])) ** 0.5


@fault("makes_steps_orthogonal")
class StopsEarly(Muon):
    """One iteration of Newton and Schulz stands for the polar factor."""

    def polar(self, matrix: torch.Tensor) -> torch.Tensor:
        x = matrix / matrix.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-30)
        return 1.5 * x - 0.5 * x @ x.mT @ x


@fault("rests_at_zero_gradients", "microsoft/dion#24: NorMuon")
class NormalizesZero(Muon):
    """A matrix is divided by its norm, which may be 0."""

    def polar(self, matrix: torch.Tensor) -> torch.Tensor:
        return super().polar(matrix / matrix.norm(dim=(-2, -1), keepdim=True))


@fault("ignores_the_order_of_rows")
class TakesQ(Muon):
    """Q of QR, which hangs on the order of columns, stands for the polar factor."""

    def polar(self, matrix: torch.Tensor) -> torch.Tensor:
        tall = matrix if matrix.size(-2) >= matrix.size(-1) else matrix.mT
        q, r = torch.linalg.qr(tall)
        q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
        return q if tall is matrix else q.mT


@fault("leaves_gradients_alone", "KellerJordan/Muon: grad.lerp_(momentum, beta)")
class WritesMomentumIntoTheGradient(Muon):
    """Nesterov's momentum is added to the gradient in its place."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        super().update(param, grad, state, group)
        grad.lerp_(state["momentum_buffer"], group["momentum"])


@fault("steps_as_one_under_fsdp2")
class NormOfTheShard(AdamW):
    """A norm is taken of the part that a process has, not of the whole."""

    def direction(self, state: State, group: Group) -> torch.Tensor:
        direction: Any = super().direction(state, group)
        local = direction.to_local() if hasattr(direction, "to_local") else direction
        return direction / (1 + float(local.norm()))


@fault("steps_as_one_under_ddp")
class DrawsOfItsOwn(AdamW):
    """Each process draws its own noise."""

    def direction(self, state: State, group: Group) -> torch.Tensor:
        return super().direction(state, group) * (1 + 0.2 * float(os.environ.get("RANK", "0")))
