"""Files of torch.save, read as data: their containers, their storages, and the tensors in them."""
