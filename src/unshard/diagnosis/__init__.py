"""What is wrong with a run or a model, before anybody relies on it: `unshard check`."""

from unshard.diagnosis.checking import check
from unshard.diagnosis.description import Diagnosis, JudgedTensor, StepVerdict

__all__ = ["Diagnosis", "JudgedTensor", "StepVerdict", "check"]
