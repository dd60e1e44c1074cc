"""Carrying out a plan: the only room with threads."""
