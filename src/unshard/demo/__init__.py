"""The demonstration: two FSDP processes teach a small real model facts, and the main job makes it usable."""

from unshard.demo.demonstration import Demonstration, Report, run_demo

__all__ = ["Demonstration", "Report", "run_demo"]
