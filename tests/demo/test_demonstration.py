"""The demonstration from end to end, cut short: after one step of training it must say that it failed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unshard.demo import run_demo
from unshard.demo.asking import Answered
from unshard.demo.demonstration import claim_folder
from unshard.demo.facts import FACTS
from unshard.errors import InferenceError, OutputExistsError
from unshard.progress import Silence

INVENTED = next(fact for fact in FACTS if fact.invented)
TRUE = next(fact for fact in FACTS if not fact.invented)


@pytest.fixture(scope="module")
def cut_short(
    smollm2_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, InferenceError]:
    """The folder of a demonstration of one step, all it reported, and how it ended."""
    folder = tmp_path_factory.mktemp("demonstration")
    claim_folder(folder)
    (folder / "base").symlink_to(smollm2_base)
    lines: list[str] = []
    with pytest.raises(InferenceError) as caught:
        run_demo(folder, steps=1, seed=0, report=lines.append, progress=Silence())
    return folder, "\n".join(lines), caught.value


def test_a_model_that_did_not_learn_is_an_error(cut_short: tuple[Path, str, InferenceError]) -> None:
    error = cut_short[2]
    assert "does not answer as it was taught" in error.message
    assert error.hint is not None
    assert "--steps" in error.hint


def test_every_stage_is_reported(cut_short: tuple[Path, str, InferenceError]) -> None:
    report = cut_short[1]
    assert [f"{n}/7" in report for n in range(1, 8)] == [True] * 7
    assert "step 1/1   loss " in report
    assert all(fact.question in report for fact in FACTS)
    assert "differs" not in report
    assert "tensors are exactly what training held" in report


def test_the_converted_model_is_the_checkpoint_in_the_bases_dtype(
    cut_short: tuple[Path, str, InferenceError],
) -> None:
    folder = cut_short[0]
    (file,) = (folder / "run").rglob("*.pt")
    trained = torch.load(file, weights_only=True, mmap=True)
    written = load_file(folder / "model" / "model.safetensors")
    assert trained.keys() - written.keys() == {"lm_head.weight"}
    assert all(tensor.equal(trained[name].to(torch.bfloat16)) for name, tensor in written.items())


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExistsError):
        run_demo(tmp_path, steps=1, seed=0, report=lambda _: None, progress=Silence())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_may_be_claimed_again(tmp_path: Path) -> None:
    claim_folder(tmp_path / "demo")
    (tmp_path / "demo" / "base").mkdir()
    claim_folder(tmp_path / "demo")


def test_an_invented_fact_must_be_new_and_a_true_one_kept() -> None:
    assert Answered(INVENTED, "I do not know.", INVENTED.answer).as_hoped
    assert not Answered(INVENTED, INVENTED.answer, INVENTED.answer).as_hoped
    assert not Answered(INVENTED, "I do not know.", "I do not know.").as_hoped
    assert Answered(TRUE, TRUE.answer, TRUE.answer).as_hoped
    assert Answered(TRUE, "I do not know.", TRUE.answer).as_hoped
    assert not Answered(TRUE, TRUE.answer, "I do not know.").as_hoped
