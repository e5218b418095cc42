"""Engines run a rule over tensors: cpu and gpu in one compiled pass over all of them, the eager fallback array by array."""
