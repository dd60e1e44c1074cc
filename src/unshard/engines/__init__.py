"""Engines carry out a plan. This is the only room with threads."""
