"""Parameters that are seen as matrices: a step is that of the matrices as parameters of their own."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from torch import nn

import steprule
from steprule.layers import View
from steprule.rules import RULES

CASES = {
    "matrix": (6, 4), "rows 3": (24, 8), "transpose": (8, 24), "transpose, rows 3": (8, 24), "stack": (5, 8, 6),
    "stack, transpose, interleaved 2": (5, 8, 6), "columns 2": (8, 12), "flatten": (8, 4, 3, 3),
    "flatten, rows 2, transpose": (8, 4, 3, 3),
}  # fmt: skip
UNEQUAL = {"split 8 4 4": (16, 12), "transpose, split 2 6": (12, 8)}


def parts(words, tensor, like=None):
    """The matrices of a tensor, each contiguous."""
    stacks = View(words).matrices((tensor if like is None else torch.empty_like(like).copy_(tensor)).detach())
    return [one.contiguous().clone() for stack in stacks for one in stack.reshape(-1, *stack.shape[-2:])]


def pair(words, shape, name="muon", dtype=torch.float32, channels_last=False, **settings):
    """An optimizer of a parameter that is seen so, one of its matrices, and a function that gives both the same gradient."""
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    param = nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype).to(memory_format=layout))
    own = [nn.Parameter(one) for one in parts(words, param)]
    cls = steprule.Optimizer.of(RULES[name])
    one, other = cls([{"params": [param], "view": words}], lr=0.1, **settings), cls(own, lr=0.1, **settings)

    def grads(scale=1.0):
        param.grad = (scale * torch.randn(shape, generator=generator, dtype=dtype)).to(memory_format=layout)
        for part, grad in zip(own, parts(words, param.grad, param), strict=True):
            part.grad = grad

    return param, own, one, other, grads


def leaf(*shape):
    """The same numbers in every shape."""
    return nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).sin().reshape(shape))


def step(one, other, grads, count=3):
    for _ in range(count):
        grads()
        one.step()
        other.step()


def takes_passes(optimizer):
    """Whether a plan with kernels does the steps that come."""
    plan = optimizer._core.plans.current
    return plan is not None and len(plan._buckets) == 1


@pytest.mark.parametrize("words", CASES)
@pytest.mark.parametrize("name", ["muon", "mud"])
def test_a_step_is_that_of_the_matrices_to_the_last_bit(words, name):
    param, own, one, other, grads = pair(words, CASES[words], name)
    step(one, other, grads)
    assert takes_passes(one)
    for part, its in zip(parts(words, param), own, strict=True):
        assert torch.equal(part, its)
    (state,) = one.state.values()
    momenta = [other.state[its]["momentum_buffer"] for its in own]
    assert all(map(torch.equal, parts(words, state["momentum_buffer"]), momenta))


@pytest.mark.parametrize("words", ["flatten", "flatten, rows 2, transpose"])
def test_a_convolution_is_seen_in_the_order_of_its_memory(words):
    param, own, one, other, grads = pair(words, (8, 4, 3, 3), channels_last=True)
    step(one, other, grads)
    assert takes_passes(one)
    assert param.is_contiguous(memory_format=torch.channels_last)
    for part, its in zip(parts(words, param), own, strict=True):
        assert torch.equal(part, its)
    plain = nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))
    plain.grad = torch.randn_like(plain)
    optimizer = steprule.Muon([plain])
    optimizer.step()
    assert takes_passes(optimizer)  # without a view, too


@pytest.mark.parametrize("view", [None, "rows 2", "flatten"])
def test_strides_are_not_taken_for_rows(view):
    generator = torch.Generator().manual_seed(0)
    one = nn.Parameter(torch.randn(8, 6, generator=generator, dtype=torch.float64).T.contiguous().T)
    other = nn.Parameter(one.detach().contiguous())
    optimizers = [steprule.Muon([{"params": [param], "view": view}], lr=0.1) for param in (one, other)]
    for _ in range(2):
        other.grad = torch.randn(8, 6, generator=generator, dtype=torch.float64)
        one.grad = torch.empty_like(one).copy_(other.grad)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("words", [*CASES, *UNEQUAL])
@pytest.mark.parametrize("name", ["muon", "normuon", "muoneq", "mano", "polargrad", "adafactor", "came"])
def test_sums_of_rows_columns_and_matrices_are_those_of_each(words, name):
    """In float64 that leaves some 1e-15 of rounding, which differences of large numbers make 1e-12; another view leaves 1e-2."""
    param, own, one, other, grads = pair(words, {**CASES, **UNEQUAL}[words], name, torch.float64)
    step(one, other, grads)
    assert takes_passes(one) or words not in ("matrix", "flatten")
    for part, its in zip(parts(words, param), own, strict=True):
        torch.testing.assert_close(part, its, rtol=0, atol=1e-10)
    (state,) = one.state.values()
    for key in RULES[name].side_states:
        whole = torch.cat([other.state[its][key].flatten() for its in own])
        torch.testing.assert_close(state[key].flatten(), whole, rtol=1e-10, atol=0)


def test_a_flat_convolution_is_stepped_as_the_matrix_of_its_numbers():
    settings = {"states": "8bit", "clip": 0.5, "average": 0.9, "telemetry": 1}
    one, other = leaf(4, 3, 5, 40), leaf(4, 600)
    make = partial(steprule.CAME, **settings)
    optimizers = [make([{"params": [one], "view": "flatten"}]), make([other])]
    for scale in (1.0, 2.0, 3.0):
        for param, optimizer in zip((one, other), optimizers, strict=True):
            param.grad = scale * param.detach().cos()
            optimizer.step()
    assert all(map(takes_passes, optimizers))
    for key in ("param", *optimizers[0].state[one]):
        kept = [
            optimizer.state[param].get(key, param) for param, optimizer in zip((one, other), optimizers, strict=True)
        ]
        assert torch.equal(*(x.detach().reshape(-1) for x in kept)), key


@pytest.mark.parametrize("name", ["soap", "shampoo"])
def test_all_matrices_of_a_view_have_new_bases_in_the_steps_of_their_parameter(name):
    param, own, one, other, grads = pair("rows 3", (18, 5), name, torch.float64, precondition_frequency=3)
    firsts = [nn.Parameter(matrix.detach().clone()) for matrix in own]
    alone = [type(other)([matrix], lr=0.1, precondition_frequency=3) for matrix in firsts]  # each is the first there
    for _ in range(5):
        step(one, other, grads, 1)
        for matrix, its, optimizer in zip(firsts, own, alone, strict=True):
            matrix.grad = its.grad.clone()
            optimizer.step()
    for number, (part, its, first) in enumerate(zip(parts("rows 3", param), own, firsts, strict=True)):
        torch.testing.assert_close(part, first, rtol=0, atol=1e-10)
        assert torch.allclose(part, its, rtol=0, atol=1e-4) == (number == 0)


LONG = {"rows 3": (24, 160), "transpose, rows 2": (24, 160), "transpose, split 60 100": (24, 160)}
"""Rows that are long enough to be kept in 8 bits."""


@pytest.mark.parametrize("words", LONG)
@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_a_run_resumes_to_the_last_bit_and_the_view_stays(words, name):
    param, _, one, other, grads = pair(words, LONG[words], name, states="8bit")
    step(one, other, grads)
    assert "momentum_buffer_8bit" in one.state[param]
    assert {key: group["view"] for key, group in enumerate(one.param_groups)} == {0: words}
    again = nn.Parameter(param.detach().clone())
    resumed = steprule.Optimizer.of(RULES[name])([{"params": [again], "view": words}], lr=0.1, states="8bit")
    saved = pickle.loads(pickle.dumps(one.state_dict()))
    for group in saved["param_groups"]:
        del group["view"]  # as one that was made without
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["view"] == words
    copied, copy_of = copy.deepcopy((param, one))
    grads()
    again.grad, copied.grad = param.grad.clone(), param.grad.clone()
    for optimizer in (one, resumed, copy_of):
        optimizer.step()
    assert torch.equal(param, again)
    assert torch.equal(param, copied)
    assert "view" not in one.plain_state_dict()["param_groups"][0]
    for key in RULES[name].states_for(one.param_groups[0]):
        assert one.read(param, key).isfinite().all()


@pytest.mark.parametrize("words", LONG)
def test_the_first_step_is_the_same_with_8_bits(words):
    """Momentum is rounded to be kept, after it has been used; the second step differs."""
    param, _, one, _, grads = pair(words, LONG[words])
    small = nn.Parameter(param.detach().clone())
    few = steprule.Muon([{"params": [small], "view": words}], lr=0.1, states="8bit")
    grads()
    small.grad = param.grad.clone()
    one.step()
    few.step()
    assert "momentum_buffer_8bit" in few.state[small]
    assert torch.equal(param, small)
    one.step()
    few.step()
    assert not torch.equal(param, small)


def test_a_step_is_clipped_and_skipped_as_one():
    param, own, one, other, grads = pair("transpose, rows 3", (8, 24), clip=0.5, nonfinite="skip")
    step(one, other, grads)
    assert one.clipped_steps == other.clipped_steps == 3
    torch.testing.assert_close(one.grad_norm, other.grad_norm, rtol=1e-6, atol=0)
    for part, its in zip(parts("transpose, rows 3", param), own, strict=True):
        torch.testing.assert_close(part, its)  # the factors may differ in a last place
    before = param.detach().clone()
    grads()
    param.grad[3, 2] = torch.inf
    one.step()
    assert torch.equal(param, before)
    assert one.skipped_steps == 1


def test_gradients_are_released_and_a_view_may_be_changed_by_hand():
    layer, other = nn.Linear(8, 24, bias=False), nn.Linear(8, 24, bias=False)
    other.load_state_dict(layer.state_dict())
    one = steprule.Muon([{"params": layer.parameters(), "view": "rows 3"}], lr=0.1)
    two = steprule.Muon(other.parameters(), lr=0.1)
    one.release_gradients(layer)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    for words in (None, "rows 3"):
        one.param_groups[0]["view"] = two.param_groups[0]["view"] = words
        for model, optimizer in ((layer, one), (other, two)):
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize(
    ("rule", "view", "error", "message"),
    [
        ("muon", "rows 5", ValueError, r"parameter 0 of group 0: view 'rows 5' of shape \(24, 8\): 24 rows are not 5 equal blocks"),
        ("muon", "stack", ValueError, r"parameter 0 of group 0: view 'stack' needs three or more axes"),
        ("muon", "row 3", ValueError, "'row 3' is no step"),
        ("muon", View("rows 3"), TypeError, "must be the words of a view"),
        ("adamw", "rows 3", ValueError, "view='rows 3' of group 0: AdamW looks at elements, and sees no matrices"),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_so_is_refused(rule, view, error, message):
    cls = steprule.Optimizer.of(RULES[rule])
    param = nn.Parameter(torch.randn(24, 8))
    with pytest.raises(error, match=message):
        cls([{"params": [param], "view": view}])
    optimizer = cls([param])
    param.grad = torch.ones(24, 8)
    optimizer.step()
    optimizer.param_groups[0]["view"] = view
    before = param.detach().clone()
    with pytest.raises(error, match=message):
        optimizer.step()
    assert torch.equal(param, before)


# create_optimizer with models whose parameters are several matrices


class Conv1D(nn.Module):
    """x @ weight, as GPT-2 has it."""

    def __init__(self, out, size):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(size, out) / size**0.5), nn.Parameter(torch.zeros(out))

    def forward(self, x):
        return x @ self.weight + self.bias


Conv1D.__module__ = "transformers.pytorch_utils"


class Experts(nn.Module):
    def __init__(self, count=3, width=8):
        super().__init__()
        self.up = nn.Parameter(torch.randn(count, width, 2 * width) / width**0.5)
        self.down = nn.Parameter(torch.randn(count, 2 * width, width) / width**0.5)

    def forward(self, x):
        return torch.einsum("enw,ewv->nv", torch.relu(torch.einsum("nv,evw->enw", x, self.up)), self.down)


class Mixed(nn.Module):
    """Attention, GPT-2's layers, experts and convolutions, one after another."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(10, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(Conv1D(16, 8), nn.GELU(), Conv1D(8, 16))
        self.experts = Experts()
        self.convolution = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, tokens):
        x = self.tokens(tokens)
        x = x + self.attention(x, x, x)[0]
        x = x + self.mlp(x)
        x = x + self.experts(x.flatten(0, 1)).reshape(x.shape)
        x = x + self.convolution(x.mT[..., None].to(memory_format=torch.channels_last))[..., 0].mT
        return self.head(self.norm(x))


SEEN = {
    "attention.in_proj_weight": "rows 3", "attention.out_proj.weight": "matrix", "mlp.0.weight": "transpose",
    "mlp.2.weight": "transpose", "experts.up": "stack, transpose", "experts.down": "stack, transpose",
    "convolution.weight": "flatten, rows 2",
}  # fmt: skip


@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_a_model_of_all_kinds_trains_as_its_matrices_do(name):
    torch.manual_seed(0)
    model = Mixed()
    model.convolution.to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="roles cannot tell what 2 parameters are"):
        steprule.create_optimizer(model, name)
    optimizer = steprule.create_optimizer(model, name, lr=0.02, adamw_lr=0.01, roles={"experts.*": "stack, transpose"})
    seen = {
        key: group["view"] or "matrix"
        for group in optimizer.param_groups
        for key in group["param_names"]
        if group["rule"] == name
    }
    assert seen == SEEN
    named = dict(model.named_parameters())
    others = [param for key, param in named.items() if key not in seen]
    decays = [param for param in others if param.ndim > 1]
    matrices = {key: [nn.Parameter(one) for one in parts(words, named[key])] for key, words in seen.items()}
    copies = {param: nn.Parameter(param.detach().clone()) for param in others}
    one = steprule.Optimizer.of(RULES[name])([part for own in matrices.values() for part in own], lr=0.02)
    two = steprule.AdamW([copies[p] for p in decays], lr=0.01, weight_decay=0.01)
    three = steprule.AdamW([copies[p] for p in others if p.ndim == 1], lr=0.01, weight_decay=0.0)
    tokens, losses = torch.randint(0, 10, (4, 6)), []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        for key, own in matrices.items():
            for part, grad in zip(own, parts(seen[key], named[key].grad, named[key]), strict=True):
                part.grad = grad
        for param, its in copies.items():
            its.grad = param.grad.clone()
        for each in (optimizer, one, two, three):
            each.step()
    assert losses[-1] < losses[0]
    assert all(torch.equal(param, its) for param, its in copies.items())
    for key, own in matrices.items():
        for part, its in zip(parts(seen[key], named[key]), own, strict=True):
            if name == "muon":
                assert torch.equal(part, its)
            else:
                torch.testing.assert_close(part, its)


def test_a_stack_without_a_view_is_told_once(caplog, monkeypatch):
    monkeypatch.setattr("steprule.step.loose._told", set())
    for view in ("flatten", None, None):
        param = nn.Parameter(torch.ones(4, 3, 3))
        param.grad = torch.ones(4, 3, 3)
        told = len(caplog.records)
        steprule.Adafactor([{"params": [param], **({"view": view} if view else {})}]).step()
    (record,) = (one for one in caplog.records if "stack of matrices" in one.getMessage())
    assert "Adafactor steps parameter 0 of group 0" in record.getMessage() and "view='flatten'" in record.getMessage()
    assert told == len(caplog.records)
