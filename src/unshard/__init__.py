"""Any training checkpoint in, a verified, servable model out."""

__version__ = "0.1.0"
