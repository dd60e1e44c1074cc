"""What differences mean: every rule where it holds and where not, and a training on this very machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from records_by_hand import (
    H100,
    MODEL,
    ON_CPU,
    ON_GPUS,
    T4,
    codes,
    compared,
    inferred,
    line,
    record,
    with_packages,
)
from unshard.environment.description import Fact, Training
from unshard.environment.rules import RULES
from unshard.environment.this_machine import UNUSABLE, memory_bytes, this_environment
from unshard.findings import RULES as FINDINGS
from unshard.findings import Severity
from unshard.record.description import Distribution, Environment, Precision, Record, RecordTensor

Case = tuple[Training | Record, Environment]
GIB = 1 << 30


def weights(gib: int, dtype: str = "bfloat16") -> Record:
    """Return a record of weights of so many GiB."""
    size = 4 if dtype == "float32" else 2
    return record(tensors={"w": RecordTensor((gib * GIB // size,), dtype, {})})


def attention(name: str, **config: object) -> Record:
    return record(model=replace(MODEL, attention=name, config={"model_type": "llama", **config}))


def computing(dtype: str, environment: Environment = ON_GPUS) -> Record:
    return record(environment, distribution=Distribution("fsdp2", precision=Precision(parameters=dtype)))


def quantised(method: str) -> Record:
    config = {"model_type": "llama", "quantization_config": {"quant_method": method}}
    return record(model=replace(MODEL, config=config))


def needing(package: str, versions: str) -> Training:
    return replace(inferred(), needs={package: Fact(versions, "a test")})


TF32 = replace(ON_GPUS, settings={"allow_tf32": "True"})
FLASH = with_packages(ON_GPUS, flash_attn="2.8.3")
NEWER = with_packages(ON_GPUS, transformers="5.23.0")
BFLOAT16_DEFAULT = replace(ON_GPUS, default_dtype="bfloat16")
OLD_GPU = replace(ON_GPUS, devices=(T4,), bfloat16=False)
ADAPTED = record(model=replace(MODEL, adapter={"default": {}}))

# For every code: a case in which it is told, and one like it in which it is not.
CASES: dict[str, tuple[Case, Case]] = {
    "U001": ((inferred(), ON_GPUS), (record(), ON_GPUS)),
    "U002": ((record(), with_packages(ON_CPU, accelerate=None)), (record(), ON_CPU)),
    "U003": ((ADAPTED, ON_GPUS), (ADAPTED, with_packages(ON_GPUS, peft="0.18.0"))),
    "U004": ((needing("torch", ">=2.10"), ON_GPUS), (needing("torch", ">=2.5"), ON_GPUS)),
    "U005": (
        (record(), with_packages(ON_GPUS, torch="2.7.1")),
        (record(), with_packages(ON_GPUS, torch="2.6.1+cpu")),
    ),
    "U006": ((record(NEWER), ON_GPUS), (record(), NEWER)),
    "U007": ((record(), NEWER), (record(), with_packages(ON_GPUS, transformers="4.57.0"))),
    "U008": (
        (inferred(model_type="model-of-2031"), NEWER),
        (replace(inferred(model_type="model-of-2031"), config={"auto_map": {}}), NEWER),
    ),
    "U009": (
        (needing("tokenizers", ">=0.20"), with_packages(ON_GPUS, tokenizers="0.19.1")),
        (needing("tokenizers", ">=0.20"), ON_GPUS),
    ),
    "U010": (
        (record(), replace(ON_GPUS, python="3.10.14")),
        (record(), replace(ON_GPUS, python="3.11.2")),
    ),
    "U011": ((weights(800), ON_GPUS), (weights(600), ON_GPUS)),
    "U012": (
        (weights(20), replace(ON_GPUS, devices=(replace(T4, count=1),))),
        (weights(20), replace(ON_GPUS, devices=(replace(T4, count=2),))),
    ),
    "U013": ((record(), OLD_GPU), (computing("float16"), OLD_GPU)),
    "U014": ((record(), ON_CPU), (record(ON_CPU), ON_CPU)),
    "U015": ((computing("float16"), ON_GPUS), (computing("float32"), ON_GPUS)),
    "U016": ((record(BFLOAT16_DEFAULT), ON_GPUS), (record(), ON_GPUS)),
    "U017": ((attention("eager"), ON_GPUS), (attention("sdpa"), ON_GPUS)),
    "U018": (
        (attention("sdpa", attn_implementation="flash_attention_2"), ON_GPUS),
        (attention("sdpa", attn_implementation="flash_attention_2"), FLASH),
    ),
    "U019": ((computing("float32", TF32), ON_GPUS), (computing("bfloat16", TF32), ON_GPUS)),
    "U020": ((inferred(accelerator="cuda or rocm"), ON_CPU), (inferred(accelerator="cuda or rocm"), ON_GPUS)),
    "U021": ((record(), replace(ON_CPU, devices=(H100,))), (record(), ON_CPU)),
    "U022": (
        (record(), replace(ON_GPUS, devices=(replace(H100, name="NVIDIA A100"),))),
        (record(), replace(ON_GPUS, devices=(replace(H100, count=1),))),
    ),
    "U023": (
        (quantised("bitsandbytes"), ON_GPUS),
        (quantised("bitsandbytes"), with_packages(ON_GPUS, bitsandbytes="0.48.0")),
    ),
    "U024": ((inferred(quantised_base="quantization: 4bit"), ON_GPUS), (inferred(), ON_GPUS)),
}


@pytest.mark.parametrize("code", CASES)
def test_a_difference_is_told_where_it_has_the_consequence(code: str) -> None:
    assert code in codes(*CASES[code][0])


@pytest.mark.parametrize("code", CASES)
def test_a_difference_without_the_consequence_is_not_told(code: str) -> None:
    assert code not in codes(*CASES[code][1])


def test_every_code_of_the_environment_has_cases() -> None:
    own = {code for code in FINDINGS if code.startswith("U0")}
    assert own == CASES.keys() == {rule.code for rules in RULES.values() for rule in rules}


def test_whatever_is_worse_than_a_fact_says_what_to_do() -> None:
    rules = [rule for several in RULES.values() for rule in several]
    assert all(rule.remedy for rule in rules if FINDINGS[rule.code].severity is not Severity.INFO)


@pytest.mark.parametrize("environment", [ON_GPUS, ON_CPU, FLASH, NEWER, TF32])
def test_the_environment_of_training_itself_gives_no_finding(environment: Environment) -> None:
    comparison = compared(record(environment), environment)
    assert comparison.findings == ()
    assert {one.verdict for one in comparison.lines} <= {"same", "enough", "only here", "only there"}


def test_a_training_on_this_very_machine_gives_no_finding() -> None:
    machine = this_environment()
    assert compared(record(machine), machine, memory=memory_bytes()).findings == ()


@pytest.mark.parametrize("package", ["torch", "transformers", "accelerate"])
def test_each_package_that_runs_models_is_missed(package: str) -> None:
    comparison = compared(record(), with_packages(ON_GPUS, **{package: None}))
    assert [(f.code, f.subject) for f in comparison.findings] == [("U002", package)]
    assert not comparison.is_harmless


def test_a_torch_that_does_not_load_is_told_with_its_reason() -> None:
    broken = replace(ON_CPU, settings={UNUSABLE: "libcudart.so.12: cannot open shared object file"})
    told = line(compared(record(), broken), UNUSABLE)
    assert told.code == "U002"
    assert "libcudart" in str(told.here)


def test_versions_that_were_inferred_are_the_same_where_this_one_is_among_them() -> None:
    within = compared(inferred(torch=">=2.5,<2.10"), ON_GPUS)
    assert line(within, "torch").verdict == "same"
    assert line(within, "torch").evidence == "a test"
    assert line(compared(inferred(torch="<2.5"), ON_GPUS), "torch").code == "U005"
    assert line(compared(inferred(torch=">=2.10"), ON_GPUS), "torch").code == "U005"


def test_files_that_are_too_new_matter_more_than_the_version_that_wrote_them() -> None:
    training = replace(inferred(torch=">=2.10"), needs={"torch": Fact(">=2.10", "a test")})
    assert line(compared(training, ON_GPUS), "torch").code == "U004"


def test_an_old_torch_that_wrote_no_new_classes_is_no_obstacle() -> None:
    comparison = compared(record(), with_packages(ON_GPUS, torch="2.4.0"))
    assert line(comparison, "torch").code == "U005"
    assert comparison.is_harmless


@pytest.mark.parametrize(
    ("training", "here", "words"),
    [
        (attention("flash_attention_2"), ON_CPU, "sdpa takes its place"),
        (attention("flash_attention_2", sliding_window=4096), ON_CPU, "sliding window"),
        (attention("flash_attention_2"), FLASH, "asked for"),
    ],
)
def test_flash_attention_is_told_by_what_runs_in_its_place(
    training: Record, here: Environment, words: str
) -> None:
    told = line(compared(training, here), "attention")
    assert told.code == "U017"
    assert words in str(told.means)
    assert "sliding" not in str(told.means) or "sliding" in words


def test_flash_attention_without_a_gpu_is_refused_even_where_its_package_is() -> None:
    asked = attention("sdpa", attn_implementation="flash_attention_2")
    assert "U018" in codes(asked, replace(FLASH, accelerator="cpu"))


def test_weights_that_fit_in_16_bits_alone_are_told_to_be_cast() -> None:
    told = line(compared(weights(100, "float32"), ON_CPU, memory=64 * GIB), "memory")
    assert told.code == "U012"
    assert "--dtype bfloat16" in str(told.remedy)
    assert line(compared(weights(60, "float32"), ON_CPU, memory=64 * GIB), "memory").code is None


def test_devices_that_torch_does_not_use_hold_no_weights() -> None:
    idle = replace(ON_CPU, devices=(replace(T4, count=1),))
    assert codes(weights(20), idle) & {"U011", "U012"} == set()
    assert "U011" in codes(weights(100), replace(ON_CPU, devices=(replace(H100, count=8),)))


def test_numbers_that_are_no_floats_are_not_halved() -> None:
    integers = record(tensors={"w": RecordTensor((30 * GIB // 4,), "int32", {})})
    assert "U011" in codes(integers, ON_CPU, memory=20 * GIB)
    assert "U011" not in codes(weights(30, "float32"), ON_CPU, memory=20 * GIB)


def test_autocast_decides_what_training_computed_in() -> None:
    precision = Precision(parameters="float32", autocast="float16")
    mixed = record(distribution=Distribution("ddp", precision=precision))
    assert line(compared(mixed, ON_GPUS), "dtype of computing").training == "float16"


def test_memory_that_is_not_known_is_no_obstacle() -> None:
    assert not {"U011", "U012"} & codes(weights(800), replace(ON_GPUS, devices=()), memory=None)


@pytest.mark.parametrize("value", ["", "nonsense", "9" * 400, "1.2.3.4.5.6.7.8.9", "v", "-1"])
def test_versions_that_mean_nothing_are_shown_and_decide_nothing(value: str) -> None:
    comparison = compared(record(with_packages(ON_GPUS, torch=value, transformers=value)), ON_GPUS)
    assert comparison.findings == ()
    assert line(comparison, "torch").verdict == "different"


def test_types_of_models_are_looked_up_in_the_installed_transformers(tmp_path: Path) -> None:
    assert line(compared(record(), NEWER), "model type").here == "known to transformers 5.23.0"
    hostile = inferred(model_type='llama"; import os')
    assert line(compared(hostile, NEWER), "model type").here is None


def test_this_machine_alone_is_described_without_a_finding() -> None:
    comparison = compared(Training(), ON_GPUS)
    assert comparison.findings == ()
    assert {one.verdict for one in comparison.lines} == {"only here"}


CHANGES: dict[str, Callable[[Environment], Environment]] = {
    "driver": lambda e: replace(e, runtimes={**e.runtimes, "driver": "570.1"}),
    "system": lambda e: replace(e, system="Linux 6.8 x86_64, glibc 2.39"),
    "safetensors": lambda e: with_packages(e, safetensors="0.7.0"),
    "accelerate": lambda e: with_packages(e, accelerate="1.11.0"),
    "deterministic_algorithms": lambda e: replace(e, settings={"deterministic_algorithms": "True"}),
}


@pytest.mark.parametrize("aspect", CHANGES)
def test_what_has_no_consequence_is_different_and_no_finding(aspect: str) -> None:
    comparison = compared(record(CHANGES[aspect](ON_GPUS)), ON_GPUS)
    assert line(comparison, aspect).verdict == "different"
    assert comparison.findings == ()
