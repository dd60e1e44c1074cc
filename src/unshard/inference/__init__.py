"""Running a model: load, check, generate. Needs torch and transformers."""
