"""Files that many ranks write at once, every byte by one of them."""
