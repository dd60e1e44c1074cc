"""PyTorch Distributed Checkpoint: its metadata as tables, its chunks as boxes, its blobs as sources."""
