"""The demonstration: two FSDP processes teach a small real model new facts, and the main job makes it usable."""
