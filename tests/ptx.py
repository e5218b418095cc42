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
from machine_code import Code
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from steprule.engine import gpu, gpu_own, gpu_reading, gpu_sides
from steprule.engine.gpu_launch import options
from steprule.formats import ITEM_SIZE
from steprule.kernels.cache import load_for_triton
from steprule.kernels.gpu_pass import GpuSource
from steprule.kernels.gpu_reading import TILE
from steprule.kernels.operands import keeps
from steprule.rules import OWN
from steprule.rules.options import OPTIONS, with_options
from steprule.trace.around import Services
from steprule.trace.expression import Expression
from steprule.trace.norms import Norm
from steprule.trace.program import Stage

TYPES = {
    "address": "*i64", "sizes": "*i64", "chunks": "*i32", "bits": "*i32", "factors": "*fp64", "partials": "*fp64",
    "skip": "*i32", "count": "i32", "step_at": "*i64", "groups": "*i64", "numbers": "*i64", "hyper": "*fp64",
    "lengths": "*i64", "sums": "*fp64", "parts": "*fp64", "first_chunk": "*i64", "ways": "*i32",
    "results": "*fp64", "width": "i32", "steps": "*fp64", "own": "*fp64", "kept_at": "*i64", "are_double": "*i32",
    "size": "i32",
}  # fmt: skip
WHOLE = re.compile(r"(?m)^    if is_aligned & .*:$")
"""In a kernel's text, the question whether a tile is whole and can be read 16 bytes at a time."""
WIDE = re.compile(r"\b(ld|st)\.global[a-z0-9.:_]*\.(?:v4\.[bf]32|v2\.[bf]64|v8\.[bf]16)")


def assembled(
    function: Any, capability: int, types: dict[str, str] | None = None, registers: int | None = None, **constants: Any
) -> dict[str, Any]:
    """One function in all forms that Triton gives it on the way."""
    types = {**TYPES, **(types or {})}
    signature = {name: "constexpr" if name in constants else types[name] for name in function.arg_names}
    divisible = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(function, signature, constexprs=constants, attrs=divisible)
    return dict(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options(registers)).asm)


def compiled(
    function: Any, capability: int, types: dict[str, str] | None = None, registers: int | None = None, **constants: Any
) -> dict[str, Any]:
    """One function's machine code: its memory instructions and what ptxas says of it."""
    text = assembled(function, capability, types, registers, **constants)["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(text)
        target = re.search(r"\.target (sm_[0-9a-z]+)", text)[1]  # type: ignore[index]
        command = [get_ptxas(capability).path, "-v", f"-arch={target}", str(path), "-o", f"{folder}/out"]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    wide = WIDE.findall(text)
    return {
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),  # type: ignore[index]
        "stack": int(re.search(r"(\d+) bytes stack frame", report)[1]),  # type: ignore[index]
        "spills": sum(map(int, re.findall(r"(\d+) bytes spill", report))),
        "wide_loads": wide.count("ld"),
        "wide_stores": wide.count("st"),
        "local": bool(re.search(r"\b(ld|st)\.local", text)),
        "inexact": sorted(set(re.findall(r"\b[a-z0-9.]*(?:approx|ftz)[a-z0-9.]*", text))),
    }


def step_kernel(request: dict[str, Any], capability: int) -> dict[str, Any]:
    """What became of a rule's kernel, and of the small one before it."""
    rule, services = OWN[request["rule"]], Services(**request.get("services", {}))
    rule = with_options(rule, **{**OPTIONS, **request.get("options", {})})
    kernel = gpu.Kernel.compiled(
        rule, {**rule.hyperparameters, **request["hyper"]}, False, request["formats"], services
    )
    return {**code_of(kernel, capability), "readings": [code_of(one, capability) for one in kernel.readings]}


def of_whole_tiles(source: GpuSource, capability: int, types: dict[str, str]) -> dict[str, float]:
    """What a thread executes where all elements are there and lie well: instructions an element, and how often it waits for others."""
    _, module = load_for_triton("whole", WHOLE.sub("    if True:", source.text, count=1), "whole tiles")
    code = Code(assembled(module.update, capability, types, source.registers)["cubin"]).of_elements
    return {"instructions": len(code) / source.each, "waits": sum("BAR." in line for line in code)}


def code_of(kernel: gpu.Kernel, capability: int) -> dict[str, Any]:
    """What became of one of a rule's kernels, a reading perhaps."""
    source, formula = kernel.source, kernel.stage
    types = {"scalars": "*fp64" if source.real == "float64" else "*fp32"}
    read, written = moved(formula, source)
    sizes = {
        name: ITEM_SIZE[dtype]
        for name, dtype in zip(source.arrays, source.dtypes, strict=True)
        if name[0] not in formula.sides
    }
    wide = {name: size * source.each // 16 for name, size in sizes.items() if name[1] != "_base"}
    return {
        "update": compiled(kernel.update, capability, types, source.registers),
        **({} if formula.sides else of_whole_tiles(source, capability, types)),
        "operands": len(formula.operands),
        "prepare": compiled(kernel.prepare, capability, types, SIZE=gpu.TENSORS_AT_ONCE),
        "expected_loads": sum(count for (name, _), count in wide.items() if name in read),
        "expected_stores": sum(count for (name, _), count in wide.items() if name in written),
        "bytes": sum(size * ((name in read) + (name in written)) / (128 if suffix == "_base" else 1)
                     for (name, suffix), size in sizes.items()),
    }  # fmt: skip


def moved(formula: Stage, source: GpuSource) -> tuple[set[str], set[str]]:
    """Which operands a kernel reads, and which it writes."""
    blockwise = {name for name, suffix in source.arrays if suffix == "_base"}
    written = {name for name, new in formula.outputs.items() if name in blockwise or not keeps(name, new)}
    results = [formula.outputs[name] for name in written] + list(formula.gathered.values())
    results += [formula.counted] if formula.counted is not None else []
    results += [one.expression for one in formula.sums.values()] if not formula.outputs else []
    read: set[str] = set()

    def visit(x: Expression) -> None:
        if x.op == "input" and not x.scalar:
            read.add(x.args[0])
        for arg in x.args:
            if isinstance(arg, Expression):
                visit(arg)

    for result in results:
        visit(result)
    return read, written


def keeping_kernels(request: dict[str, Any], capability: int) -> dict[str, Any]:
    """What became of those that fetch scalar states and put them back."""
    return {
        "update": compiled(gpu_own.put, capability, TILE=128),
        "prepare": compiled(gpu_own.fetch, capability, TILE=128),
        "expected_loads": 0,
        "expected_stores": 0,
    }


def joining_kernel(request: dict[str, Any], capability: int) -> dict[str, Any]:
    """What became of the one that joins what tiles have found."""
    types = {"first": "*i64", "parts": "*fp32", **dict.fromkeys(("owners", "starts", "lengths", "counts"), "*i64")}
    told = {
        f"{way}": compiled(gpu_sides.join, capability, types, IS_SUM=way == "update", TILE=64, AT_ONCE=16)
        for way in ("update", "prepare")
    }
    return {**told, "expected_loads": 0, "expected_stores": 0}


def reading_kernel(request: dict[str, Any], capability: int) -> dict[str, Any]:
    """What became of a reading kernel."""
    norm = Norm("grad", request["norm_type"], zero=request["zero"], check=request["check"])
    kernel = gpu_reading.NormKernel.of_norm(norm, request["dtype"])
    return {
        "update": compiled(kernel.update, capability),
        "prepare": compiled(gpu_reading.combine, capability, TILE=256),
        "expected_loads": ITEM_SIZE[request["dtype"]] * TILE // 128 // 16,
        "expected_stores": 0,
        "bytes": ITEM_SIZE[request["dtype"]],
    }


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """For each capability what became of what was asked for."""
    kinds = {"rule": step_kernel, "dtype": reading_kernel, "joins": joining_kernel}
    of = next((one for name, one in kinds.items() if name in request), keeping_kernels)
    return {f"sm_{capability}": of(request, capability) for capability in request.get("capabilities", (80, 90))}


if __name__ == "__main__":
    json.dump([answer(request) for request in json.load(sys.stdin)], sys.stdout)
