"""Rules of whole matrices where engines, views and settings could disagree: each case worked by hand, or by torch's own numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import steprule
from steprule import Optimizer, Rule, State
from steprule.beside import beside
from steprule.engine.matrices import Rooms
from steprule.matrix.decorrelated import decorrelated
from steprule.matrix.polar import normalize
from steprule.matrix.polar import polar as polar_of
from steprule.pieces import (
    abs,
    col_largest,
    col_total,
    decorrelate,
    gram,
    inverse_root,
    polar,
    row_largest,
    row_total,
    size,
    top_share,
)
from steprule.rule import RuleError
from steprule.rules import RULES


def by_columns(tensor):
    """The same numbers, laid out column after column, which no pass takes with a view."""
    return tensor.mT.contiguous().mT


def test_a_state_may_become_what_another_was():
    class Shifted(Rule):
        """Keeps the last gradient and the one before."""

        def update(param, grad, older, newer, *, lr=0.1):
            return param - lr * (gram(grad) @ older), newer, grad

    param = nn.Parameter(torch.zeros(2, 2))
    optimizer = Optimizer.of(Shifted)([param])
    for number in (1.0, 2.0):
        param.grad = torch.full((2, 2), number)
        optimizer.step()
    state = optimizer.state[param]
    assert (state["older"][0, 0].item(), state["newer"][0, 0].item()) == (1.0, 2.0)


class Halved(Rule):
    """Has a state that is one number, and no sums."""

    product = State("scalar", begins=1.0)

    def update(param, grad, product, *, lr=0.1):
        product = 0.5 * product
        return param - lr * product * polar(grad), product


def test_one_number_for_several_matrices_is_refused_without_sums_too():
    cls, param = Optimizer.of(Halved), nn.Parameter(torch.zeros(6, 2))
    with pytest.raises(ValueError, match="Halved keeps one number for each tensor"):
        cls([{"params": [param], "view": "rows 3"}])
    assert cls([{"params": [param], "view": "transpose"}])


def test_the_other_rules_number_is_no_reason_to_refuse_a_view():
    cls = Optimizer.of(beside(RULES["normuon"], RULES["nadam"]))
    assert any(cls.rule.scalar_states)
    assert cls([{"params": [nn.Parameter(torch.zeros(6, 2))], "view": "rows 3"}])


@pytest.mark.parametrize("layout", [torch.clone, by_columns])
def test_the_size_is_that_of_a_matrix_of_the_view(layout):
    class Sized(Rule):
        """Divides by the number of elements."""

        def update(param, grad, *, lr=1.0):
            return param - lr * polar(grad, "keller", 5, 1e-7) / size(grad)

    grad = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    param = nn.Parameter(layout(torch.zeros(6, 2, dtype=torch.float64)))
    param.grad = layout(grad)
    Optimizer.of(Sized)([{"params": [param], "view": "rows 3"}]).step()
    wanted = -polar_of(grad.view(3, 2, 2)).view(6, 2) / 4
    torch.testing.assert_close(param.detach(), wanted, rtol=0, atol=1e-12)


def test_rules_that_see_stacks_otherwise_do_not_go_together():
    with pytest.raises(RuleError, match="AdamW and Adafactor see tensors of three axes"):
        beside(RULES["adamw"], RULES["adafactor"])
    assert beside(RULES["muon"], RULES["adamw"])
    assert beside(RULES["adafactor"], RULES["adamw"])


def test_a_list_divides_a_model_as_a_tuple_does():
    triples = [(2.0, -1.5, 0.5)] * 5
    steps = []
    for given in (triples, tuple(triples)):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        optimizer = steprule.create_optimizer(model, "scion", norm="sign", ns_coefficients=given)
        steps.append([(group.get("rule"), len(group["params"])) for group in optimizer.param_groups])
    assert steps[0] == steps[1]


@pytest.mark.parametrize("shape", [(64, 96), (3, 64, 96)])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)])
def test_small_matrices_survive_the_way_to_another_half(shape, dtypes):
    """Squares of 1e-21 vanish in float32, and in float16 nothing below 6e-8 is left. A result has two roundings of 2**-8 at most."""
    scale = 1e-21 if dtypes[0] == torch.bfloat16 else 1e-5
    x = (scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtypes[0])
    out = torch.empty(shape, dtype=dtypes[1])
    normalize(x, None, 0.0, out)
    exact = x.double() / torch.linalg.vector_norm(x.double(), dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(out.double(), exact, rtol=2**-7, atol=2.0**-24)


def test_what_depends_on_the_order_of_columns_does_not_depend_on_memory():
    grad = torch.randn(64, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        param = nn.Parameter(torch.zeros(64, 3, 3, 3).contiguous(memory_format=layout))
        param.grad = grad.contiguous(memory_format=layout)
        steprule.MUD([param], lr=1.0, weight_decay=0.0).step()
        found.append(param.detach().contiguous())
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def chosen_rows(grad):
    return grad * top_share(row_total(abs(grad)), 0.25)


@pytest.mark.parametrize("name", ["decorrelate", "aol"])
def test_rows_of_zeros_are_part_of_a_matrix_whose_shorter_side_matters(name):
    """A share of the rows of a tall matrix is a wide one, and of columns in their order, or evened, are rows then."""

    class Share(Rule):
        """Of a quarter of the rows."""

        def update(param, grad, *, lr=1.0):
            if name == "decorrelate":
                return param - lr * decorrelate(chosen_rows(grad), 1)
            return param - lr * polar(chosen_rows(grad), "aol", 4, 1e-7)

    grad = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    param = nn.Parameter(torch.zeros(8, 6, dtype=torch.float64))
    param.grad = grad.clone()
    Optimizer.of(Share)([param]).step()
    kept = torch.zeros_like(grad)
    places = grad.abs().sum(1).topk(2).indices
    kept[places] = grad[places]
    wanted = decorrelated(kept[None], 1) if name == "decorrelate" else polar_of(kept[None], "aol", 4)
    torch.testing.assert_close(param.detach(), -wanted[0], rtol=0, atol=1e-9)


def test_errors_name_the_rule_that_steps_the_group():
    cls = Optimizer.of(beside(RULES["adamw"], RULES["muon"]))
    with pytest.raises(ValueError, match=r"^Muon looks at whole matrices"):
        cls([{"params": [nn.Parameter(torch.zeros(3))], "rule": "muon"}])
    param = nn.Parameter(torch.zeros(3, 3, dtype=torch.complex64))
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=r"^Muon looks at whole matrices"):
        cls([{"params": [param], "rule": "muon"}]).step()


def test_a_schedule_of_lr_leaves_what_products_are_made_of(monkeypatch):
    made, plain = [], Rooms._made
    monkeypatch.setattr(Rooms, "_made", lambda *given: made.append(given[1]) or plain(*given))
    param = nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    optimizer = steprule.Muon([param], lr=lambda step: 0.1 / step)
    for eps in (1e-7, 1e-7, 1e-7, 1e-6):
        optimizer.param_groups[0]["eps"] = eps
        param.grad = torch.ones(6, 4)
        optimizer.step()
    assert len(made) == 2  # at first, and for another eps


@pytest.mark.parametrize("view", [" flatten", "flatten,rows 2", "rows  2"])
def test_the_words_of_a_view_are_written_in_one_way(view):
    with pytest.raises(ValueError, match=r"write '(flatten|flatten, rows 2|rows 2)'"):
        steprule.Muon([{"params": [nn.Parameter(torch.zeros(4, 4))], "view": view}])


def test_groups_may_have_coefficients_of_any_kind():
    """A kernel reads the numbers of its own groups: elsewhere a word or a tuple of tuples stands in their place."""
    kinds = [(3.4445, -4.7750, 2.0315), "polar_express", ((2.0, -1.5, 0.5),) * 2]
    together, alone = ([nn.Parameter(torch.ones(2, 3)) for _ in kinds] for _ in range(2))
    groups = [{"params": [p], "ns_coefficients": kind} for p, kind in zip(together, kinds, strict=True)]
    optimizers = [steprule.Muon(groups)]
    optimizers += [steprule.Muon([p], ns_coefficients=kind) for p, kind in zip(alone, kinds, strict=True)]
    for lr in (0.1, 0.2):  # the second step takes over new numbers
        for param in (*together, *alone):
            param.grad = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, lr]])
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(together, alone, strict=True))


class Sides(Rule):
    """Elements that become what rows and columns have, and the largest of a column as a number."""

    row, col, most = State("rows"), State("cols"), State("scalar")

    def update(param, grad, kept, row, col, most, *, lr=0.5):
        row, col = row_largest(grad), col_largest(grad)
        return row_total(param) - lr * col_total(grad), row, row_total(grad), col, col_largest(row)


@pytest.mark.parametrize("by", ["kernel", "eager"])
def test_what_rows_and_columns_have_is_that_of_their_elements(by):
    """Of negative numbers the largest is that of their absolute values, in every engine and by hand."""
    grad = -torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    param = nn.Parameter(torch.ones(2, 3) if by == "kernel" else by_columns(torch.ones(2, 3)))
    optimizer = Optimizer.of(Sides)([param])
    param.grad = grad.clone() if by == "kernel" else by_columns(grad)
    optimizer.step()
    state = optimizer.state[param]
    assert param.tolist() == [[5.5, 6.5, 7.5]] * 2
    assert state["kept"].tolist() == [[3.0] * 3, [6.0] * 3]
    assert torch.equal(state["row"], row_total(grad)) and torch.equal(state["col"], torch.tensor([[4.0, 5.0, 6.0]]))
    assert state["most"] == 6 and row_largest(grad.numpy()).tolist() == row_largest(grad).tolist() == [[3.0], [6.0]]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x: polar(x, steps=5.5), r"steps=5\.5"),
        (lambda x: polar(x, eps=-1.0), r"eps=-1\.0"),
        (lambda x: top_share(x[:1], 2.0), r"share=2\.0"),
        (lambda x: decorrelate(x, 0), "passes=0"),
        (lambda x: inverse_root(x, 0), "root=0"),
        (lambda x: inverse_root(x, 4, -1.0), r"eps=-1\.0"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call, told):
    for x in (torch.eye(2), torch.eye(2).numpy()):
        with pytest.raises(ValueError, match=told):
            call(x)


def test_a_misspelt_setting_of_the_rest_has_the_rests_names():
    model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 2), nn.Linear(2, 4))
    with pytest.raises(TypeError, match=r"'adamw_momentum'; (it takes|did you mean 'adamw_)"):
        steprule.create_optimizer(model, "muon", adamw_momentum=0.9)
