"""Compiles kernels of the GPU engine for GPUs that are not there, and tells what became of them.

    python tests/ptx.py    # requests as JSON on standard input, answers on standard output

Apart from the tests, since Triton either interprets kernels or compiles them, for all of a process.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from steprule.engine import gpu
from steprule.rule import Rule
from steprule.rules import RULES


def compiled(function: Any, types: dict[str, str], constants: dict[str, Any], capability: int) -> dict[str, Any]:
    """One function's machine code: its memory instructions and what ptxas says of it."""
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    divisible = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(function, signature, constexprs=constants, attrs=divisible)
    target = GPUTarget("cuda", capability, 32)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    text = triton.compile(source, target=target, options=options).asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(text)
        command = [
            get_ptxas(capability).path,
            "-v",
            f"-arch={re.search(r'[.]target (sm_[0-9a-z]+)', text)[1]}",
            str(path),
            "-o",
            f"{folder}/out",
        ]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),  # type: ignore[index]
        "stack": int(re.search(r"(\d+) bytes stack frame", report)[1]),  # type: ignore[index]
        "spills": sum(map(int, re.findall(r"(\d+) bytes spill", report))),
        "memory": sorted({m for m in re.findall(r"\b((?:ld|st)\.global\.[a-z0-9.:_]*)", text)}),
        "wide": {kind: len(re.findall(rf"\b{kind}\.global[a-z0-9.:_]*\.v4\.b32", text)) for kind in ("ld", "st")},
        "local": bool(re.search(r"\b(ld|st)\.local", text)),
        "inexact": sorted(set(re.findall(r"\b[a-z0-9.]*(?:approx|ftz)[a-z0-9.]*", text))),
    }


TABLES = {
    "address": "*i64", "sizes": "*i64", "chunks": "*i32", "bits": "*i32", "factors": "*fp64", "partials": "*fp64",
    "skip": "*i32", "count": "i32", "step_at": "*i64", "groups": "*i64", "numbers": "*i64", "hyper": "*fp64",
}  # fmt: skip


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What became of a rule's kernel."""
    rule: type[Rule] = RULES[request["rule"]]
    services = gpu.Services(**request.get("services", {}))
    kernel = gpu.compiled(rule, {**rule.hyperparameters, **request["hyper"]}, False, request["formats"], services)
    types = {**TABLES, "scalars": "*fp64" if kernel.source.real == "float64" else "*fp32"}
    result = {"arrays": kernel.source.arrays, "path": str(kernel.path)}
    for capability in request["capabilities"]:
        result[f"sm_{capability}"] = compiled(kernel.update, types, {}, capability)
    return result


if __name__ == "__main__":
    json.dump([answer(request) for request in json.load(sys.stdin)], sys.stdout)
