"""The software and hardware of this machine, beside those that a model was trained on."""
