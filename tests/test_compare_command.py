"""What `steprule compare` prints and writes, and the example of a task."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from test_compare import command, folder, saved, written  # noqa: F401
from typer.testing import CliRunner

from steprule.cli import app
from steprule.compare import Task, results, tasks

ROOT = Path(__file__).parent.parent
QUICK = ("-t", "sinetask:task", "adam:lr=0.02", "--steps", "5", "--seeds", "1")


def test_json_goes_to_standard_output_and_nothing_else():
    done = command(*QUICK, "--json", "sinetask.Breaks")
    everything = json.loads(done.stdout)
    assert [run["optimizer"] for run in everything["tasks"][0]["runs"]] == ["adam:lr=0.02", "sinetask.Breaks"]
    assert "sine  adam:lr=0.02  seed 0: loss" in done.stderr and "Report: " in done.stderr
    assert "steps to" not in done.output  # no table


def test_learning_rates_that_nobody_has_chosen_are_told_before_anything_runs():
    quick = ("-t", "sinetask:task", "--steps", "1", "--seeds", "1", "--no-report")
    told = command(*quick, "sgd", "adam:lr=0.02", "torch.AdamW", "prodigy").stdout.splitlines()[0]
    assert told.startswith(
        "sine: no lr is given, so defaults are taken: sgd 0.001, torch.AdamW 0.001. Name what suits the task"
    )
    assert told.endswith("such as sgd:lr=0.1,momentum=0.9; or --lr-grid tries several.")
    for others in (["adam:lr=0.02"], [], ["sgd", "--lr-grid", "0.1"]):
        assert "no lr is given" not in command(*quick, *others).output


def test_json_is_what_the_file_has(folder):  # noqa: F811
    assert json.loads(command(*QUICK, "--json").stdout) == saved(folder)


def test_no_report_writes_nothing(folder):  # noqa: F811
    before = sorted(os.listdir())
    done = command(*QUICK, "--no-report")
    assert done.exit_code == 0 and "steps to" in done.stdout and "Report" not in done.stdout
    assert sorted(name for name in os.listdir() if name != "__pycache__") == before


def test_a_failure_without_a_report_names_no_file():
    done = command("-t", "sinetask:bad_evaluate", "adam", "--no-report")
    assert done.exit_code == 1 and done.stderr.startswith("steprule compare: the task 'sine': all 3 runs failed: ")
    assert "results.json" not in done.output


def test_a_report_is_never_overwritten(folder):  # noqa: F811
    for _ in range(3):  # within the same second, or not
        assert command(*QUICK).exit_code == 0
    folders = sorted((folder / "steprule-report").iterdir())
    assert len(folders) == 3
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d-\d{6}(-[23])?", one.name) for one in folders)
    assert all((one / "report.html").exists() for one in folders)
    assert command(*QUICK, "--out", "mine").exit_code == 0
    before = (folder / "mine" / "results.json").read_text()
    done = command(*QUICK, "--out", "mine")
    assert (done.exit_code, done.stdout) == (2, "")
    assert (
        done.stderr
        == "steprule compare: --out 'mine' holds a report already; name another folder, or remove results.json and report.html\n"
    )
    assert (folder / "mine" / "results.json").read_text() == before


def fail_to_write(monkeypatch, names, when):
    """Makes writing these files fail from that time of writing on."""
    times = []

    def write(path, text):
        times.append(path.name)
        if path.name in names and len(times) in when:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        results.write_text(path, text)

    monkeypatch.setattr("steprule.compare.command.write_text", write)


def test_a_full_disk_ends_no_run(folder, monkeypatch):  # noqa: F811
    """There are 6 times of writing: before the runs, after each of 3, and results and report at the end."""
    fail_to_write(monkeypatch, ("results.json",), range(3, 99))
    done = command("-t", "sinetask:task", "adam:lr=0.02", "--steps", "5")
    assert done.exit_code == 1 and "steps to" in done.stdout and "Report: " not in done.stdout
    assert done.stderr.splitlines() == [
        "steprule compare: results.json cannot be written: No space left on device; the runs go on",
        "steprule compare: results.json cannot be written: No space left on device; make room, or name another folder "
        "with --out",
    ]
    assert len(saved(folder)["tasks"][0]["runs"]) == 1  # the last that could be written


def test_room_that_is_made_meanwhile_is_used(folder, monkeypatch):  # noqa: F811
    fail_to_write(monkeypatch, ("results.json",), (2, 3))
    done = command("-t", "sinetask:task", "adam:lr=0.02", "--steps", "5")
    assert done.exit_code == 0 and done.stderr.count("cannot be written") == 1 and "Report: " in done.stdout
    assert len(saved(folder)["tasks"][0]["runs"]) == 3


def test_a_report_that_cannot_be_written_is_told(folder, monkeypatch):  # noqa: F811
    fail_to_write(monkeypatch, ("report.html",), range(99))
    done = command(*QUICK)
    assert done.exit_code == 1 and "Report: " not in done.stdout
    assert done.stderr.startswith("steprule compare: report.html cannot be written: No space left on device; make room")
    assert saved(folder)["tasks"][0]["sentence"]


def test_half_a_file_is_never_left(tmp_path, monkeypatch):
    tmp_path = tmp_path / "new"
    tmp_path.mkdir()
    results.write_text(tmp_path / "a", "old")
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        results.write_text(tmp_path / "a", "new")
    assert [one.name for one in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_folder_with_other_files_is_fine(folder):  # noqa: F811
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("mine")
    assert command(*QUICK, "--out", "mine").exit_code == 0
    assert sorted(os.listdir("mine")) == ["notes.txt", "report.html", "results.json"]


@pytest.mark.parametrize(
    "args",
    [QUICK, ("-t", "digits", "-t", "sinetask:task", "--steps", "2", "--seeds", "2", "--threads", "2"),
     ("-t", "sinetask:task", "adam:betas=(0.9,0.99)", "--lr-grid", "1e-3,1e-2", "--target", "0.5", "--seconds", "0.01")],
    ids=["steps", "tasks", "grid"],
)  # fmt: skip
def test_the_command_line_in_the_results_repeats_the_run(folder, args):  # noqa: F811
    import shlex

    command(*args)
    first = saved(folder)
    words = shlex.split(first["command"])
    assert words[:2] == ["steprule", "compare"]
    command(*words[2:])
    again = saved(folder)
    assert (again["settings"], again["command"]) == (first["settings"], first["command"])
    assert len(list((folder / "steprule-report").iterdir())) == 2
    assert [task["target"] for task in again["tasks"]] == [task["target"] for task in first["tasks"]]


def test_results_say_what_the_task_is(folder):  # noqa: F811
    command("-t", "digits", "-t", "sinetask:task", "adam", "--steps", "1", "--seeds", "1")
    digits, sine = saved(folder)["tasks"]
    facts = ("parameters", "elements", "batch_size")
    assert [digits[name] for name in facts] == [8, 38282, 64]
    assert [sine[name] for name in facts] == [4, 49, None]
    assert digits["description"].startswith("Classify handwritten digits of 8 by 8 pixels")
    assert "1,347 images are for training" in digits["description"]
    assert sine["description"] == ""


def test_a_task_is_described_by_its_function_unless_it_says_more():
    def make():
        """First
        paragraph.

        Second.
        """

    task = Task("toy", abs, abs, abs, abs, 1.0, 1)
    assert tasks.described(task, make).description == "First paragraph."
    own = Task("toy", abs, abs, abs, abs, 1.0, 1, description="Own.")
    assert tasks.described(own, make).description == "Own."
    with pytest.raises(TypeError, match="Task's description must be a text, not None"):
        Task("toy", abs, abs, abs, abs, 1.0, 1, description=None)


def test_every_field_of_a_task_is_documented():
    import dataclasses

    for field in dataclasses.fields(Task):
        assert re.search(rf"^        {field.name}: .{{20}}", Task.__doc__, re.MULTILINE), field.name


def test_a_batch_is_measured_by_its_first_tensor():
    import torch

    from steprule.compare.command import _batch_size

    x = torch.zeros(7, 3)
    assert [_batch_size(one) for one in (x, (x, 1), [None, x], {"a": "text", "b": x}, ((x, 2), 3))] == [7] * 5
    assert [_batch_size(one) for one in (None, (), torch.zeros(()), "text", 3)] == [None] * 5


def test_sparse_adam_takes_a_model_with_a_sparse_layer():
    import torch

    from steprule.compare.spec import check, parse

    for name in ("sparseadam", "torch.SparseAdam"):
        check(parse(name), torch.nn.Embedding(4, 2, sparse=True))


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_a_short_flag(flag):
    done = CliRunner().invoke(app, ["compare", flag])
    assert done.exit_code == 0 and "--no-report" in done.stdout and "--json" in done.stdout


def test_the_example_runs_as_it_says(tmp_path):
    """In its own process, as a user would, and with the command line of its docstring but for the grid."""
    args = ["adam:lr=0.01", "sgd:lr=0.1,momentum=0.9", "--task", "examples.task:spirals", "--seeds", "1", "--json"]
    code = "from steprule.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", *args, "--out", str(tmp_path / "report")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (task,) = json.loads(done.stdout)["tasks"]
    assert task["description"] == "Tell two spirals apart with a network of two hidden layers."
    assert (task["batch_size"], task["steps"]) == (64, 300)
    assert all(run["reached_step"] is not None and run["accuracy"][-1] > 0.95 for run in task["runs"])
    assert (tmp_path / "report" / "report.html").exists()


def test_the_example_compares_optimizers_of_its_own():
    sys.path.insert(0, str(ROOT))
    try:
        from examples.task import spirals
    finally:
        sys.path.remove(str(ROOT))
    from steprule.compare.spec import parse

    assert len([parse(text) for text in spirals().optimizers]) == 3
