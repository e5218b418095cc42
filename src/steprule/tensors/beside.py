"""States beside a matrix, of its rows, columns or squares: as they begin, and what is here of them beside the part of a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steprule.formats.parts import cuts_of, square_rows, whole_of
from steprule.rule import Rule
from steprule.state import SQUARES, matrices_of, side_shape, state_shape


def side_dtype(param: Tensor) -> torch.dtype:
    """What is kept of rows, columns and squares."""
    return torch.float64 if param.dtype in (torch.float64, torch.complex128) else torch.float32


def _rows_here(rule: type[Rule], name: str, param: Tensor) -> bool:
    """Whether only some rows of a state are here, and these whatever part of the matrix is."""
    return rule.states[name].extent in SQUARES and whole_of(param) is not param and bool(cuts_of(whole_of(param)))


def shape_beside(rule: type[Rule], name: str, param: Tensor, group: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of what is here of a state.

    Args:
        rule: whose state it is.
        name: the state's.
        param: the parameter, or the part of one that is here.
        group: its settings.
    """
    if not _rows_here(rule, name, param):
        return state_shape(rule, name, param.shape, group, group.get("view"))
    *_, side = state_shape(rule, name, whole_of(param).shape, group, group.get("view"))
    return len(square_rows(whole_of(param), side)), side


def begin_beside(rule: type[Rule], name: str, param: Tensor, group: Mapping[str, Any], number: float) -> Tensor:
    """This number for each row or column, or times the identity; what is beside several matrices follows each other.

    Args:
        rule, name, param, group: as for `shape_beside`.
        number: what the state begins at.
    """
    like: Any = {"dtype": side_dtype(param), "device": param.device}
    if _rows_here(rule, name, param):
        rows, side = shape_beside(rule, name, param, group)
        here: Tensor = torch.zeros(rows, side, **like)
        here.diagonal(square_rows(whole_of(param), side).start).fill_(number)
        return here
    matrices = matrices_of(param.shape, rule.stacks, group.get("view"))
    every = [torch.full(side_shape(rule, name, one, group), number, **like) for one in matrices]
    if rule.states[name].extent in SQUARES:
        every = [one.tril_().triu_() for one in every]
    return every[0] if len(every) == 1 else torch.cat([one.reshape(-1) for one in every])
