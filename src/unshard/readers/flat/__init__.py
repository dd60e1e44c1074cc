"""Flat parameters: all parameters of a part of the model in one vector, cut into equal ranges for the ranks.

`vectors` puts the ranges of a vector together and takes parameters out of it. What tells where they are
differs: `slices` has a range of every parameter under its name, `units` has only vectors and needs the
order in which the model registers its parameters, and fairscale's files tell all of it.
"""
