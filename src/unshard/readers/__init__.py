"""One file per layout: recognise it, and describe its tensors without reading them."""
