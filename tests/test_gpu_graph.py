"""Steps that are replayed as CUDA graphs are the steps that they would have been; without a GPU, as graphs that are pretended."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from engines import GPU_DEVICE
from pretended_graph import pretend
from test_gpu_engine import OWN, SETTINGS, assert_same, make_params, momentum, set_grads
from test_gpu_matrices import CASES, SHAPES

import steprule
from steprule.engine import gpu, gpu_graph, squares
from steprule.pieces import ema, gram, inverse_root, matmul
from steprule.rule import Rule
from steprule.state import State

pytest.importorskip("triton")
needs_gpu = pytest.mark.gpu
STEPS = 9


@pytest.fixture
def replays(monkeypatch):
    """A list that grows with each replay."""
    if GPU_DEVICE.type == "cpu":
        pretend(monkeypatch)
        monkeypatch.setattr(gpu, "DEVICES", {"cpu"})
    calls: list[int] = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: calls.append(1) or replay(self))
    return calls


def run(make, in_graph, dtype=torch.float32, shapes=None, meanwhile=(), steps=STEPS, **settings):
    """Steps with other gradients, in other memory, and another lr in each; one of them not finite where that is looked for.

    Args:
        meanwhile: by the number of a step what is called before it, with the optimizer and the parameters.
    """
    params = make_params(GPU_DEVICE, dtype, **({"shapes": shapes} if shapes else {}))
    optimizer = make([{"params": params[:2]}, {"params": params[2:], "lr": 0.02}], **copy.deepcopy(settings))
    optimizer.cuda_graph = in_graph
    kept = []
    for step in range(steps):
        set_grads(params, step, bad=(6, 1) if "nonfinite" in settings else None)
        kept.append([param.grad for param in params])  # so that the next ones lie elsewhere
        optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
        if step in meanwhile:
            meanwhile[step](optimizer, params)
        optimizer.step()
    return params, optimizer


def setting(**values):
    """Sets something in the last group."""
    return lambda optimizer, params: optimizer.param_groups[1].update(copy.deepcopy(values))


def load(optimizer, params):
    """Loads a copy of its state."""
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


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


@pytest.mark.parametrize(
    ("make", "settings"),
    [(steprule.AdamW, SETTINGS[-1]), (steprule.Prodigy, {}), (steprule.Muon, {"clip": 1.0})],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_some_here(replays, make, settings):
    settings = {**settings, "telemetry": 3} if "telemetry" in settings else settings
    check(make, replays, 2, shapes=[(8, 4), (6, 5), (8, 4)], steps=6, **settings)


class HalfShampoo(Rule):
    """A rule with a square whose steps nobody keeps."""

    decay = "decoupled"
    keeps_step = False
    matrices_only = True
    left = State("left")

    @staticmethod
    def update(param, grad, left, *, lr=1e-2, beta=0.9):
        left = ema(left, gram(grad), beta)
        return param - lr * matmul(inverse_root(left, 2), grad), left


def test_steps_that_are_kept_in_the_plan(replays):
    check(steprule.Optimizer.of(HalfShampoo), replays, 4, shapes=[(4, 3), (4, 3), (5, 2)], steps=4)


SQUARED = [
    (steprule.SOAP, {"clip": 1.0, "states": "8bit"}), (steprule.Shampoo, {"average": 0.9}), (steprule.PSGDKron, {"max_precond_dim": 7}),
    *(pytest.param(make, {}, marks=pytest.mark.long) for make in (steprule.SOAP, steprule.ASGO, steprule.SPlus)),
]  # fmt: skip


@pytest.mark.parametrize(("make", "settings"), SQUARED, ids=lambda x: getattr(x, "__name__", str(x)))
def test_what_is_computed_in_some_steps_only(replays, make, settings):
    """Bases and roots are computed between graphs, of each tensor in its own steps; a number that changes is no constant of a graph."""
    check(make, replays, 5, shapes=[(8, 4), (6, 5), (8, 4)], steps=11, precondition_frequency=3, **settings)


def test_squares_that_change_meanwhile(replays):
    """Another frequency, a loaded state, a step that somebody sets."""
    meanwhile = {
        6: setting(precondition_frequency=3), 8: load, 9: lambda optimizer, params: optimizer.state[params[0]]["step"].fill_(1.0),
    }  # fmt: skip
    settings = {"precondition_frequency": 2, "shapes": [(8, 4), (8, 4), (6, 5)], "steps": 11}
    check(steprule.SOAP, replays, 2, meanwhile=meanwhile, **settings)


def test_settings_on_the_gpu_are_read_where_they_are_now(replays):
    """A tensor that is filled, another one in its place, a number in its place."""
    one, other = (setting(lr=torch.tensor(lr, device=GPU_DEVICE)) for lr in (0.1, 0.02))
    halve = lambda optimizer, params: optimizer.param_groups[1]["lr"].mul_(0.5)  # noqa: E731
    meanwhile = {0: one, 3: halve, 4: other, 7: halve, 8: setting(lr=0.3)}
    check(steprule.AdamW, replays, 3, shapes=[(4, 3), (5,), (6,)], meanwhile=meanwhile, steps=12)


def test_a_step_without_a_graph_drops_those_of_other_settings(replays):
    """They may read what was computed for these, which is freed."""
    meanwhile = {4: setting(ns_steps=3), 5: setting(ns_steps=5)}  # of the fifth step, which telemetry looks at
    check(steprule.Muon, replays, 2, shapes=[(8, 4), (6, 5), (8, 4)], meanwhile=meanwhile, telemetry=5, steps=8)
    assert (
        len(replays) == 4
    )  # two steps before the fifth, and two of the three after it: the first of each two is recorded


@pytest.mark.parametrize("nonfinite", ["skip", "zero"])
def test_whether_a_replayed_step_was_refused_is_known(replays, nonfinite):
    """`QKClip` asks. The step before it is not replayed."""

    def found(in_graph):
        every = []
        note = lambda optimizer, params: every.append(bool(optimizer._core.services.found))  # noqa: E731
        settings = {"shapes": [(4, 3), (5,), (6,)], "nonfinite": nonfinite, "telemetry": 6}
        run(steprule.AdamW, in_graph, steps=8, meanwhile=dict.fromkeys(range(8), note), **settings)
        return every

    assert found(True) == found(False) == [False] * 7 + [True]
    assert replays


def move(optimizer, params):
    params[0].data = params[0].data.clone()
    optimizer.step()


def add(optimizer, params):
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3, 2, device=GPU_DEVICE))]})
    optimizer.step()


CHANGES = {
    "off": lambda optimizer, params: setattr(optimizer, "cuda_graph", False), "load": load, "move": move, "add": add,
    "clip": lambda optimizer, params: setattr(optimizer, "clip", 2.0), "gone": lambda optimizer, params: optimizer.__dict__.clear(),
}  # fmt: skip


@pytest.mark.parametrize(("make", "settings"), [(steprule.AdamW, {}), (steprule.SOAP, {"precondition_frequency": 1})])
def test_memory_of_recordings_is_given_back_at_once(replays, monkeypatch, make, settings):
    """Without the garbage collector's help, which may not come for long."""
    every: list[weakref.ref] = []

    class Recording(gpu_graph.Recording):
        def __init__(self, *args):
            every.append(weakref.ref(self))
            super().__init__(*args)

    monkeypatch.setattr(gpu_graph, "Recording", Recording)
    params, optimizer = run(make, True, shapes=[(8, 4), (6, 5), (8, 4)], steps=1, clip=1.0, **settings)
    gc.disable()
    try:
        for name, change in CHANGES.items():
            optimizer.cuda_graph = True
            for step in range(3):
                set_grads(params, step)
                optimizer.step()
            gc.collect()  # frames in which something was imported for the first time
            kept = [one for one in every if one() is not None]
            assert kept, name
            change(optimizer, params)
            assert not any(one() for one in kept), name
    finally:
        gc.enable()


def test_no_more_graphs_are_kept_than_there_is_room_for(replays, monkeypatch):
    monkeypatch.setattr(gpu_graph, "MOST_RECORDED", 2)
    check(steprule.PSGDKron, replays, 2, shapes=[(4, 3), (4, 3), (4, 3)], steps=9, precondition_frequency=3)


def test_steps_that_the_host_counts_are_skipped_without_a_graph_only(replays):
    params = make_params(GPU_DEVICE, shapes=[(4, 3), (4, 3)])
    set_grads(params, 0)
    optimizer = steprule.SOAP(params, nonfinite="skip")
    optimizer.cuda_graph = True
    with pytest.raises(RuntimeError, match="the host counts the steps of this rule"):
        optimizer.step()
    assert not optimizer.state


def test_a_graph_of_the_users_does_not_record_them(replays, monkeypatch):
    params = make_params(GPU_DEVICE, shapes=[(4, 3), (4, 3)])
    set_grads(params, 0)
    optimizer = steprule.SOAP(params)
    for _ in range(3):
        optimizer.step()
    before, step = params[0].detach().clone(), optimizer.state[params[0]]["step"].clone()
    monkeypatch.setattr(gpu, "is_recording", lambda device: True)
    with pytest.raises(RuntimeError, match="which records all but these"):
        optimizer.step()
    monkeypatch.undo()
    assert torch.equal(before, params[0]) and optimizer.state[params[0]]["step"] == step


@needs_gpu
def test_what_changes_meanwhile(replays):
    """Another number of Newton-Schulz steps, a loaded state, a parameter without a gradient, a group more, clipping by another norm."""
    meanwhile = {
        3: setting(ns_steps=3), 5: load, 7: lambda optimizer, params: setattr(params[0], "grad", None),
        8: lambda optimizer, params: setattr(optimizer, "clip", 0.1),
    }  # fmt: skip
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


class _Streams:
    """Streams that say who has waited."""

    waited: list[str] = []

    def __init__(self, device: object = None) -> None:
        self.name = "current" if device is None else "own"

    def wait_stream(self, other: _Streams) -> None:
        self.waited.append(self.name)


@pytest.mark.skipif(GPU_DEVICE.type != "cpu", reason="its streams are pretended")
@pytest.mark.parametrize("failing", range(3), ids=["first step", "recording", "replay"])
def test_what_fails_between_graphs_leaves_the_host_with_the_devices_count(replays, monkeypatch, failing):
    """An eigensolver may find no end; of a step that is half taken the device has counted a part already."""
    monkeypatch.setattr(torch.cuda, "Stream", _Streams)
    monkeypatch.setattr(torch.cuda, "current_stream", _Streams)
    params = make_params(GPU_DEVICE, shapes=[(4, 3), (4, 3)])
    optimizer = steprule.SOAP(params, precondition_frequency=1)
    optimizer.cuda_graph = True
    is_broken = False

    def solve(*args):
        if is_broken:
            raise torch.linalg.LinAlgError("no end")
        return eigenbasis(*args)

    eigenbasis = squares._DECOMPOSED["eigenbasis"]
    monkeypatch.setattr(squares, "_DECOMPOSED", {**squares._DECOMPOSED, "eigenbasis": solve})
    for step in range(5):
        set_grads(params, step)
        is_broken = step == failing + 1  # the first makes the plan
        if not is_broken:
            optimizer.step()
            assert (
                not replays or failing or step > 2
            )  # the first may have failed before there was all that recordings need
            continue
        _Streams.waited = waited = []
        with pytest.raises(RuntimeError, match="^no end.*half taken" if failing == 2 else "^no end$"):
            optimizer.step()
        assert waited == ([] if failing == 2 else ["own", "current"])
    steps = [int(optimizer.state[param]["step"]) for param in params]
    work = optimizer._core.plans.current._works[0]
    assert work.numbers._steps_here.next().tolist() == [one + 1 for one in steps]
