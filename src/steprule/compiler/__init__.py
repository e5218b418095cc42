"""The CPU engine's compiler: of the Python in which kernels are written, to machine code by LLVM, in a tenth of a second.

Functions are typed as they are called, and every call is inlined: a kernel is one function of machine code. What it knows is what
kernels need: numbers, addresses and tuples of them, loops, conditions, and `Instruction`.
"""
