"""The CPU engine's compiler: of the Python in which kernels are written, to machine code by LLVM, in some tenths of a second.

Functions are typed as they are called, and calls are inlined but for those of a loop that is `apart`. What it knows is what
kernels need: numbers, addresses and tuples of them, loops, conditions, and `Instruction`.
"""
