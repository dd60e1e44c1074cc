"""Names as data: wrappers, tied pairs, tensors a model computes itself."""
