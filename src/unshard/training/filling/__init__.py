"""The way back: any checkpoint led to the names of a model in training, every rank with its own parts."""
