"""The GPU engine's kernels as machine code, for GPUs that need not be there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from settings import VARIANTS
from test_gpu_kernels import WEIGHTS, formats_of

from steprule.rules import OWN
from steprule.rules.options import with_options

fcntl = pytest.importorskip("fcntl")  # as Triton, not on Windows
pytestmark = pytest.mark.long  # all are compiled at once
ADAMW = OWN["adamw"].hyperparameters
OPTIONS = {"decay": "corrected", "cautious": True, "cautious_decay": False, "lookahead": 5, "lookahead_alpha": 0.5}
ALL = {"factor": "tensor", "limit": False, "zero": True, "average": True, "gather": True}
REQUESTS = {}


def ask(name, weights, states, hyper=None, services=None, options=None):
    """Adds a kernel to those that are looked at."""
    rule = with_options(OWN[name], **options) if options else OWN[name]
    hyper, services = {**rule.hyperparameters, **(hyper or {})}, services or {}
    formats = formats_of(rule, hyper, weights, states) + [weights] * services.get("average", False)
    label = [name, weights, states, *services, *(["with options"] if options else [])]
    REQUESTS[" ".join(label)] = {
        "rule": name, "hyper": hyper, "formats": formats, "services": services, "options": options or {}
    }  # fmt: skip


# Every rule is compiled the same way; these have the most states, the longest formulas and all kinds of sums.
for name in ("rmsprop", "lion", "adamatan2", "madgrad", "lamb", "prodigy", "nadam", "schedulefreeadamw"):
    ask(name, "float32", "float32", {rule: hyper for rule, hyper in VARIANTS}[OWN[name]])
ask("sgd", "float32", "float32", {"momentum": 0.9})
ask("adamw", "float32", "float32", options=OPTIONS)
for weights in WEIGHTS:
    ask("adamw", weights, "float32")
ask("adamw", "float64", "float64")
ask("adamw", "bfloat16 stochastic", "bfloat16 dithered")
for weights in ("float32", "bfloat16 24bit", "float16 32bit"):
    ask("adamw", weights, "8bit")
for name in ("lion", "lamb", "prodigy"):
    ask(name, "bfloat16 24bit", "8bit")
for services in ({"factor": "tensor"}, {"factor": "row"}, {"limit": True}, {"zero": True}, {"gather": True}, ALL):
    ask("adamw", "float32", "float32", services=services)
for services in ({"factor": "row"}, ALL):
    ask("adamw", "bfloat16 24bit", "8bit", services=services)
for name in ("adafactor", "came", "sm3"):
    ask(name, "float32", "float32")
ask("came", "bfloat16 24bit", "8bit")
for dtype in ("bfloat16", "float16", "float64"):
    REQUESTS[f"read {dtype}"] = {"dtype": dtype, "norm_type": 2.0, "zero": False, "check": True}
for norm_type in (1.0, float("inf"), float("-inf"), 0.0, 3.0):
    REQUESTS[f"read norm {norm_type}"] = {"dtype": "float32", "norm_type": norm_type, "zero": True, "check": True}
REQUESTS["scalar states"] = {}
REQUESTS["parts of rows"] = {"joins": True}


@pytest.fixture(scope="module")
def answers(tmp_path_factory, worker_id):
    """What became of all requests; of several test processes the first one asks, and the others read."""
    pytest.importorskip("triton")
    if worker_id == "master":
        return compile_all()
    shared = tmp_path_factory.getbasetemp().parent / "ptx.json"
    with shared.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        kept = file.read()
        found = json.loads(kept) if kept else compile_all()
        if not kept:
            json.dump(found, file)
    return found


def compile_all():
    """Compiles all requests in two processes."""
    compiler = Path(__file__).with_name("ptx.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    names = list(REQUESTS)
    halves = [names[::2], names[1::2]]
    workers = [
        subprocess.Popen(
            [sys.executable, str(compiler)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in halves
    ]  # fmt: skip
    for worker, half in zip(workers, halves, strict=True):
        worker.stdin.write(json.dumps([REQUESTS[name] for name in half]))
        worker.stdin.close()
        worker.stdin = None
    found = {}
    for worker, half in zip(workers, halves, strict=True):
        output, errors = worker.communicate()
        assert worker.returncode == 0, errors[-3000:]
        found |= dict(zip(half, json.loads(output), strict=True))
    return found


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_kernels_move_16_bytes_at_a_time_and_keep_nearly_all_in_registers(name, architecture, answers):
    """A step may put some numbers aside, to leave registers for more threads: each operand's a few times."""
    whole = answers[name][architecture]
    for answer in (whole, *whole.get("readings", ())):
        update, prepare = answer["update"], answer["prepare"]
        assert update["wide_loads"] >= answer["expected_loads"]
        assert update["wide_stores"] >= answer["expected_stores"]
        assert update["stack"] <= 24 * answer.get("operands", 0)
        assert (prepare["stack"], prepare["spills"], prepare["local"]) == (0, 0, False)


@pytest.mark.parametrize("name", ["adamw bfloat16 24bit 8bit", "lion bfloat16 24bit 8bit", "adamw float32 float32"])
def test_threads_do_not_wait_for_each_other(name, answers):
    """What threads exchange for a block's largest number goes without waiting for all of them."""
    assert [answers[name][architecture]["waits"] for architecture in ("sm_80", "sm_90")] == [0, 0]


@pytest.mark.parametrize("name", [name for name in REQUESTS if not name.startswith("read")])
def test_kernels_compute_exactly(name, answers):
    """No approximations but the estimates that `steprule.formats.gpu` refines, and nothing small is taken as 0."""
    whole = answers[name]["sm_90"]
    for answer in (whole, *whole.get("readings", ())):
        assert set(answer["update"]["inexact"]) <= {"rcp.approx.ftz.f32", "rsqrt.approx.ftz.f32"}
