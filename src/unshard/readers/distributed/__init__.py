"""Parts of distributed tensors, as torch pickles them, and how the parts of all ranks make tensors.

`dtensor`, `device_mesh` and `sharded_tensor` read the records, `placements` is pure geometry,
`rank_states` says what one rank saved, and `uniting` puts the ranks together.
"""
