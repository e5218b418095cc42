"""SparseAdam beside torch.optim's, which takes no other than sparse gradients."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch
from dropin import outcome, random, same_groups, same_states, same_tensor

import steprule
from steprule.engine import eager

OPTIONS = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 0.02}
SHAPE = (6, 3)


def coalesced(seed, shape=SHAPE):
    dense = random(shape, seed)
    dense[seed % 2 :: 2] = 0
    return dense.to_sparse(1).coalesce()


def uncoalesced(seed, shape=SHAPE):
    rows = torch.tensor([[1, 3, 1, seed % 6, 3, 3]])
    return torch.sparse_coo_tensor(rows, random((6, *shape[1:]), seed), shape)


def sparse_in_all_dimensions(seed, shape=SHAPE):
    dense = random(shape, seed)
    dense[seed % 2 :: 2] = 0
    return dense.to_sparse()


def with_zeros(seed, shape=SHAPE):
    """Rows that are there, and 0: their averages decay, and they move on."""
    rows = torch.tensor([[seed % 6, 2]])
    values = torch.stack([random(shape[1:], seed), torch.zeros(shape[1:], dtype=torch.float64)])
    return torch.sparse_coo_tensor(rows, values, shape).coalesce()


def empty(seed, shape=SHAPE):
    return torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, *shape[1:]).double(), shape)


def of_everything(seed, shape=SHAPE):
    """As autograd and `to_sparse` make them for any shape; the first one without elements."""
    dense = random(shape, seed) * (seed > 0)
    return dense.to_sparse()


def of_everything_twice(seed, shape=SHAPE):
    grad = of_everything(seed, shape)
    return torch.sparse_coo_tensor(
        torch.cat([grad._indices()] * 2, 1), torch.cat([grad._values(), 2 * grad._values()]), shape
    )


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 3), (1,)], ids=str)
@pytest.mark.parametrize("make", [of_everything, of_everything_twice])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize(
    ("name", "options"), [("SparseAdam", {}), ("SGD", {}), ("SGD", {"momentum": 0.9}), ("Adagrad", {})], ids=str
)
def test_parameters_without_dimensions_or_elements(name, options, make, dtype, shape):
    if dtype.is_complex and name == "SparseAdam":
        return  # which takes none
    results = []
    for module in (steprule, torch.optim):
        param = torch.full(shape, 2.0, dtype=dtype, requires_grad=True)
        optimizer = getattr(module, name)([param], lr=0.1, **options)
        for seed in range(3):
            param.grad = make(seed, shape).to(dtype)
            optimizer.step()
        state = {key: value for key, value in optimizer.state[param].items() if key != "step"}
        results.append([param.detach(), *(x.to_dense() if x.is_sparse else x for x in state.values())])
    for ours, its in zip(*results, strict=True):
        same_tensor(ours, its, name, 1e-9, 1e-12)


KINDS = [coalesced, uncoalesced, sparse_in_all_dimensions, with_zeros, empty]


def optimizers(**options):
    """Steprule's and torch.optim's, of equal parameters."""
    return [
        cls([random(SHAPE, 0).requires_grad_(), random((4, 2), 1).requires_grad_()], **{**OPTIONS, **options})
        for cls in (steprule.SparseAdam, torch.optim.SparseAdam)
    ]


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def step(optimizer, kind, seed):
    for number, p in enumerate(params_of(optimizer)):
        p.grad = None
        grad = kind(seed + number, tuple(p.shape)) if number == 0 else coalesced(seed, tuple(p.shape))
        p.grad = grad.to(p.dtype)
    optimizer.step()


def same(mine, its):
    for number, (p, q) in enumerate(zip(params_of(mine), params_of(its), strict=True)):
        same_tensor(p.detach(), q.detach(), f"parameter {number}")
    same_states(mine, its)
    same_groups(mine, its)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_it_takes_torchs_steps(kind, maximize):
    """Keys, dtypes and layouts of states too; but its step is an int, and ours a tensor as in every other optimizer."""
    mine, its = optimizers(maximize=maximize)
    for seed in range(6):
        for optimizer in (mine, its):
            step(optimizer, kind, seed)
        same(mine, its)
    assert any(p.grad.is_sparse for p in params_of(mine))
    assert [*mine.state[params_of(mine)[0]]] == ["step", "exp_avg", "exp_avg_sq"]


def test_what_comes_in_turn():
    mine, its = optimizers()
    for seed, kind in enumerate(KINDS * 2):
        for optimizer in (mine, its):
            step(optimizer, kind, seed)
        same(mine, its)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_dtypes(dtype):
    mine, its = optimizers()
    for optimizer in (mine, its):
        for p in params_of(optimizer):
            p.grad_dtype = None
            p.data = p.data.to(dtype)
        for seed in range(3):
            step(optimizer, coalesced, seed)
    for p, q in zip(params_of(mine), params_of(its), strict=True):
        bounds = (0.02, 0.02) if dtype is torch.bfloat16 else (2e-5, 1e-6)
        same_tensor(p.detach(), q.detach(), "a parameter", *bounds)


def test_rows_without_a_gradient_rest_and_so_do_their_averages():
    optimizer = optimizers()[0]
    p = params_of(optimizer)[0]
    for seed in range(3):
        step(optimizer, random_rows, seed)
    before = [x.detach().clone() for x in (p, optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"])]
    step(optimizer, lambda seed, shape: torch.sparse_coo_tensor([[2]], torch.ones(1, *shape[1:]).double(), shape), 0)
    for old, new in zip(before, (p, optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]), strict=True):
        moved = (old != new.detach()).any(1)
        assert moved.tolist() == [False, False, True, False, False, False]


def random_rows(seed, shape=SHAPE):
    return random(shape, seed).to_sparse(1)


@pytest.mark.parametrize(
    "options",
    [
        {"states": "8bit", "weights": "24bit"},
        {"states": "bfloat16", "weights": "stochastic"},
        {"clip": 1.0, "nonfinite": "skip", "average": 0.9, "telemetry": 1},
        {"states": "8bit", "weights": "24bit", "clip": 1.0, "nonfinite": "zero", "average": 0.9},
    ],
    ids=str,
)
def test_rows_rest_in_every_format_and_with_every_service(options):
    shape = (6, 160)
    p = random(shape, 0).bfloat16().requires_grad_()
    optimizer = steprule.SparseAdam([p], **OPTIONS, **options)
    wide = random(shape, 0).bfloat16().double().requires_grad_()
    exact = steprule.SparseAdam([wide], **OPTIONS, **{k: v for k, v in options.items() if k == "clip"})
    for seed in range(5):
        p.grad, wide.grad = None, None
        grad = random_rows(seed, shape) if seed == 0 else uncoalesced(seed, shape)
        p.grad = grad.bfloat16()
        wide.grad = p.grad.double()
        optimizer.step(), exact.step()
    absent = [0, 5] if options.get("states") else [0]
    before = [optimizer.read(p, name)[absent].clone() for name in ("param", "exp_avg", "exp_avg_sq")]
    difference = (optimizer.read(p).double() - wide).norm() / (random(shape, 0).bfloat16().double() - wide).norm()
    assert float(difference) < 0.1
    p.grad = torch.sparse_coo_tensor([[1, 3]], torch.ones(2, 160).bfloat16(), shape)
    optimizer.step()
    after = [optimizer.read(p, name)[absent] for name in ("param", "exp_avg", "exp_avg_sq")]
    assert all(map(torch.equal, before, after))
    if "telemetry" in options:
        assert optimizer.telemetry.latest["total"]["update_norm"] > 0


def test_a_sparse_embedding_learns_as_with_torch():
    results = []
    for cls in (steprule.SparseAdam, torch.optim.SparseAdam):
        torch.manual_seed(0)
        model = torch.nn.Embedding(20, 4, sparse=True, dtype=torch.float64)
        optimizer = cls(model.parameters(), **OPTIONS)
        for index in ([1, 2, 2], [3], [], [1, 1, 1, 7]):
            optimizer.zero_grad()
            model(torch.tensor(index, dtype=torch.int64)).square().sum().backward()
            optimizer.step()
        results.append(model.weight.detach())
    same_tensor(*results, "embedding")


def test_checkpoints_go_both_ways():
    mine, its = optimizers()
    for seed in range(3):
        for optimizer in (mine, its):
            step(optimizer, uncoalesced, seed)
    file = io.BytesIO()
    torch.save([mine.state_dict(), its.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    mine.load_state_dict(saved[1])
    its.load_state_dict(saved[0])
    copied = copy.deepcopy(mine)
    for seed in range(3, 6):
        for optimizer in (mine, its, copied):
            step(optimizer, uncoalesced, seed)
    for p, q, r in zip(params_of(mine), params_of(its), params_of(copied), strict=True):
        assert torch.equal(p, r)
        same_tensor(
            p.detach(), q.detach(), "a parameter", 1e-6, 1e-7
        )  # torch's powers of our step, a tensor, are float32


def test_what_comes_back_dense_is_refused_in_torchs_words_and_nothing_changes():
    mine, its = optimizers()
    for optimizer in (mine, its):
        step(optimizer, coalesced, 0)
        before = [p.detach().clone() for p in params_of(optimizer)]
        params_of(optimizer)[1].grad = None
        params_of(optimizer)[1].grad = torch.ones(4, 2, dtype=torch.float64)
        with pytest.raises(
            RuntimeError, match=r"^SparseAdam does not support dense gradients, please consider Adam instead"
        ):
            optimizer.step()
        if optimizer is mine:
            assert all(map(torch.equal, before, params_of(optimizer)))
            assert all(float(optimizer.state[p]["step"]) == 1 for p in params_of(optimizer))


@pytest.mark.parametrize("kind", ["sparse", "complex"])
def test_sparse_and_complex_parameters_are_refused_in_torchs_words(kind):
    def make(cls):
        wrong = [coalesced(i) if kind == "sparse" else torch.zeros(2, dtype=torch.complex64) for i in range(2)]
        params = [torch.zeros(3), wrong[0], torch.zeros(2), wrong[1]]
        return outcome(lambda: cls(params, lr=0.1))

    assert make(steprule.SparseAdam) == make(torch.optim.SparseAdam)
    optimizer = optimizers()[0]
    with pytest.raises(ValueError, match=r"^Sparse params at indices \[\[1, 0\]\]: SparseAdam requires dense"):
        optimizer.add_param_group({"params": [coalesced(0)]})
    assert len(optimizer.param_groups) == 1
    scheduled = steprule.SparseAdam([torch.zeros(2, 3)], lr=lambda step: 1 / step)
    with pytest.raises(ValueError, match="requires dense"):
        scheduled.add_param_group({"params": [coalesced(0)]})
    scheduled.step()  # which would fail if the refused group had left a schedule behind
    assert scheduled.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr": 0.0}, {"lr": -0.1}, {"eps": 0.0}, {"eps": -1e-8}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)},
        {"lr": float("nan")}, {"eps": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_senseless_values_are_refused(arguments):
    """In torch's words where it does refuse: NaN it takes."""
    expected = outcome(lambda: torch.optim.SparseAdam([torch.zeros(1)], **arguments))
    mine = outcome(lambda: steprule.SparseAdam([torch.zeros(1)], **arguments))
    assert mine[0] == "ValueError"
    if expected[0]:
        assert mine == expected


def test_the_signature_and_the_defaults_are_torchs():
    theirs = [(p.name, p.kind, p.default) for p in inspect.signature(torch.optim.SparseAdam).parameters.values()]
    ours = [(p.name, p.kind, p.default) for p in inspect.signature(steprule.SparseAdam).parameters.values()]
    assert ours[: len(theirs)] == theirs
    mine, its = (cls([torch.zeros(1)]) for cls in (steprule.SparseAdam, torch.optim.SparseAdam))
    assert mine.defaults == its.defaults and len(mine.state) == len(its.state) == 0
    assert repr(mine) == repr(its)


def test_a_tensor_lr_may_be_filled_between_steps():
    lrs = [torch.tensor(0.05) for _ in range(2)]
    mine, its = optimizers()
    for optimizer, lr in zip((mine, its), lrs, strict=True):
        optimizer.param_groups[0]["lr"] = lr
    for value in (0.05, 0.5):
        for optimizer, lr in zip((mine, its), lrs, strict=True):
            lr.fill_(value)
            step(optimizer, coalesced, 1)
    for p, q in zip(params_of(mine), params_of(its), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)  # torch's lr is a float32 there


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdam"])
def test_rows_are_stepped_where_they_are(name, dtype, monkeypatch):
    """By a kernel, several threads and maximizing too, as by the engine that takes whole arrays."""

    def train(is_strided):
        param = random((2000, 40), 0).to(dtype)
        param = torch.stack([param, param], -1)[..., 0] if is_strided else param
        optimizer = getattr(steprule, name)([param], lr=0.1, maximize=True)
        for step in range(3):
            rows = torch.randperm(2000, generator=torch.Generator().manual_seed(step))[:1700]
            param.grad = torch.sparse_coo_tensor(rows[None], random((1700, 40), step).to(dtype), (2000, 40))
            version = param._version
            optimizer.step()
            assert param._version > version
        return [param, *optimizer.state[param].values()]

    taken = []
    row_step = eager.row_step
    monkeypatch.setattr(eager, "row_step", lambda *args: taken.append(row_step(*args)) or taken[-1])
    for x, y in zip(train(False), train(True), strict=True):
        torch.testing.assert_close(x, y, **({"rtol": 2**-7, "atol": 1e-3} if dtype is torch.bfloat16 else {}))
    assert [one is not None for one in taken] == [True] * 3 + [False] * 3


def test_rows_that_are_not_there_are_no_memory_to_write_to():
    param = torch.ones(3, 4)
    optimizer = steprule.SparseAdam([param])
    rows = torch.tensor([[3]])
    param.grad = torch.sparse_coo_tensor(rows, torch.ones(1, 4), (3, 4), check_invariants=False)._coalesced_(True)
    with pytest.raises(IndexError):
        optimizer.step()
    assert bool((param == 1).all())


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdam"])
def test_caution_looks_at_the_elements_that_are_there(name):
    """A large table does not make the steps of one row larger, and other rows rest."""
    moved = []
    for rows in (1, 1000):
        param = torch.zeros(rows, 4)
        optimizer = getattr(steprule, name)([param], lr=0.1, cautious=True)
        for place in (0, rows - 1):
            param.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1, 4), (rows, 4))
            if place:
                param.grad = torch.sparse_coo_tensor(torch.tensor([[place]]), torch.ones(1, 4), (rows, 4))
            before = param.clone()
            optimizer.step()
            assert int(((param - before) != 0).any(1).sum()) == 1
        moved.append(param[0] if rows == 1 else param[0] + param[-1])
    first, both = moved
    torch.testing.assert_close(both, first, rtol=0.6, atol=0)


def test_dense_gradients_are_refused_with_options_too():
    param = torch.zeros(3, 4)
    param.grad = torch.ones(3, 4)
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients"):
        steprule.SparseAdam([param], cautious=True).step()


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_complex_rows(name):
    runs = []
    for is_sparse in (True, False):
        param = torch.zeros(3, 2, dtype=torch.complex64)
        param.grad = torch.zeros(3, 2, dtype=torch.complex64)
        param.grad[1] = 1 + 2j
        param.grad = param.grad.to_sparse(1) if is_sparse else param.grad
        getattr(steprule, name)([param], lr=0.1).step()
        runs.append(param)
    assert torch.equal(*runs) and bool((runs[0][1] != 0).all())
