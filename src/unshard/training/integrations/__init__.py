"""Adapters for trainers that people already use; each needs its own trainer, and nothing imports them."""
