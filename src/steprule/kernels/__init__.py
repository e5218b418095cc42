"""Stages of a program as the source of kernels, for Numba and for Triton, and the files that they are kept in."""
