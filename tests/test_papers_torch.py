"""The oracle of papers.py against torch.optim, and its options against what torch.optim and a pencil say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from dropin import NEWER, NO_DECOUPLED, since
from papers import DEFAULTS, PAPERS, Array, around

CLASSES = {
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
    "asgd": torch.optim.ASGD,
    "rprop": torch.optim.Rprop,
    "sparseadam": torch.optim.SparseAdam,
}

TELLING: dict[str, Any] = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 0.02}
"""Values at which a misplaced eps, a missing bias correction or swapped betas show in the first digits."""

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {}),
    ("sgd", {"lr": 0.05, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1}),
    ("sgd", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("rmsprop", {}),
    ("rmsprop", {"lr": 0.05, "alpha": 0.9, "eps": 0.02, "weight_decay": 0.1, "momentum": 0.9}),
    ("rmsprop", {"lr": 0.05, "alpha": 0.9, "eps": 0.02, "weight_decay": 0.1, "centered": True}),
    ("adam", {}),
    ("adam", {**TELLING, "weight_decay": 0.1}),
    ("adam", {**TELLING, "weight_decay": 0.1, "amsgrad": True}),
    ("adam", {**TELLING, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("adamw", {}),
    ("adamw", {**TELLING, "weight_decay": 0.1}),
    ("adamw", {**TELLING, "weight_decay": 0.1, "amsgrad": True}),
    ("nadam", {}),
    ("nadam", {**TELLING, "weight_decay": 0.1, "momentum_decay": 0.2}),
    ("nadam", {**TELLING, "weight_decay": 0.1, "momentum_decay": 0.2, "decoupled_weight_decay": True}),
    ("radam", {}),
    ("radam", {**TELLING, "weight_decay": 0.1}),
    ("radam", {**TELLING, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("adagrad", {}),
    ("adagrad", {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.3, "eps": 0.02}),
    ("adadelta", {}),
    ("adadelta", {"lr": 0.5, "rho": 0.8, "eps": 0.02, "weight_decay": 0.1}),
    ("adamax", {}),
    ("adamax", {**TELLING, "weight_decay": 0.1}),
    ("asgd", {}),
    ("asgd", {"lr": 0.1, "lambd": 0.5, "alpha": 0.6, "t0": 5.0, "weight_decay": 0.1}),
    ("rprop", {}),
    ("rprop", {"lr": 0.3, "etas": (0.3, 1.5), "step_sizes": (0.2, 0.5)}),
    ("sparseadam", {}),
    ("sparseadam", TELLING),
]


def some(seed: int) -> list[Array]:
    """Tensors of various shapes, the same ones for a seed."""
    generator = np.random.default_rng(seed)
    return [np.asarray(generator.standard_normal(shape)) for shape in ((4, 3), (5,), ())]


STEPS = 20
PARAMS = some(0)
GRADS = [some(1 + t) for t in range(STEPS)]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """NAdam and ASGD keep numbers of the step in torch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def in_torch(
    name: str, options: dict[str, Any], params: list[Array], grads: list[list[torch.Tensor]]
) -> list[list[Array]]:
    tensors = [torch.tensor(p, requires_grad=True) for p in params]
    optimizer: torch.optim.Optimizer = CLASSES[name](tensors, **options)
    history = []
    for g in grads:
        for p, gi in zip(tensors, g, strict=True):
            p.grad = gi
        optimizer.step()
        history.append([p.detach().numpy().copy() for p in tensors])
    return history


def same(a: list[list[Array]], b: list[list[Array]]) -> None:
    assert len(a) == len(b)
    for t, (ours, its) in enumerate(zip(a, b, strict=True), 1):
        for i, (x, y) in enumerate(zip(ours, its, strict=True)):
            assert x.shape == y.shape
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-13, err_msg=f"tensor {i} after step {t}")


def dense(grads: list[list[Array]]) -> list[list[torch.Tensor]]:
    return [[torch.tensor(g) for g in gs] for gs in grads]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_the_oracle_has_torchs_numbers(name: str, options: dict[str, Any]) -> None:
    if name == "adam" and NEWER & options.keys():
        since("2.7", NO_DECOUPLED)
    params, grads = PARAMS, GRADS
    if name == "sparseadam":  # a sparse tensor has dimensions
        params, grads = params[:2], [g[:2] for g in grads]
        given = [[g.to_sparse() for g in gs] for gs in dense(grads)]
    else:
        given = dense(grads)
    ours = PAPERS[name](params, grads, **options)
    same(ours, in_torch(name, options, params, given))
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(ours[-1], params, strict=True)), "nothing moved"


def test_sparseadam_leaves_what_a_gradient_lacks() -> None:
    generator = np.random.default_rng(0)
    masks = [[generator.random(g.shape) < 0.5 for g in gs[:2]] for gs in GRADS]
    masked = [
        [np.ma.array(g, mask=m) for g, m in zip(gs, ms, strict=False)] for gs, ms in zip(GRADS, masks, strict=True)
    ]
    sparse = [[torch.tensor(g.filled(0.0)).to_sparse() for g in gs] for gs in masked]
    same(PAPERS["sparseadam"](PARAMS[:2], masked, **TELLING), in_torch("sparseadam", TELLING, PARAMS[:2], sparse))


def test_decay_around_a_rule_is_torchs_decay_in_another() -> None:
    options = {**TELLING, "weight_decay": 0.1}
    same(around("adam", PARAMS, GRADS, decay="decoupled", **options), in_torch("adamw", options, PARAMS, dense(GRADS)))
    same(around("adamw", PARAMS, GRADS, decay="coupled", **options), in_torch("adam", options, PARAMS, dense(GRADS)))


def test_without_options_around_is_the_rule_itself() -> None:
    options = {**TELLING, "weight_decay": 0.1}
    same(around("adamw", PARAMS, GRADS, **options), PAPERS["adamw"](PARAMS, GRADS, **options))


def one(*params: float) -> list[Array]:
    return [np.array(params)]


def test_decays_by_hand() -> None:
    def last(decay: str, **options: Any) -> Array:
        return around("sgd", one(2.0), [one(1.0), one(1.0)], decay=decay, lr=0.5, weight_decay=0.1, **options)[-1][0]

    # The first step moves 2 to 1.5 less the decay.
    first = 1.5 - 0.5 * 0.1 * 2
    assert last("decoupled") == pytest.approx([first - 0.5 - 0.5 * 0.1 * first])
    assert last("corrected") == last("decoupled")
    first = 1.5 - 0.1 * 2
    assert last("independent") == pytest.approx([first - 0.5 - 0.1 * first])
    first = 1.5 - 0.25 / 2 * 0.1 * 2
    assert last("corrected", max_lr=2.0) == pytest.approx([first - 0.5 - 0.25 / 2 * 0.1 * first])
    assert last("initial") == pytest.approx([1.0 - 0.5 * 0.1 * (1.5 - 2.0)])


def test_cautious_by_hand() -> None:
    # The momentum of the first step carries the second element up the second gradient: it is left away, and the
    # other two are multiplied by 3 / (2 + 1).
    grads = [one(1.0, 1.0, 1.0), one(1.0, -0.5, 1.0)]
    first, second = around("sgd", one(0.0, 0.0, 0.0), grads, cautious=True, lr=0.1, momentum=0.9)
    assert first[0] == pytest.approx(np.full(3, -0.1 * 3 / 4))
    assert second[0] - first[0] == pytest.approx([-0.19 * 3 / 3, 0.0, -0.19 * 3 / 3])


def test_cautious_decay_by_hand() -> None:
    # Of 1, -1 and 0.5 the gradient takes the first towards 0, the second away from it; the third does not move.
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.2, "cautious_decay": True}
    [[x]] = around("sgd", one(1.0, -1.0, 0.5), [one(1.0, 1.0, 0.0)], decay="decoupled", **options)
    assert x == pytest.approx([1 - 0.1 - 0.02, -1 - 0.1, 0.5 - 0.01])
    [[x]] = around("lion", one(1.0, -1.0), [one(1.0, 1.0)], **options)
    assert x == pytest.approx([1 - 0.1 - 0.02, -1 - 0.1])
    with pytest.raises(ValueError, match="no decay apart from sgd's formula"):
        around("sgd", one(1.0), [one(1.0)], **options)


def test_lookahead_by_hand() -> None:
    # 1 -> 0.9 -> 0.8, back a quarter of the way from 1: 0.95; then 0.85 -> 0.75, 0.95 - 0.25 * 0.2 = 0.9
    history = around("sgd", one(1.0), [one(1.0)] * 4, lr=0.1, lookahead=2, lookahead_alpha=0.25)
    assert [float(x[0][0]) for x in history] == pytest.approx([0.9, 0.95, 0.85, 0.9])


def test_decay_around_a_rule_that_has_none_by_hand() -> None:
    assert "weight_decay" not in DEFAULTS["rprop"]
    same(around("rprop", PARAMS, GRADS), PAPERS["rprop"](PARAMS, GRADS))
    [[x]] = around("rprop", one(2.0), [one(1.0)], decay="decoupled", lr=0.5, weight_decay=0.1)
    assert x == pytest.approx([2 - 0.5 - 0.5 * 0.1 * 2])


def test_an_unknown_decay() -> None:
    with pytest.raises(ValueError, match=r"decay must be one of .*'coupled'.*, not 'l2'"):
        around("sgd", one(1.0), [one(1.0)], decay="l2")
