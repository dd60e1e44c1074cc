"""One file per output format: from tensors to files planned to the byte."""
