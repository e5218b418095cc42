"""Parameters that are parts of larger tensors: what needs whole ones is refused, and the rest goes as ever."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from dropin import since
from ranks import RANK, run_ranks

import steprule
from steprule.optimizer import parts
from steprule.services import ClipNorm, ClipValue
from steprule.tensors import replaced
from steprule.tensors.living import living


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.long)])
def test_parts_of_tensors_are_stepped_as_the_wholes(world, tmp_path):
    run_ranks("sharded.py", world, f"file://{tmp_path}/meeting", RANK, world)


def leaf(*shape, marked=False):
    param = torch.nn.Parameter(torch.linspace(-1, 1, 256).reshape(shape or 256))
    param.grad = torch.ones_like(param)
    if marked:
        param._fsdp_flattened = True
    return param


TENSORS = {
    "LAMB": lambda params: steprule.LAMB(params),
    "cautious": lambda params: steprule.AdamW(params, cautious=True),
    "8bit": lambda params: steprule.AdamW(params, states="8bit"),
    "by parameter": lambda params: steprule.AdamW(params, clip=ClipNorm(1.0, per_parameter=True)),
    "by number": lambda params: steprule.AdamW(params, clip=ClipNorm(1.0, norm_type=0)),
    "by the smallest": lambda params: steprule.AdamW(params, clip=ClipNorm(1.0, norm_type=-float("inf"))),
}
ALL = {
    "Prodigy": lambda params: steprule.Prodigy(params),
    "clip": lambda params: steprule.AdamW(params, clip=1.0),
    "nonfinite": lambda params: steprule.AdamW(params, nonfinite="skip"),
    "telemetry": lambda params: steprule.AdamW(params, telemetry=1),
}
WHOLE = {**TENSORS, **ALL}
ONLY_FLAT = {
    "average": lambda params: steprule.AdamW(params, average=0.9),
    "eval()": lambda params: steprule.ScheduleFreeAdamW(params),
}
FINE = {
    "plain": lambda params: steprule.AdamW(params),
    "by value": lambda params: steprule.AdamW(params, clip=ClipValue(1.0), nonfinite="zero"),
    "left out of clip": lambda params: steprule.AdamW([{"params": params, "clip": False}], clip=1e-3),
    "rows": lambda params: steprule.SGD(params, lr=0.1, momentum=0.9, states="bfloat16"),
}


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(parts, "processes", lambda: 2)


@pytest.mark.parametrize("what", WHOLE)
def test_what_needs_whole_tensors_refuses_fsdps_pieces(what, two_processes):
    with pytest.raises(ValueError, match="parameter 0 of group 0 belongs to FSDP"):
        WHOLE[what]([leaf(marked=True)])


INSTEAD = {
    "LAMB": "Rules that look",
    "cautious": "Leave it out",
    "8bit": "bfloat16",
    "by parameter": "clip=1.0",
    "by number": "clip=1.0",
}


@pytest.mark.parametrize("what, words", [*INSTEAD.items()])
def test_a_refusal_says_what_to_do_about_what_it_refuses(what, words, two_processes):
    with pytest.raises(ValueError) as error:
        TENSORS[what]([leaf(marked=True)])
    assert words in str(error.value) and ("Rules that look" in str(error.value)) is (what == "LAMB")


@pytest.mark.parametrize("what", ALL)
def test_one_process_has_all_flat_pieces(what):
    optimizer, alike = ALL[what]([leaf(16, 16)]), ALL[what]([leaf()])
    optimizer.param_groups[0]["params"] = [leaf()]
    optimizer.step()
    alike.step()
    assert torch.equal(optimizer.param_groups[0]["params"][0], alike.param_groups[0]["params"][0])


@pytest.mark.parametrize("count, what", [*product([1], {**TENSORS, **ONLY_FLAT}), *product([2], ALL)])
def test_what_needs_whole_tensors_refuses_flat_pieces_that_took_their_place(count, what, monkeypatch):
    monkeypatch.setattr(parts, "processes", lambda: count)
    optimizer, piece = {**WHOLE, **ONLY_FLAT}[what]([leaf(16, 16)]), leaf()
    optimizer.param_groups[0]["params"] = [piece]
    before = piece.detach().clone()
    with pytest.raises(ValueError, match="parameter 0 of group 0 has been put in the place"):
        optimizer.step()
    assert torch.equal(before, piece)


@pytest.mark.parametrize("what", FINE)
def test_what_looks_at_elements_takes_pieces(what):
    make = FINE[what]
    whole, marked, flat = leaf(16, 16), leaf(marked=True), leaf()
    late = make([leaf(16, 16)])
    late.param_groups[0]["params"] = [flat]
    for optimizer in (make([whole]), make([marked]), late):
        optimizer.step()
    assert torch.equal(whole.flatten(), marked) and torch.equal(marked, flat)


def test_vectors_beside_matrices_or_in_the_place_of_vectors_are_no_pieces():
    for params in ([leaf(16, 16), leaf()], [leaf()]):
        optimizer = steprule.LAMB(params)
        optimizer.param_groups[0]["params"][-1] = leaf()
        optimizer.step()


@pytest.mark.parametrize("what", WHOLE)
def test_one_process_has_whole_tensors(what):
    WHOLE[what]([leaf(marked=True)]).step()


@pytest.mark.parametrize("how", ["copied", "added later", "freed"])
def test_flat_pieces_are_known_however_the_optimizer_came_to_its_parameters(how):
    params = [leaf() if how == "added later" else leaf(16, 16)]
    optimizer = steprule.LAMB(params)
    if how == "added later":
        optimizer.add_param_group({"params": [leaf(16, 16)]})
    if how == "copied":
        optimizer = copy.deepcopy(optimizer)
    del params
    for group in optimizer.param_groups:
        group["params"] = [leaf()]
    with pytest.raises(ValueError, match="has been put in the place"):
        optimizer.step()


def test_a_vector_that_was_given_is_no_piece():
    vector = leaf()
    optimizer = steprule.LAMB([leaf(16, 16), vector])
    optimizer.param_groups[0]["params"] = [vector]
    optimizer.step()


def trained(module):
    module(torch.ones(1, 4)).sum().backward()
    return module


@pytest.mark.parametrize("steps", [0, 2])
def test_an_optimizer_whose_parameters_are_no_modules_by_now_says_so(steps):
    model = torch.nn.Linear(4, 4)
    optimizer = steprule.AdamW(model.parameters())
    for _ in range(steps):
        trained(model)
        optimizer.step()
        optimizer.zero_grad()
    model.load_state_dict({name: x.clone() for name, x in model.state_dict().items()}, assign=True)
    trained(model)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"load_state_dict\(assign=True\) put such ones in the place"):
            optimizer.step()
    again = steprule.AdamW(model.parameters())
    again.load_state_dict(optimizer.state_dict())
    again.step()
    assert [float(again.state[param]["step"]) for param in model.parameters()] == [steps + 1] * 2
    optimizer.step()


def test_other_models_have_not_taken_the_place_of_parameters():
    def idle(*params):
        steprule.AdamW(params or [torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4))]).step()

    other = trained(torch.nn.Linear(4, 4))
    used = torch.nn.Linear(4, 4)
    idle(*used.parameters())
    kept = torch.optim.SGD(other.parameters(), lr=0.1)
    idle()  # the other model has an optimizer
    circle = [other]
    circle.append(circle)
    del kept, other, circle
    idle()  # nobody can reach the other model


def test_a_model_is_looked_for_once_and_not_whenever_it_rests(monkeypatch):
    model = torch.nn.Linear(4, 4)
    optimizer = steprule.AdamW(model.parameters())
    looks = []
    monkeypatch.setattr(replaced, "living", lambda *kinds: looks.append(kinds) or living(*kinds))
    for _ in range(3):
        optimizer.step()
        trained(model)
        optimizer.step()
        optimizer.zero_grad()
    assert len(looks) == 1
    model.weight = torch.nn.Parameter(torch.ones(4, 4))
    model.bias = torch.nn.Parameter(torch.ones(4))
    trained(model)
    with pytest.raises(RuntimeError, match="put such ones in the place"):
        optimizer.step()


DYING = """
import os, runpy, signal, sys
from torch.distributed.checkpoint import FileSystemWriter

write, calls = FileSystemWriter.write_data, []

def write_or_die(*args):
    calls.append(1)
    if len(calls) == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*args)

FileSystemWriter.write_data = write_or_die
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_the_example_goes_on_from_the_last_whole_checkpoint_with_another_number_of_processes(tmp_path):
    """Two processes save after 5 steps, and one of them is killed while they save again. One process goes on from there, and
    comes to what twenty steps of one process do."""
    pytest.importorskip("sklearn")
    since("2.7", "fully_shard takes no model on the CPU")
    example, dying = Path(__file__).parents[1] / "examples" / "fsdp.py", tmp_path / "dying.py"
    dying.write_text(DYING)

    def run(processes, steps, folder, *program):
        environment = {**os.environ, "PYTHONPATH": str(Path(steprule.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        arguments = ["--steps", str(steps), "--every", "5", "--folder", str(tmp_path / folder)]
        return subprocess.run(
            [*command, *map(str, program), str(example), *arguments],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    assert run(2, 10, "moved", dying).returncode != 0
    folder = tmp_path / "moved"
    assert (folder / "last").read_text() == "step-5"
    assert list((folder / "step-10").iterdir()) and not (folder / "step-10" / ".metadata").exists()
    with pytest.raises(dcp.CheckpointException, match="metadata"):
        dcp.load({"step": 0}, checkpoint_id=folder / "step-10")
    saved = {"step": 0}
    dcp.load(saved, checkpoint_id=folder / "step-5")
    assert saved["step"] == 5

    went_on, stayed = run(1, 20, "moved"), run(1, 20, "stayed")
    assert went_on.returncode == stayed.returncode == 0, went_on.stderr[-3000:] + stayed.stderr[-3000:]
    assert f"step 5: going on from {folder}" in went_on.stdout and "step 0: no checkpoint yet" in stayed.stdout
    last = went_on.stdout.splitlines()[-1]
    assert last == stayed.stdout.splitlines()[-1]
    assert last.startswith("step 20: validation loss ")
    assert sorted(path.name for path in folder.iterdir()) == ["last", "step-10", "step-15", "step-20", "step-5"]
