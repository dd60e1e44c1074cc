"""The software and hardware of this machine, beside those that a model was trained on."""

from unshard.environment.comparing import compare_environment
from unshard.environment.description import EnvironmentComparison, Line

__all__ = ["EnvironmentComparison", "Line", "compare_environment"]
