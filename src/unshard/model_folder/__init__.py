"""A Hugging Face folder as it is, broken or not: every file of it that a model is made of."""

from unshard.model_folder.description import JsonFile, ModelFolder, Unreadable, WeightsOfFile

__all__ = ["JsonFile", "ModelFolder", "Unreadable", "WeightsOfFile"]
