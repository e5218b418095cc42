"""Engines run a rule over tensors: cpu (one compiled pass over all of them) and eager (array by array)."""
