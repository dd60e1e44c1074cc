"""The demonstration: two FSDP processes teach a small real model facts, and the main job makes it usable."""
