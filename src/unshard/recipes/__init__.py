"""What is known about names: wrappers, ties, tensors a model computes itself. Data, and what reads it."""
