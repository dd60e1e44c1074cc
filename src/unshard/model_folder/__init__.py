"""A Hugging Face folder as it is, broken or not: every file of it that a model is made of."""

from unshard.model_folder.description import JsonFile, ModelFolder, Unreadable, WeightsOfFile
from unshard.model_folder.reading import read_model_folder

__all__ = ["JsonFile", "ModelFolder", "Unreadable", "WeightsOfFile", "read_model_folder"]
