"""Products of whole matrices, for optimizers that see a parameter as a matrix: polar factors and what they are made of."""
