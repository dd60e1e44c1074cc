"""For training scripts: save a model whole, record how it was trained, and go on from what was saved.

Needs torch; nothing else of the package imports this room.
"""
