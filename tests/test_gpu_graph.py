"""Steps that are replayed as a CUDA graph are the steps that they would have been."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from test_gpu_engine import OWN, SETTINGS, assert_same, make_params, momentum, set_grads
from test_gpu_matrices import CASES, SHAPES

import steprule

needs_gpu = pytest.mark.gpu
STEPS = 9


@pytest.fixture
def replays(monkeypatch):
    """A list that grows with each replay."""
    calls: list[int] = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: calls.append(1) or replay(self))
    return calls


def run(make, in_graph, dtype=torch.float32, shapes=None, meanwhile=None, **settings):
    """Steps with other gradients, in other memory, and another lr in each; one of them not finite where that is looked for."""
    params = make_params("cuda", dtype, **({"shapes": shapes} if shapes else {}))
    optimizer = make([{"params": params[:2]}, {"params": params[2:], "lr": 0.02}], **copy.deepcopy(settings))
    optimizer.cuda_graph = in_graph
    kept = []
    for step in range(STEPS):
        set_grads(params, step, bad=(6, 1) if "nonfinite" in settings else None)
        kept.append([param.grad for param in params])  # so that the next ones lie elsewhere
        optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
        if meanwhile is not None:
            meanwhile(step, optimizer, params)
        optimizer.step()
    return params, optimizer


def check(make, replays, least, **settings):
    ours, theirs = run(make, True, **settings), run(make, False, **settings)
    assert len(replays) >= least
    assert_same(ours, theirs)
    for name in ("skipped_steps", "clipped_steps", "zeroed_elements"):
        assert getattr(ours[1], name) == getattr(theirs[1], name)
    torch.testing.assert_close(ours[1].grad_norm, theirs[1].grad_norm, rtol=0, atol=0, equal_nan=True)
    notes = [one.state_dict()["param_groups"][0].get("services") for one in (ours[1], theirs[1])]
    assert repr(notes[0]) == repr(notes[1])  # where NaN is NaN
    if ours[1].telemetry is not None:
        assert repr(ours[1].telemetry.records) == repr(theirs[1].telemetry.records)


@needs_gpu
@pytest.mark.parametrize(
    ("make", "settings"),
    [(steprule.AdamW, settings) for settings in SETTINGS] + [(momentum, SETTINGS[2]), *OWN],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_elementwise(replays, make, settings):
    if settings.get("telemetry") == 1:
        check(make, replays, 0, **settings)
        assert not replays
        settings = {**settings, "telemetry": 3}
    check(make, replays, 3 if "telemetry" in settings else STEPS - 2, **settings)


@needs_gpu
@pytest.mark.parametrize("case", CASES)
def test_matrices(replays, case):
    dtype, settings = CASES[case]
    settings = {**settings, "telemetry": 4} if "telemetry" in settings else settings
    shapes = [shape for shape in SHAPES if len(shape) == 2]
    check(steprule.Muon, replays, 4, dtype=dtype, shapes=shapes, **settings)


@needs_gpu
def test_what_changes_meanwhile(replays):
    """Another number of Newton-Schulz steps, a loaded state, a parameter without a gradient, a group more, clipping by another norm."""

    def meanwhile(step, optimizer, params):
        if step == 3:
            optimizer.param_groups[0]["ns_steps"] = 3
        if step == 5:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        if step == 7:
            params[0].grad = None
        if step == 8:
            optimizer.clip = 0.1

    shapes = [(8, 4), (8, 4), (6, 140)]
    check(steprule.Muon, replays, 1, shapes=shapes, meanwhile=meanwhile, clip=1.0)


@needs_gpu
def test_a_scaler_between(replays):
    def make(in_graph):
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 4, device="cuda")
        optimizer = steprule.AdamW(model.parameters(), clip=1.0)
        optimizer.cuda_graph = in_graph
        scaler = torch.amp.GradScaler("cuda", init_scale=16.0)
        for step in range(8):
            optimizer.zero_grad()
            loss = model(torch.full((2, 8), 0.1 * (step + 1), device="cuda")).square().sum()
            if step % 3 == 0:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()
        return [param.detach() for param in model.parameters()]

    for one, other in zip(make(True), make(False), strict=True):
        assert torch.equal(one, other)


@needs_gpu
def test_copies_begin_without_a_graph_and_false_ends_it(replays):
    optimizer = run(steprule.AdamW, True)[1]
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert not other.cuda_graph
    count = len(replays)
    optimizer.cuda_graph = False
    optimizer.step()
    assert count == len(replays)


@needs_gpu
def test_a_setting_of_products_on_the_gpu_is_refused_and_a_graph_of_the_users_is_left_alone(replays):
    params = make_params("cuda", shapes=[(8, 4), (6, 5)])
    optimizer = steprule.Muon(params, eps=torch.tensor(1e-7, device="cuda"))
    optimizer.cuda_graph = True
    set_grads(params, 0)
    optimizer.step()
    optimizer.step()
    with pytest.raises(RuntimeError, match="cuda_graph=True cannot record this step"):
        optimizer.step()
    optimizer = steprule.AdamW(params, clip=1.0)
    optimizer.cuda_graph = True
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    assert not replays
    graph.replay()


def test_what_cannot_be_a_graph_is_refused():
    model = torch.nn.Linear(2, 1)
    optimizer = steprule.AdamW(model.parameters())
    with pytest.raises(TypeError, match="cuda_graph must be True or False, not 1"):
        optimizer.cuda_graph = 1
    with pytest.raises(
        ValueError, match="cuda_graph=True: parameters are on cpu, and not all on one GPU; move the model"
    ):
        optimizer.cuda_graph = True
    optimizer.cuda_graph = False
    assert not optimizer.cuda_graph
    optimizer.release_gradients(model)
    with pytest.raises(ValueError, match="cuda_graph=True does not go with release_gradients"):
        optimizer.cuda_graph = True
    other = steprule.AdamW([torch.ones(3, device="meta", requires_grad=True), torch.ones(3, requires_grad=True)])
    with pytest.raises(ValueError, match="cuda_graph=True: parameters are on cpu and meta, and not all"):
        other.cuda_graph = True


@needs_gpu
def test_parameters_that_have_left_the_gpu_are_refused_by_the_step_and_release_beside_a_graph():
    model = torch.nn.Linear(2, 1, device="cuda")
    optimizer = steprule.AdamW(model.parameters())
    optimizer.cuda_graph = True
    with pytest.raises(ValueError, match=r"release_gradients.. does not go with cuda_graph=True"):
        optimizer.release_gradients(model)
    model.cpu()
    set_grads([*model.parameters()], 0)
    before = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"parameters are on cpu, and not all on one GPU.*cuda_graph = False"):
        optimizer.step()
    assert not optimizer.state and torch.equal(model.weight, before)
    optimizer.cuda_graph = False
    optimizer.step()
    assert (model.weight != before).all()


@needs_gpu
def test_what_the_host_has_a_part_in_is_refused():
    params = make_params("cuda")
    set_grads(params, 0)
    optimizer = steprule.AdamW(params, nonfinite="raise")
    optimizer.cuda_graph = True
    with pytest.raises(RuntimeError, match='nonfinite="raise" has the host wait'):
        optimizer.step()
    assert not optimizer.state
