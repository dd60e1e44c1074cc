"""The demonstration: two FSDP processes teach a small model new facts, and the main job serves it."""
