"""Torch tensors: where they lie in memory, and what the states of a parameter are kept as."""
