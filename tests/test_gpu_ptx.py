"""The GPU engine's kernels as machine code, for GPUs that need not be there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from settings import IDS, VARIANTS
from test_gpu_kernels import STATES, WEIGHTS, formats_of

from steprule.rules import RULES

REQUESTS = {}
for name, rule in RULES.items():
    for (one, hyper), label in zip(VARIANTS, IDS, strict=True):
        if one is rule:
            REQUESTS[f"{label} float32"] = {
                "rule": name, "hyper": hyper, "formats": formats_of(rule, hyper, "float32", "float32")
            }  # fmt: skip
    hyper = {**rule.hyperparameters, **({"momentum": 0.9} if "momentum" in rule.hyperparameters else {})}
    for weights in WEIGHTS if name == "adamw" else ["float32", "bfloat16 24bit"]:
        for states in STATES:
            REQUESTS[f"{name} {weights} {states}"] = {
                "rule": name, "hyper": hyper, "formats": formats_of(rule, hyper, weights, states)
            }  # fmt: skip
ADAMW = RULES["adamw"].hyperparameters
REQUESTS["adamw float64"] = {"rule": "adamw", "hyper": ADAMW, "formats": ["float64"] * 4}
ALL = {"factor": "tensor", "limit": False, "zero": True, "average": True, "gather": True}
for weights, states in (("float32", "float32"), ("bfloat16 24bit", "8bit")):
    formats = formats_of(RULES["adamw"], ADAMW, weights, states)
    for services in ({"factor": "tensor"}, {"factor": "row"}, {"limit": True}, {"zero": True}, {"gather": True}, ALL):
        REQUESTS[f"adamw {weights} {states} {'+'.join(services)}"] = {
            "rule": "adamw", "hyper": ADAMW, "services": services,
            "formats": formats + [weights] * services.get("average", False),
        }  # fmt: skip
for dtype in ("float32", "bfloat16", "float16", "float64"):
    REQUESTS[f"read {dtype}"] = {"dtype": dtype, "norm_type": 2.0, "zero": False, "check": True}
for norm_type in (1.0, float("inf"), float("-inf"), 0.0, 3.0):
    REQUESTS[f"read norm {norm_type}"] = {"dtype": "float32", "norm_type": norm_type, "zero": True, "check": True}


@pytest.fixture(scope="module")
def answers():
    pytest.importorskip("triton")
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
def test_kernels_move_16_bytes_at_a_time_and_keep_all_in_registers(name, architecture, answers):
    answer = answers[name][architecture]
    update, prepare = answer["update"], answer["prepare"]
    assert update["wide_loads"] >= answer["expected_loads"]
    assert update["wide_stores"] >= answer["expected_stores"]
    for kernel in (update, prepare):
        assert (kernel["stack"], kernel["spills"], kernel["local"]) == (0, 0, False)


@pytest.mark.parametrize("name", [name for name in REQUESTS if not name.startswith("read")])
def test_kernels_compute_exactly(name, answers):
    """No approximations, and nothing small is taken as 0."""
    assert answers[name]["sm_90"]["update"]["inexact"] == []
