"""Repairs of a model folder that is broken, without the run that it came from."""
