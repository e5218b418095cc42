"""Stages of a program as the source of kernels, for the CPU engine and for Triton, and the files that they are kept in."""
