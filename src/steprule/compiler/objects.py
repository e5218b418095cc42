"""Machine code: made of a function, and loaded."""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir

from steprule.compiler.body import Body
from steprule.compiler.builder import function_of
from steprule.compiler.functions import Function
from steprule.compiler.values import INT64, CompileError, Value, converted

_addresses: dict[str, int] = {}


def written(function: Function, name: str) -> ir.Module:
    """A function of int64, which returns one or nothing, in LLVM's language.

    Args:
        function: the function.
        name: what it is called there: like no other that is loaded.

    Raises:
        CompileError: it is none that this compiler takes.
    """
    module = ir.Module()
    module.triple, module.data_layout = llvm.get_process_triple(), str(_machine().target_data)
    kind = ir.FunctionType(INT64.llvm, [INT64.llvm] * len(function.tree.args.args))
    whole, builder = function_of(module, name, kind)
    result = Body(function, builder).run([Value(INT64, x) for x in whole.args])
    if isinstance(result, tuple):
        raise CompileError(f"{function.tree.name} returns several, where one number or none is returned")
    builder.ret(INT64.llvm(0) if result is None else converted(builder, result, INT64).llvm)
    return module


def compiled(function: Function, name: str) -> bytes:
    """Its machine code for this processor. Arguments and errors are those of `written`."""
    context, machine = llvm.create_context(), _machine()  # a context of its own goes with its module
    module = llvm.parse_assembly(str(written(function, name)), context)
    module.verify()
    tuning = llvm.create_pipeline_tuning_options()
    tuning.speed_level, tuning.loop_vectorization, tuning.slp_vectorization = 3, True, False
    passes = llvm.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(module, passes)
    return machine.emit_object(module)  # type: ignore[no-any-return]


def loaded(code: bytes, name: str) -> int:
    """The address of the function that has this name in some machine code, for as long as this process is.

    The same name is the same function. One thread at a time may call this.

    Raises:
        ValueError: there is none.
    """
    if name in _addresses:
        return _addresses[name]
    _engine().add_object_file(llvm.ObjectFileRef.from_data(code))
    _engine().finalize_object()
    address = int(_engine().get_function_address(name))
    if not address:
        raise ValueError(f"the machine code has no {name}")
    _addresses[name] = address
    return address


def processor() -> tuple[str, str]:
    """What machine code is made for: the processor's name, and what it can do, as far as LLVM finds it out."""
    try:
        return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    except RuntimeError:
        return llvm.get_host_cpu_name(), ""


@cache
def _engine() -> Any:
    """What has machine code in memory. It takes a machine of its own."""
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())


@cache
def _machine() -> Any:
    """What machine code is made by."""
    return _target_machine()


def _target_machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    relocation = "static" if target.name.startswith("x86") else "default"
    return target.create_target_machine(*processor(), opt=3, reloc=relocation, codemodel="jitdefault", jit=True)
