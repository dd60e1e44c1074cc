"""The ranks of a training as one: they agree, fail together, and miss nobody."""
