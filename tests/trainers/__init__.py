"""Real training runs of tiny models: what they leave on disk is what the tests read."""
