"""A model in training as it is published: its tensors, names and files, decided to the last byte."""
