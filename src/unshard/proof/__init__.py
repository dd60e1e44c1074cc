"""Proof: what lies on disk is read again, by other means than those that wrote it."""
