"""Parameters that are spread over processes which each step others: process_group."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from ranks import RANK, run_ranks
from torch.distributed.checkpoint.state_dict import _init_optim_state

import steprule
from steprule.tensors import across


def test_processes_that_share_out_parameters_step_them_as_one_does(tmp_path):
    run_ranks("spread.py", 2, f"file://{tmp_path}/meeting", RANK, 2)


@pytest.fixture
def group():
    """Of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def leaf():
    param = torch.nn.Parameter(torch.linspace(-1, 1, 64).reshape(8, 8))
    param.grad = torch.full_like(param, 3.0)
    return param


@pytest.mark.parametrize("name", ["AdamW", "Prodigy", "LAMB", "ScheduleFreeAdamW"])
@pytest.mark.parametrize("options", [{}, {"clip": 1.0, "nonfinite": "skip", "average": 0.9}], ids=["plain", "services"])
def test_a_group_of_one_changes_nothing(group, name, options):
    params = [leaf(), leaf()]
    alone, ours = (
        getattr(steprule, name)([param], **options, **more)
        for param, more in zip(params, ({}, {"process_group": group}), strict=True)
    )
    for _ in range(3):
        alone.step()
        ours.step()
    assert torch.equal(*params) and (alone.clipped_steps, alone.skipped_steps) == (
        ours.clipped_steps,
        ours.skipped_steps,
    )
    assert torch.equal(alone.grad_norm, ours.grad_norm) or not options


def test_a_state_dict_has_no_group(group):
    param = leaf()
    ours, other = steprule.Prodigy([param], process_group=group, clip=1.0), steprule.Prodigy([leaf()], clip=1.0)
    ours.step()
    pickle.dumps(ours.state_dict())
    other.load_state_dict(ours.state_dict())
    ours.load_state_dict(other.state_dict())
    assert other.process_group is None and ours.process_group is group


def test_a_deepcopy_has_the_group_and_a_pickled_copy_asks_for_one(group):
    ours = steprule.Prodigy([leaf()], process_group=group, clip=1.0)
    ours.step()
    copied = copy.deepcopy(ours)
    assert copied.process_group is group
    copied.param_groups[0]["params"][0].grad = torch.ones(8, 8)
    copied.step()
    again = pickle.loads(pickle.dumps(ours))
    (param,) = again.param_groups[0]["params"]
    param.grad = torch.ones(8, 8)
    before = param.detach().clone()
    with pytest.raises(RuntimeError, match=r"set optimizer.process_group"):
        again.step()
    assert again.process_group is None and torch.equal(before, param)
    again.process_group = group
    again.step()
    assert torch.equal(param, copied.param_groups[0]["params"][0])


def test_a_group_may_be_set_between_steps(group):
    param = leaf()
    ours = steprule.SGD([param], lr=0.1, clip=1.0)
    ours.step()
    ours.process_group = group
    assert "process_group: 1 processes" in repr(ours)
    ours.step()
    for wrong in ("gloo", 1, dist.GroupMember.NON_GROUP_MEMBER):
        with pytest.raises(TypeError, match=r"process_group=.* must be a process group"):
            ours.process_group = wrong
    assert ours.process_group is group
    ours.process_group = None
    ours.step()
    assert "process_group" not in repr(ours) and ours.clipped_steps == 3


@pytest.mark.parametrize("wrong", ["WORLD", 0, torch.device("cpu")], ids=str)
def test_what_is_no_group_is_refused(wrong):
    with pytest.raises(TypeError, match=r"process_group=.* must be a process group"):
        steprule.AdamW([leaf()], process_group=wrong)


def test_a_group_is_for_the_whole_optimizer(group):
    with pytest.raises(ValueError, match=r"process_group=.* in a parameter group: it is for the whole optimizer"):
        steprule.AdamW([{"params": [leaf()], "process_group": group}])


def test_gradients_are_not_released_where_processes_wait_for_each_other(group):
    model = torch.nn.Linear(2, 2)
    ours = steprule.AdamW(model.parameters(), process_group=group)
    with pytest.raises(ValueError, match=r"process_group=... does not go with release_gradients"):
        ours.release_gradients(model)
    ours.process_group = None
    ours.release_gradients(model)
    with pytest.raises(ValueError, match="process_group does not go with release_gradients"):
        ours.process_group = group


def test_formats_are_for_parameters_that_other_processes_may_have(group):
    with pytest.raises(ValueError, match="is for bfloat16"):
        steprule.AdamW([leaf()], weights="24bit")
    for params in ([leaf()], [{"params": []}]):
        steprule.AdamW(params, weights="24bit", process_group=group).step()


def test_a_list_of_groups_that_is_empty_is_refused(group):
    ours = steprule.SGD([leaf()], lr=0.1, clip=1.0, process_group=group)
    ours.param_groups.clear()
    with pytest.raises(RuntimeError, match='keep a group with "params": \\[\\]'):
        ours.step()


def test_arrays_and_names(group):
    import numpy as np

    with pytest.raises(
        TypeError, match="takes no process_group: optimizers of arrays have no formats, services and flags"
    ):
        steprule.arrays.AdamW([np.ones(3, np.float32)], process_group=group)
    model = torch.nn.Linear(2, 2)
    made = steprule.create_optimizer(model, "prodigy", clip=1.0, process_group=group)
    together = steprule.Together([made, steprule.SGD([leaf()], lr=0.1, process_group=group)])
    model(torch.ones(1, 2)).sum().backward()
    together.step()
    assert made.process_group is group and made.grad_norm > 0


@pytest.mark.parametrize("count", [0, 1])
def test_distributed_checkpoints_ask_for_states(group, count, monkeypatch):
    """A process without parameters takes no step either, which others would not: their states are there, and they are not asked."""
    ours = steprule.Prodigy([{"params": [leaf()][:count]}], clip=1.0, process_group=group)
    ours.zero_grad()
    monkeypatch.setattr(across.Across, "_gather", lambda self, numbers: pytest.fail("others are waited for"))
    _init_optim_state(ours)
    assert len(ours.state) == count
