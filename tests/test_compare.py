import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from typer.testing import CliRunner

import steprule
from steprule.cli import app
from steprule.compare import Task, results, spec, tasks
from steprule.compare import run as run_module
from steprule.compare.errors import UsageError, place_of
from steprule.compare.run import Budget, Run, train
from steprule.compare.summary import at_the_edge, columns, curve, rank, rows, sentence

SINE = """
import itertools
import time
from dataclasses import replace
from pathlib import Path

import torch
from steprule.compare import Task

x = torch.linspace(-1, 1, 64)[:, None]
y = torch.sin(3 * x)


def make_model(seed):
    return torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def error(model):
    return (model(x) - y).square().mean()


def task(name="sine", batches=lambda seed: itertools.repeat(None)):
    return Task(
        name, make_model, batches, lambda model, batch: error(model),
        lambda model: {"loss": error(model).item()}, target=0.02, steps=60, eval_every=5,
    )


def blocking():
    def batches(seed):
        if seed == 1:
            Path("blocked").touch()
            time.sleep(600)
        return itertools.repeat(None)

    return task("blocking", batches)


def ending():
    return task("ending", lambda seed: iter([None] * 7))


def exhausted():
    return replace(task("exhausted"), loss=lambda model, batch: next(iter([])))


def not_a_task():
    return 3


def raising():
    raise RuntimeError("no data\\n here")


def endless():
    return replace(task(), steps=-5)


def no_model():
    return replace(task(), make_model=lambda seed: None)


def bad_batches():
    return replace(task(), batches=lambda seed: None)


def bad_model():
    return replace(task(), make_model=lambda seed: 1 / 0)


def bad_evaluate():
    def evaluate(model):
        return {"loss": float("x")}

    return replace(task(), evaluate=evaluate)


def odd_evaluate():
    return replace(task(), evaluate=lambda model: 0.5)


def odd_loss():
    return replace(task(), loss=lambda model, batch: 0.5)


class Breaks(torch.optim.SGD):
    steps = 0

    def step(self):
        self.steps += 1
        if self.steps > 5:
            raise ValueError("five is <b>enough</b>")
        super().step()


class WithOwnInit(torch.optim.Adam):
    def __init__(self, params, lr=0.1, scale=1.0):
        super().__init__(params, lr=lr * scale)


class OverSteprule(__import__("steprule").AdamW):
    def __init__(self, params, lr=0.1, scale=1.0):
        super().__init__(params, lr=lr * scale)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with the module sinetask, as the current directory; what the command changes is put back."""
    (tmp_path / "sinetask.py").write_text(SINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "sinetask", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)
    sys.modules.pop("sinetask", None)


def command(*args):
    result = CliRunner().invoke(app, ["compare", *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def written(folder, name=None):
    """The folder of that name; without one, the newest in steprule-report."""
    return folder / name if name else max((folder / "steprule-report").iterdir())


def saved(folder, name=None):
    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    return json.loads((written(folder, name) / "results.json").read_text(), parse_constant=refuse)


def toy(losses, **changes):
    """A task of one weight, whose evaluations give these losses."""
    given = iter(losses)
    settings = {
        "name": "toy",
        "make_model": lambda seed: nn.Linear(1, 1, bias=False),
        "batches": lambda seed: itertools.repeat(torch.ones(1, 1)),
        "loss": lambda model, batch: model(batch).square().mean(),
        "evaluate": lambda model: {"loss": next(given)},
        "target": 1.0,
        "steps": 4,
        "eval_every": 1,
    }
    return Task(**{**settings, **changes})


def no_progress(share):
    assert 0 < share <= 1


def train_toy(task, optimizer="sgd:lr=0.1", seed=0, **budget):
    return train(task, spec.parse(optimizer), seed, Budget(**(budget or {"steps": task.steps})), 1.0, no_progress)


class Ticks:
    """A clock that goes on by one second each time someone looks."""

    now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


# Specifications


def test_a_specification_becomes_class_and_settings():
    parsed = spec.parse("adamw:lr=3e-3,betas=(0.9,0.95),amsgrad=True")
    assert parsed.optimizer is steprule.AdamW
    assert dict(parsed.settings) == {"lr": 3e-3, "betas": (0.9, 0.95), "amsgrad": True}
    assert str(parsed) == "adamw:lr=0.003,betas=(0.9,0.95),amsgrad=True"
    assert parsed.label == "adamw betas=(0.9,0.95) amsgrad=True"
    assert spec.parse(str(parsed)) == parsed
    group = parsed.build(nn.Linear(2, 2)).param_groups[0]
    assert (group["lr"], group["betas"], group["amsgrad"]) == (3e-3, (0.9, 0.95), True)


@pytest.mark.parametrize(
    ("text", "optimizer"),
    [
        *((name, getattr(steprule, rule.__name__)) for name, rule in steprule.rules.OWN.items()),
        ("torch.AdamW", torch.optim.AdamW),
        ("torch.optim.AdamW", torch.optim.AdamW),
        ("torch.adamw", torch.optim.AdamW),
        ("torch.optim.ADAMW", torch.optim.AdamW),
        ("AdamW", steprule.AdamW),
        ("Schedule-Free_AdamW", steprule.ScheduleFreeAdamW),
        ("steprule.AdamW", steprule.AdamW),
    ],
)
def test_names_of_optimizers(text, optimizer):
    assert spec.parse(text).optimizer is optimizer


def test_a_name_is_written_in_one_way():
    names = ("Adam", "adam", "torch.adam", "torch.optim.Adam", "Schedule-Free_AdamW:lr=1")
    assert [str(spec.parse(name)) for name in names] == [
        "adam", "adam", "torch.Adam", "torch.Adam", "schedulefreeadamw:lr=1",
    ]  # fmt: skip


def test_a_rule_is_compared_as_its_optimizer(monkeypatch):
    rule = type("Mine", (steprule.Rule,), {"update": staticmethod(lambda param, grad, *, lr=0.5: param - lr * grad)})
    monkeypatch.setattr(tasks, "Mine", rule, raising=False)
    made = spec.check(spec.parse("steprule.compare.tasks.Mine"), nn.Linear(2, 2))
    assert made.rule is rule and made.param_groups[0]["lr"] == 0.5


def test_a_rule_of_matrices_has_adamw_beside_it(folder):
    text = "muon:lr=0.02,adamw_lr=0.01,weight_decay=0.1"
    parsed = spec.parse(text, divide=True)
    assert str(parsed) == text and parsed.with_lr(0.5).divides
    task = tasks.digits()
    built = parsed.build(task.make_model(0), lambda model: task.loss(model, next(iter(task.batches(0)))))
    groups = [(group["rule"], group["lr"], [p.shape[0] for p in group["params"]]) for group in built.param_groups]
    assert groups == [
        ("muon", 0.02, [32]),
        ("muon", 0.02, [64]),
        ("adamw", 0.01, [16, 10]),
        ("adamw", 0.01, [16, 32, 64, 10]),
    ]
    alone = spec.parse("scion:norm='sign'", divide=True).build(task.make_model(0))  # which takes vectors too
    assert len(alone.param_groups) == 1 and len(alone.param_groups[0]["params"]) == 8
    with pytest.raises(UsageError, match="muon takes no 'adamw_lr'"):
        spec.parse(text)
    assert command("-t", "digits", text, "adamw:lr=0.01", "--steps", "3", "--seeds", "1").exit_code == 0
    run = saved(folder)["tasks"][0]["runs"][0]
    assert (run["status"], run["lr"]) == ("finished", 0.02) and run["loss"][-1] < run["loss"][0]


@pytest.mark.parametrize("name", ["WithOwnInit", "OverSteprule"])
def test_a_class_of_the_users_is_found_in_the_current_directory(folder, name):
    assert command("-t", "sinetask:task", f"sinetask.{name}:scale=0.5", "--steps", "1", "--seeds", "1").exit_code == 0
    assert saved(folder)["tasks"][0]["runs"][0]["lr"] == 0.05
    with pytest.raises(UsageError, match="takes no 'scalee'; did you mean 'scale'"):
        spec.parse(f"sinetask.{name}:scalee=0.5")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["adamm"], "unknown optimizer 'adamm'; did you mean 'adam'?"),
        (["AdamW8bit"], "unknown optimizer 'AdamW8bit'; did you mean 'adamw:states=8bit'?"),
        (["paged_adamw_8bit:lr=1"], "'paged_adamw_8bit:lr=1'; did you mean 'adamw:states=8bit'?"),
        (["adamw_torch_fused"], "unknown optimizer 'adamw_torch_fused'; did you mean 'adamw'?"),
        (["RAdamScheduleFree"], "unknown optimizer 'RAdamScheduleFree'; did you mean 'schedulefreeradam'?"),
        (["torch.adamz"], "unknown optimizer 'torch.adamz'; did you mean 'torch.Adam"),
        (["mine:Lion"], "unknown optimizer 'mine:Lion'; did you mean 'mine.Lion'? A class of your own is module.Class"),
        (["adam,sgd"], "must look like name or name:lr=0.001,weight_decay=0.1; several optimizers have spaces between"),
        (
            ["adam", "lr=0.1"],
            "optimizer 'lr=0.1' must look like name or name:lr=0.001,weight_decay=0.1; settings stand",
        ),
        (
            ["--lr-grid", "1e-3", "1e-2"],
            "optimizer '1e-2' must look like name or name:lr=0.001,weight_decay=0.1; several",
        ),
        (["adam:betas=0.9,0.99"], "'0.99' must look like lr=0.001; a tuple is in parentheses: betas=(0.9,0.95)"),
        (["adam:wd=1"], "adam takes no 'wd'; did you mean 'weight_decay'?"),
        (["muon:adamw_lrr=1"], "muon takes no 'adamw_lrr'; did you mean 'adamw_lr'?"),
        (["muon:rule='adamw'"], "muon takes no 'rule'"),
        (
            ["muon", "-t", "sinetask:task"],
            "optimizer 'muon': roles finds no matrix between others, which Muon could step",
        ),
        (["adam:nonfinite=error"], "there is no nonfinite=error; did you mean 'raise'?"),
        (["Adam", "adam"], "optimizer 'adam' is given twice"),
        (["steprule.AdmW"], "the module 'steprule' has no 'AdmW'; did you mean 'AdamW'?"),
        (["nowhere.AdamW"], "optimizer 'nowhere.AdamW': there is no module 'nowhere'"),
        (["math.sqrt"], "neither a torch.optim.Optimizer nor a steprule.Rule"),
        (["steprule.Rule"], "neither a torch.optim.Optimizer nor a steprule.Rule"),
        ([""], "optimizer '' must look like name"),
        (["adam:"], "optimizer 'adam:' must look like name"),
        ([".adam"], "optimizer '.adam' must look like name"),
        (["adam:lr"], "optimizer 'adam:lr': 'lr' must look like lr=0.001"),
        (["adam:lr=1,,eps=1"], "optimizer 'adam:lr=1,,eps=1': '' must look like"),
        (["adam:lr=1,lr=2"], "optimizer 'adam:lr=1,lr=2': lr is given twice"),
        (["adam:lrr=1"], "optimizer 'adam:lrr=1': adam takes no 'lrr'; did you mean 'lr'?"),
        (["adam:lr=fast"], "lr=fast is not a number"),
        (["adam:amsgrad=true"], "amsgrad=true is not a number, True, False, None, a quoted string or a tuple; did you"),
        (["adam:betas=(0.9,0.95"], "betas=(0.9,0.95 is not a number"),
        (["adam:lr=-1"], "optimizer 'adam:lr=-1': Invalid learning rate: -1"),
        (["adam:betas=(0.9,1.5)"], "optimizer 'adam:betas=(0.9,1.5)': Invalid beta parameter at index 1: 1.5"),
        (["torch.LBFGS"], "optimizer 'torch.LBFGS': its step needs a closure"),
        (["torch.Muon"], "optimizer 'torch.Muon': Muon only supports 2D"),
        (["adam", "sgd", "adam"], "optimizer 'adam' is given twice"),
        (["adam:lr=1e-3", "--lr-grid", "1e-3,1e-2"], "optimizer 'adam:lr=0.001' has an lr of its own beside --lr-grid"),
        (["--lr-grid", "1e-3;1e-2"], "--lr-grid '1e-3;1e-2' must be numbers with commas between"),
        (["--lr-grid", "0.1,1e-1"], "--lr-grid '0.1' is given twice"),
        (["--lr-grid", "-1"], "Invalid learning rate: -1"),
        (["--task", "digit"], "unknown --task 'digit'; did you mean 'digits'? or module:function for your own"),
        (["--task", "Digits"], "--task 'digits' is given twice"),
        (["--task", "chars,digits"], "unknown --task 'chars,digits'; give --task once for each, or module:function"),
        (
            ["--task", "./sinetask.py:task"],
            "takes a module as import has it, not a file: in its folder, write sinetask:task",
        ),
        (["--task", r"C:\me\sinetask.py:task"], "not a file: in its folder, write sinetask:task"),
        (
            ["--task", "sinetask"],
            "unknown --task 'sinetask'; choose from digits, chars, chars-large, or module:function",
        ),
        (
            ["--task", "sinetask:tusk"],
            "--task 'sinetask:tusk': the module 'sinetask' has no 'tusk'; did you mean 'task'",
        ),
        (["--task", "nowhere:task"], "--task 'nowhere:task': there is no module 'nowhere'"),
        (["--task", "sinetask:"], "--task 'sinetask:' must look like"),
        (["--task", "sinetask:not_a_task"], "not_a_task() returned int, not a steprule.compare.Task"),
        (["--task", "digits"], "--task 'digits' is given twice"),
        (
            ["--task", "sinetask:make_model"],
            "--task 'sinetask:make_model': make_model() failed: TypeError: make_model() missing 1",
        ),
        (["--task", "sinetask:x"], "--task 'sinetask:x': x has the type Tensor and is no function"),
        (
            ["--task", "sinetask:raising"],
            "raising() failed: RuntimeError: no data here (FOLDER/sinetask.py:RAISE, in raising)",
        ),
        (
            ["--task", "sinetask:endless"],
            "Task's steps must be a whole number of at least 1, not -5 (FOLDER/sinetask.py:REPLACE, in endless)",
        ),
        (
            ["--task", "sinetask:no_model"],
            "the task 'sine': make_model(0) must return a torch.nn.Module, not None (FOLDER/sinetask.py:NOMODEL)",
        ),
        (
            ["--task", "sinetask:bad_batches"],
            "the task 'sine': batches(0) failed: TypeError: 'NoneType' object is not iterable",
        ),
        (
            ["--task", "sinetask:bad_model"],
            "the task 'sine': make_model(0) failed: ZeroDivisionError: division by zero (FOLDER",
        ),
        (["--task", "sinetask:_hidden"], "has no '_hidden'; choose from task, blocking, ending, exhausted, not_a_task"),
        (
            ["--task", "broken:task"],
            "--task 'broken:task': the module 'broken' cannot be imported: NameError: name 'undefined'",
        ),
        (["--target", "nan"], "--target nan must be a finite number"),
        (["--target", "inf"], "--target inf must be a finite number"),
        (["--seconds", "inf"], "--seconds inf must be a finite number"),
        (["--steps", "3", "--seconds", "1"], "--steps and --seconds exclude each other"),
        (["--out", "sinetask.py"], "--out 'sinetask.py' is a file; name a folder"),
        (["--out", "sinetask.py/new"], "--out 'sinetask.py/new': Not a directory; name another folder with --out"),
        (["--out", "there", "--no-report"], "--out and --no-report exclude each other: leave out one of the two"),
        (["--out", "closed"], "the folder 'closed' cannot be written to: Is a directory"),
        (["--out", "old"], "--out 'old' holds a report already; name another folder, or remove results.json"),
        (["sparseadam"], "optimizer 'sparseadam' takes sparse gradients only, and the model has no layer with sparse"),
        (["torch.SparseAdam"], "optimizer 'torch.SparseAdam' takes sparse gradients only"),
    ],
)
def test_a_wrong_argument_ends_the_command_with_one_line_and_nothing_trained(folder, monkeypatch, args, message):
    monkeypatch.setattr("steprule.compare.command.train", lambda *a: pytest.fail("trained"))
    (folder / "broken.py").write_text("undefined + 1")
    (folder / "old").mkdir()
    (folder / "old" / "results.json").write_text("old")
    (folder / "closed" / "results.json.part").mkdir(parents=True)
    result = command("-t", "digits", *args)
    assert result.exit_code == 2
    written = (folder / "sinetask.py").read_text().splitlines()
    for word, text in (("RAISE", 'raise RuntimeError("no data'), ("REPLACE", "steps=-5"), ("NOMODEL", "seed: None)")):
        line = next(number for number, one in enumerate(written, 1) if text in one)
        message = message.replace(word, str(line))
    assert message.replace("FOLDER", str(folder)) in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (folder / "steprule-report").exists()
    assert (folder / "old" / "results.json").read_text() == "old"


def test_a_module_that_needs_a_missing_one_is_told_apart_from_a_missing_module(folder):
    (folder / "needy.py").write_text("import not_installed")
    with pytest.raises(UsageError, match="the module 'needy' needs 'not_installed'"):
        sys.path.insert(0, str(folder))
        spec.parse("needy.Adam")


# Runs


def test_a_run_notes_the_first_evaluation_with_the_target():
    run = train_toy(toy([5.0, 3.0, 1.0, 1.5, 0.5], eval_every=2, steps=8))
    assert (run.status, run.steps, run.loss) == ("finished", [0, 2, 4, 6, 8], [5.0, 3.0, 1.0, 1.5, 0.5])
    assert (run.reached_step, run.final_loss, run.step_count) == (4, 0.5, 8)
    assert run.reached_seconds == run.seconds[2]
    assert run.accuracy == []


def test_the_last_step_is_evaluated_wherever_it_falls():
    assert train_toy(toy([5.0] * 9, eval_every=3, steps=4)).steps == [0, 3, 4]


def test_the_clock_sees_the_step_and_not_the_evaluation_or_the_compilation(monkeypatch):
    clock = Ticks()
    monkeypatch.setattr(run_module, "perf_counter", clock)

    done = set()

    def once(what):
        """Imports and compiles, the first time."""
        if what not in done:
            clock.now += 1000
            done.add(what)

    class Compiles(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            once("zero_grad")
            super().zero_grad(set_to_none)

        def step(self, closure=None):
            once("step")
            super().step(closure)

    def loss(model, batch):
        once("loss" if model.training else "loss of a model that is not in training mode")
        return model(batch).square().mean()

    def batches(seed):
        once("batch")
        return itertools.repeat(torch.ones(1, 1))

    def evaluate(model):
        clock.now += 100
        return {"loss": 2.0}

    task = toy([], evaluate=evaluate, loss=loss, batches=batches)
    run = train(task, spec.Spec("compiles", Compiles), 0, Budget(steps=3), 1.0, no_progress)
    assert done == {"zero_grad", "step", "loss", "batch"}
    assert run.seconds == [0, 2, 4, 6]  # a step is two ticks, of which one is the optimizer's
    assert run.step_ms == 1000


def test_a_budget_in_seconds_ends_with_the_step_that_uses_it_up(monkeypatch):
    monkeypatch.setattr(run_module, "perf_counter", Ticks())
    shares = []
    task = toy([5.0] * 99, eval_every=3)
    run = train(task, spec.parse("sgd"), 0, Budget(seconds=7), 1.0, shares.append)
    assert (run.step_count, run.steps, run.seconds) == (4, [0, 3, 4], [0, 6, 8])
    assert shares == [2 / 7, 4 / 7, 6 / 7, 1]


def test_the_seed_alone_decides_on_weights_and_data_whatever_random_source_they_use():
    seen = []

    def batches(seed):
        while True:
            yield torch.rand(1, 1)

    class Draws(torch.optim.SGD):
        def __init__(self, params):
            torch.rand(7)
            super().__init__(params)

    def loss(model, batch):
        seen.append((model.weight.item(), batch.item()))
        return model(batch).square().mean()

    def first(optimizer, seed):
        seen.clear()
        train(toy([5.0] * 9, batches=batches, loss=loss), optimizer, seed, Budget(steps=1), 1.0, no_progress)
        return seen[-1][0]

    assert first(spec.parse("sgd"), 0) == first(spec.parse("adam"), 0) == first(spec.Spec("draws", Draws), 0)
    assert first(spec.parse("sgd"), 0) != first(spec.parse("sgd"), 1)


@pytest.mark.parametrize("name", ["digits", "chars"])
def test_the_tasks_draw_the_same_batches_for_a_seed_however_random_numbers_are_used_elsewhere(name):
    task = tasks.TASKS[name]()

    def some(seed):
        iterator = task.batches(seed)
        first = [next(iterator)]
        torch.rand(3)
        return [*first, next(iterator)]

    torch.manual_seed(1)
    once = some(0)
    torch.manual_seed(2)
    again, other = some(0), some(1)
    assert all(torch.equal(a, b) for one, two in zip(once, again, strict=True) for a, b in zip(one, two, strict=True))
    assert not torch.equal(once[0][0], other[0][0])
    assert not torch.equal(once[0][0], once[1][0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(bad):
    in_evaluation = train_toy(toy([5.0, 3.0, bad, 1.0]))
    assert (in_evaluation.status, in_evaluation.loss, in_evaluation.step_count) == ("diverged", [5.0, 3.0], 2)
    assert in_evaluation.final_loss == math.inf
    losses = iter([1, 1, 1, bad])  # the first is that of the throw-away step
    in_training = train_toy(toy([5.0] * 9, loss=lambda model, batch: model(batch).mean() * next(losses)))
    assert (in_training.status, in_training.loss, in_training.step_count) == ("diverged", [5.0, 5.0, 5.0], 3)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [("sgd", 0), ("sgd:momentum=0.9", 4), ("adamw", 8), ("adamw:amsgrad=True", 12), ("torch.AdamW", 8)],
)
def test_state_bytes_are_those_of_the_state_tensors_without_step(optimizer, expected):
    frozen = nn.Linear(3, 3)
    frozen.requires_grad_(False)
    assert train_toy(toy([5.0] * 9, make_model=lambda seed: nn.Sequential(nn.Linear(1, 3), frozen)), optimizer).state_bytes == expected  # fmt: skip


def test_memory_that_states_share_counts_once():
    class Shares(torch.optim.SGD):
        def step(self, closure=None):
            both = torch.zeros(2)
            for group in self.param_groups:
                for param in group["params"]:
                    self.state[param] = {"halves": [both[:1], both[1:]], "step": torch.zeros(())}

    run = train(toy([5.0] * 9), spec.Spec("shares", Shares), 0, Budget(steps=1), 1.0, no_progress)
    assert run.state_bytes == 8


def test_training_and_evaluation_modes():
    modes = []

    def evaluate(model):
        modes.append((model.training, torch.is_grad_enabled()))
        return {"loss": 5.0}

    def loss(model, batch):
        modes.append((model.training, torch.is_grad_enabled()))
        return model(batch).mean()

    train_toy(toy([], evaluate=evaluate, loss=loss, steps=2))
    assert modes[1:] == [(False, False), (True, True)] * 2 + [(False, False)]


# Rows and their order


def made(optimizer, lr, reached, final=1.0, **changes):
    """Runs of an optimizer, one for each number of steps to the target."""
    text = f"{optimizer}:lr={lr}"
    finals = final if isinstance(final, list) else [final] * len(reached)
    return [
        dataclasses.replace(
            Run("toy", text, optimizer, lr, seed),
            steps=[0, 10],
            seconds=[0.0, 1.0],
            loss=[5.0, last],
            reached_step=steps,
            reached_seconds=None if steps is None else 100.0 - steps,
            status="finished" if math.isfinite(last) else "diverged",
            **changes,
        )
        for seed, (steps, last) in enumerate(zip(reached, finals, strict=True))
    ]


def test_a_row_holds_medians_and_extremes_over_the_seeds():
    runs = made("adam", 0.1, [10, None, 30], [0.5, 0.1, math.inf], accuracy=[0.1, 0.9], step_ms=2.0, state_bytes=8.0)
    (row,) = rows(runs)
    assert (row.seeds, row.diverged, row.failed, row.reached, row.accuracy) == (3, 1, 0, 2, 0.9)
    assert dataclasses.astuple(row.final_loss) == (0.5, 0.1, math.inf)
    assert dataclasses.astuple(row.steps) == (30, 10, math.inf)
    assert (row.name, row.settings) == ("adam", ["lr=0.1"])
    assert [(column.heading, *column.cells) for column in columns([row])] == [
        ("steps to target", ("30", "2 of 3 seeds")),
        ("seconds to target", ("90", "2 of 3 seeds")),
        ("final loss", ("0.50", "0.10 to diverged")),
        ("final accuracy", ("90.0%", "")),
        ("optimizer's ms a step", ("2", "")),
        ("state bytes an element", ("8", "")),
    ]


def test_who_reaches_the_target_first_comes_first_and_who_never_does_last():
    table = rows(
        [
            *made("never", 0.1, [None, None, None], 0.1),
            *made("once", 0.1, [5, None, None]),
            *made("late", 0.1, [30, 31, 32]),
            *made("early", 0.1, [10, 90, 20]),
            *made("twice", 0.1, [1, 25, None]),
        ]
    )
    assert [row.label for row in rank(table, "steps", False)] == ["early", "twice", "late", "once", "never"]
    assert [row.label for row in rank(table, "seconds", False)][:2] == ["late", "early"]  # more steps, fewer seconds


def test_the_best_lr_is_that_of_the_lowest_median_final_loss():
    table = rows(
        [
            *made("adam", 0.1, [1, 1, 1], [0.1, 0.1, 0.1]),
            *made("adam", 0.2, [9, 9, 9], [0.9, 0.01, 0.02]),
            *made("adam", 0.3, [5, 5, 5], [0.001, math.inf, math.inf]),
            *made("sgd", 0.3, [5, 5, 5], math.inf),
        ]
    )
    assert [(row.label, row.lr) for row in rank(table, "steps", True)] == [("sgd", 0.3), ("adam", 0.2)]
    assert len(rank(table, "steps", False)) == 4


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], "No run finished."),
        (made("a", 0.1, [8, 10, 12]), "a (lr 0.1) reached the target loss of 2 after 10 steps (8 to 12 over 3 seeds)."),
        (
            [*made("b", 0.2, [13, 15, 17]), *made("a", 0.1, [8, 10, 12])],
            "a (lr 0.1) reached the target loss of 2 after 10 steps (8 to 12 over 3 seeds), the first to do so; "
            "next was b (lr 0.2) with 15 (13 to 17).",
        ),
        (
            [*made("b", 0.2, [12, 15, 17]), *made("a", 0.1, [8, 10, 12])],
            "a (lr 0.1) reached the target loss of 2 after 10 steps (8 to 12 over 3 seeds), but its range overlaps with "
            "that of b (lr 0.2): these seeds do not settle who is first.",
        ),
        (
            [*made("c", 0.3, [20, 20, 20]), *made("d", 0.2, [None] * 3), *made("a", 0.1, [8, 10, None])],
            "a (lr 0.1) reached the target loss of 2 after 10 steps (8 to never over 3 seeds), but its range overlaps "
            "with that of c (lr 0.3): these seeds do not settle who is first.",
        ),
        (
            [*made("b", 0.2, [None] * 3), *made("a", 0.1, [8, 10, 12])],
            "a (lr 0.1) reached the target loss of 2 after 10 steps (8 to 12 over 3 seeds), and no other optimizer did.",
        ),
        (
            made("a", 0.1, [10, 10]),
            "a (lr 0.1) reached the target loss of 2 after 10 steps (each of 2 seeds).",
        ),
        (
            [*made("b", 0.2, [15]), *made("a", 0.1, [10])],
            "a (lr 0.1) reached the target loss of 2 after 10 steps, the first to do so; next was b (lr 0.2) with 15; "
            "one seed settles little.",
        ),
        (
            [*made("b", 0.2, [10]), *made("a", 0.1, [10])],
            "b (lr 0.2) reached the target loss of 2 after 10 steps, level with a (lr 0.1); one seed settles little.",
        ),
        (
            [*made("b", 0.2, [10, None, None], 0.7), *made("a", None, [None] * 3, 0.3)],
            "No optimizer reached the target loss of 2 in most of its seeds; the lowest median final loss, 0.3, is that "
            "of a.",
        ),
        (
            [*made("b", 0.2, [None] * 2, 0.3), *made("a", 0.1, [None] * 2, 0.3), *made("c", 0.1, [None] * 2, 0.4)],
            "No optimizer reached the target loss of 2; the lowest median final loss, 0.3, is that of b (lr 0.2), but its range overlaps "
            "with that of a (lr 0.1): these seeds do not settle whose is the lowest.",
        ),
        (
            [*made("b", 0.2, [None], 0.3), *made("a", 0.1, [None], 0.4)],
            "No optimizer reached the target loss of 2; the lowest median final loss, 0.3, is that of b (lr 0.2); one seed settles little.",
        ),
        (
            made("a", 0.1, [None], math.inf),
            "No optimizer reached the target loss of 2, nor a finite loss at the end.",
        ),
    ],
)
def test_the_sentence_claims_what_the_seeds_show(runs, expected):
    assert sentence(rank(rows(runs), "steps", False), "steps", 2.0) == expected


def test_learning_rates_at_the_ends_of_a_grid_are_named():
    shown = rows([*made("b", 0.1, [10]), *made("a", 0.3, [10]), *made("c", 1.0, [10])])
    told = at_the_edge(shown, [0.1, 0.3, 1.0])
    assert (
        told == "Best at an end of --lr-grid, so that others may be better: b at the least, 0.1; c at the largest, 1."
    )
    assert at_the_edge(shown, [0.1]) == at_the_edge(shown, []) == at_the_edge(shown, [0.01, 3.0]) == ""


def test_the_curve_is_the_median_and_counts_diverged_runs_as_infinite():
    runs = [
        dataclasses.replace(run, steps=[0, 5, 10], seconds=[0.0, seconds, 2 * seconds], loss=losses)
        for run, seconds, losses in zip(
            made("a", 0.1, [1, 1, 1]), [1.0, 2.0, 4.0], [[9.0, 3.0, 1.0], [9.0, 5.0, 2.0], [9.0, 4.0, 6.0]], strict=True
        )
    ]
    whole = curve(runs)
    assert (whole.steps, whole.seconds) == ([0, 5, 10], [0, 2, 4])
    assert whole.median == [9, 4, 2]
    runs[0] = dataclasses.replace(runs[0], status="diverged", loss=[9.0])
    assert curve(runs).median == [9, 5, 6]
    runs[1] = dataclasses.replace(runs[1], status="diverged", loss=[9.0, 5.0])
    assert curve(runs).median == [9, 5, math.inf]


# The command


def test_results_and_report_hold_every_run(folder):
    result = command("-t", "sinetask:task", "-t", "digits", "adam:lr=0.02", "torch.SGD:lr=0.1", "--steps", "12", "--seeds", "2", "--out", "found")  # fmt: skip
    assert result.exit_code == 0
    everything = saved(folder, "found")
    assert everything["interrupted"] is False
    assert everything["settings"]["seeds"] == [0, 1]
    assert everything["machine"]["torch"] == torch.__version__
    assert [task["name"] for task in everything["tasks"]] == ["sine", "digits"]
    sine, digits = everything["tasks"]
    for task in (sine, digits):
        runs = [(run["optimizer"], run["seed"]) for run in task["runs"]]
        assert runs == [(name, seed) for seed in (0, 1) for name in ("adam:lr=0.02", "torch.SGD:lr=0.1")]
        assert all(run["steps"] == [0, 5, 10, 12] for run in task["runs"])
        assert all(len(run["loss"]) == len(run["seconds"]) == 4 for run in task["runs"])
        assert all(run["loss"][-1] < run["loss"][0] for run in task["runs"])
        assert all(run["step_ms"] > 0 for run in task["runs"])
        assert [run["state_bytes"] for run in task["runs"]] == [8, 0] * 2
        assert task["sentence"] in " ".join(result.stdout.split())
        assert len(task["table"]) == len(task["all_rows"]) == 2
        first, second = (run["loss"][0] for run in task["runs"][:2])
        assert first == second  # the same weights for both optimizers
        assert task["runs"][0]["loss"][0] != task["runs"][2]["loss"][0]  # and others for another seed
    assert all(len(run["accuracy"]) == 4 for run in digits["runs"])
    assert not any(run["accuracy"] for run in sine["runs"])
    lines = result.stdout.splitlines()
    assert sum(line.startswith(("sine  ", "digits  ")) for line in lines) == 8
    assert lines[-1] == f"Report: {os.path.join('found', 'report.html')}"
    assert sorted(os.listdir("found")) == ["report.html", "results.json"]


WATCHED = """
import json, sys, time
from steprule.cli import main
from steprule.compare import run
from steprule.engine import kernel

looks, before = [], set()


def look():
    looks.append({"imported": sorted({*sys.modules} - before), "kernels": len(kernel._kernels)})
    before.update(sys.modules)
    return time.perf_counter()


run.perf_counter = look
try:
    main()
finally:
    open("looks.json", "w").write(json.dumps(looks))
"""


@pytest.mark.parametrize("name", ["digits", pytest.param("chars", marks=pytest.mark.long)])
def test_the_same_seeds_give_the_same_numbers(folder, name):
    args = ["compare", "-t", name, "--steps", "6", "--seeds", "2"]
    assert command(*args[1:], "--out", "here").exit_code == 0
    subprocess.run([sys.executable, "-c", WATCHED, *args, "--out", "there"], check=True, stdout=subprocess.DEVNULL)
    here, there = ([run["loss"] for run in saved(folder, out)["tasks"][0]["runs"]] for out in ("here", "there"))
    assert len(here) == 8
    assert here == there
    assert len({tuple(loss) for loss in here}) == 8
    looks = json.loads((folder / "looks.json").read_text())  # three a step, the first of them thrown away
    assert len(looks) == 8 * 3 * 7
    for start in range(0, len(looks), 21):
        timed = looks[start + 3 : start + 21]
        assert [one["imported"] for one in timed[1:]] == [[]] * 17, "the clock saw an import"
        assert len({one["kernels"] for one in timed}) == 1, "the clock saw a compilation"


def test_every_lr_of_the_grid_is_run_and_the_best_shown(folder):
    result = command("-t", "sinetask:task", "sgd:momentum=0.9", "adam", "--lr-grid", "1e-5,0.05,20", "--seeds", "2")
    assert result.exit_code == 0
    (task,) = saved(folder)["tasks"]
    assert len(task["runs"]) == 12
    assert len(task["all_rows"]) == 6
    assert sorted((row["label"], row["lr"]) for row in task["table"]) == [("adam", 0.05), ("sgd momentum=0.9", 0.05)]
    page = (written(folder) / "report.html").read_text()
    assert "All learning rates" in page
    assert "1e-05" in page


def test_a_grid_replaces_the_lr_of_the_tasks_own_optimizers(folder):
    assert command("-t", "digits", "--lr-grid", "1e-3", "--steps", "1", "--seeds", "1").exit_code == 0
    runs = saved(folder)["tasks"][0]["runs"]
    assert [run["lr"] for run in runs] == [1e-3] * 4
    assert [run["label"] for run in runs] == ["sgd momentum=0.9", "rmsprop", "adam", "adamw weight_decay=0.1"]


def test_diverged_and_failed_runs_are_noted_and_the_others_go_on(folder):
    result = command("-t", "sinetask:task", "sgd:lr=1e30", "sinetask.Breaks", "adam:lr=0.02", "--seeds", "2")
    assert result.exit_code == 1
    (task,) = saved(folder)["tasks"]
    assert [run["status"] for run in task["runs"]] == ["diverged", "failed", "finished"] * 2
    assert task["runs"][1]["error"] == "ValueError: five is <b>enough</b>"
    assert task["runs"][1]["step_count"] == 5
    assert [row["final_loss"]["median"] is None for row in task["table"]] == [False, True, True]
    assert "sgd:lr=1e+30  seed 0: diverged after" in result.stdout
    assert "steprule compare: sine  sinetask.Breaks  seed 1 failed: ValueError: five is <b>enough</b>" in result.stderr
    page = (written(folder) / "report.html").read_text()
    assert "five is &lt;b&gt;enough&lt;/b&gt;" in page
    assert "<b>enough" not in page


@pytest.mark.parametrize(
    ("name", "error", "where"),
    [
        ("bad_evaluate", "ValueError: could not convert string to float: 'x'", "in evaluate"),
        (
            "odd_evaluate",
            "ValueError: the task's evaluate must return a dict with 'loss', not 0.5 (FOLDER/sinetask.py:",
            None,
        ),
        (
            "odd_loss",
            "ValueError: the task's loss must return a tensor of one element, not 0.5 (FOLDER/sinetask.py:",
            None,
        ),
    ],
)
def test_what_fails_inside_the_task_is_told_with_its_place(folder, name, error, where):
    result = command("-t", f"sinetask:{name}", "sgd", "torch.SGD", "--seeds", "3")
    assert result.exit_code == 1
    error = error.replace("FOLDER", str(folder))
    (task,) = saved(folder)["tasks"]
    for run in task["runs"]:
        assert run["status"] == "failed" and run["error"].startswith(error)
        assert run["traceback"].startswith("Traceback") and error in run["traceback"]
        assert run["where"] is None if where is None else run["where"].endswith(where)
    told = error if where is None else f"{error} ({folder / 'sinetask.py'}:"
    assert f"steprule compare: the task 'sine': all 2 runs failed: {told}" in result.stderr
    assert len(result.stderr.splitlines()) == 2
    assert f"tracebacks are in {written(folder).relative_to(folder) / 'results.json'}" in result.stderr
    assert (len(task["runs"]), task["sentence"]) == (2, "No run finished: all 2 failed.")  # of one seed
    assert "target" not in result.stdout  # neither table nor sentence
    page = (written(folder) / "report.html").read_text()
    assert "Every run failed with ValueError" in page and "<table>" not in page


@pytest.mark.parametrize("what", ["table", "page", "TaskResult.sentence", "TaskResult.ranked"])
def test_runs_are_kept_whatever_their_summary_does(folder, monkeypatch, what):
    def fail(*args):
        raise ValueError("no summary")

    module, _, name = what.rpartition(".")
    owner = results.TaskResult if module else sys.modules["steprule.compare.command"]
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(ValueError, match="no summary"):
        command("-t", "sinetask:task", "sgd", "--seeds", "2")
    assert [run["status"] for run in saved(folder)["tasks"][0]["runs"]] == ["finished"] * 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""), ("name", None), ("make_model", None), ("batches", [1]), ("loss", "mse"), ("evaluate", None),
        ("target", "0.01"), ("target", math.nan), ("target", math.inf), ("target", None), ("target", True), ("steps", -5),
        ("steps", 0), ("steps", 10.0), ("steps", "10"), ("steps", True), ("eval_every", 0), ("eval_every", 1.5),
        ("optimizers", "adam"), ("optimizers", ()), ("optimizers", (3,)),
    ],
)  # fmt: skip
def test_a_task_refuses_what_it_cannot_be(field, value):
    with pytest.raises((TypeError, ValueError)) as caught:
        toy([], **{field: value})
    assert f"Task's {field} must be " in str(caught.value) and str(caught.value).endswith(f"not {value!r}")


def test_a_task_takes_the_numbers_of_numpy():
    task = toy([], target=np.float32(0.5), steps=np.int64(3), eval_every=np.int32(2))
    assert [(type(x), x) for x in (task.target, task.steps, task.eval_every)] == [(float, 0.5), (int, 3), (int, 2)]


def test_diverging_alone_is_a_result_and_no_failure():
    assert command("-t", "sinetask:task", "sgd:lr=1e30", "--seeds", "1").exit_code == 0


def test_batches_that_end_too_soon_are_told(folder):
    assert command("-t", "sinetask:ending", "sgd", "--seeds", "1").exit_code == 1
    assert saved(folder)["tasks"][0]["runs"][0]["error"] == "RuntimeError: the task's batches ended after 7"


def test_a_loss_whose_own_iterator_ends_is_not_told_as_the_batches(folder):
    assert command("-t", "sinetask:exhausted", "sgd", "--seeds", "1").exit_code == 1
    run = saved(folder)["tasks"][0]["runs"][0]
    assert run["error"].startswith("StopIteration") and run["where"].endswith("in <lambda>")


def test_a_place_in_the_packages_of_the_user_is_none_of_theirs(folder, monkeypatch):
    packages = folder / "packages"
    monkeypatch.setattr("site.getusersitepackages", lambda: str(packages))
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile("def divide():\n    1 / 0\ndivide()", str(packages / "divide.py"), "exec"), {})
    assert place_of(caught.value).startswith(__file__)


def test_target_steps_seconds_and_threads_are_passed_on(folder):
    command("-t", "sinetask:task", "adam", "--target", "0.5", "--seconds", "0.02", "--seeds", "1", "--threads", "2")
    everything = saved(folder)
    task = everything["tasks"][0]
    assert (task["target"], task["steps"], task["seconds"], task["ranked_by"]) == (0.5, None, 0.02, "seconds")
    seconds = task["runs"][0]["seconds"]
    assert seconds[-2] < 0.02 <= seconds[-1]
    assert everything["settings"]["threads"] == torch.get_num_threads() == 2
    command("-t", "sinetask:task", "adam", "--seeds", "1")
    task = saved(folder)["tasks"][0]
    assert (task["target"], task["steps"], task["ranked_by"]) == (0.02, 60, "steps")
    assert torch.get_num_threads() == 1


def test_results_are_replaced_whole_or_not_at_all(folder, monkeypatch):
    path = folder / "results.json"
    results.write_text(path, "old")

    def fail(*names):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        results.write_text(path, "new")
    assert path.read_text() == "old"


# Ctrl-C


def test_ctrl_c_keeps_what_was_finished(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", "from steprule.cli import main; main()",
         "compare", "-t", "sinetask:blocking", "adam:lr=0.02", "--seeds", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a test runner in the background ignores the signal, and would pass that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        while not (folder / "blocked").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        assert len(saved(folder)["tasks"][0]["runs"]) == 1  # written before the end
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "Stopped by Ctrl-C: 1 of 2 runs were over, and only those are kept." in output
    everything = saved(folder)
    assert everything["interrupted"] is True
    (run,) = everything["tasks"][0]["runs"]
    assert (run["seed"], run["status"], run["step_count"]) == (0, "finished", 60)
    assert everything["tasks"][0]["sentence"] in " ".join(output.split())
    assert "Stopped before all runs were over" in (written(folder) / "report.html").read_text()


def test_ctrl_c_before_the_first_run_is_over_leaves_no_report(folder, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("steprule.compare.command.train", interrupt)
    result = command("-t", "sinetask:task", "adam")
    assert result.exit_code == 130
    assert result.stdout == "Stopped by Ctrl-C before a run was over: nothing is kept.\n"
    assert os.listdir("steprule-report") == []


# The tasks that ship


def test_digits_tells_good_learning_rates_from_bad_ones():
    task = tasks.digits()
    good, bad = (
        train(task, spec.parse(text), 0, Budget(steps=task.steps), task.target, no_progress)
        for text in (task.optimizers[-1], "sgd:lr=1e-3")
    )
    assert good.reached_step is not None
    assert good.reached_step < task.steps / 2
    assert good.accuracy[-1] > 0.96
    assert bad.reached_step is None


@pytest.mark.long
def test_chars_is_learnt_within_its_steps():
    task = tasks.chars()
    run = train(task, spec.parse(task.optimizers[-1]), 0, Budget(steps=task.steps), task.target, no_progress)
    assert run.reached_step is not None
    assert run.reached_step < 0.9 * task.steps
    assert run.loss[0] > math.log(tasks.VOCABULARY) - 0.5  # untrained, it knows nothing


@pytest.mark.parametrize(("task", "context"), [(tasks.chars, 32), (tasks.chars_large, 64)])
def test_a_character_is_scored_without_what_follows(task, context):
    model = task().make_model(0)
    text = next(iter(task().batches(0)))[0][:1]
    assert text.shape == (1, context)
    changed = text.clone()
    changed[0, 20:] = (changed[0, 20:] + 1) % tasks.VOCABULARY
    one, other = model(text), model(changed)
    assert torch.equal(one[0, :20], other[0, :20])
    assert not torch.equal(one[0, 20:], other[0, 20:])


def test_the_text_is_capped_and_split_by_file(folder, monkeypatch):
    for number in range(20):
        (folder / f"m{number:02}.py").write_text(chr(ord("a") + number) * 9000 + "é")
    (folder / "sinetask.py").unlink()
    monkeypatch.setattr(tasks.sysconfig, "get_path", lambda name: str(folder))
    monkeypatch.setattr(tasks, "_TEXT_BYTES", 175_000)
    train_text, validation = tasks._stdlib_text.__wrapped__()
    assert len(train_text) + len(validation) == 175_000
    assert set(validation.tolist()) == {ord("j"), ord("t"), 127}
    assert not set(train_text.tolist()) & {ord("j"), ord("t")}
    assert train_text.max() == 127
    monkeypatch.setattr(tasks.sysconfig, "get_path", lambda name: str(folder / "nothing"))
    with pytest.raises(UsageError, match="no source"):
        tasks._stdlib_text.__wrapped__()


# The command line around it


@pytest.mark.parametrize("missing", ["typer", "rich", "sklearn"])
def test_a_missing_extra_is_named_in_one_line(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from steprule.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "compare"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"steprule needs {missing} for this: pip install 'steprule[compare]'\n"


def test_help_is_quick_because_it_loads_nothing_heavy():
    code = textwrap.dedent("""
        import sys
        from steprule.cli import app
        app(["compare", "--help"], standalone_mode=False)
        heavy = {"torch", "numpy", "llvmlite", "sklearn"} & set(sys.modules)
        sys.exit(f"loaded: {heavy}" if heavy else 0)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--lr-grid" in done.stdout


def test_compare_is_a_subcommand():
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "compare" in result.stdout


def test_the_script_is_installed():
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="steprule")
    assert script.value == "steprule.cli:main"
