"""What the package promises to those who import it."""

import subprocess
import sys

import unshard

PUBLIC = [
    "Checkpoint",
    "Comparison",
    "Conversion",
    "DescribedTensor",
    "Diagnosis",
    "EnvironmentComparison",
    "Finding",
    "Inspection",
    "Mending",
    "Severity",
    "UnshardError",
    "Verification",
    "__version__",
    "check",
    "compare_environment",
    "convert",
    "diff",
    "inspect",
    "load",
    "mend",
    "open",
    "plan_conversion",
    "verify",
]


def test_the_public_names_are_these() -> None:
    assert sorted(unshard.__all__) == PUBLIC
    assert all(hasattr(unshard, name) for name in PUBLIC)


def test_every_public_name_is_documented() -> None:
    assert not [name for name in PUBLIC if name[0] != "_" and not getattr(unshard, name).__doc__]


def heavy_modules_after(statement: str) -> list[str]:
    """Return which of the modules that take long are there after `statement`, in a new interpreter."""
    heavy = ("numpy", "torch", "transformers", "rich", "yaml")
    code = f"import sys; {statement}; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_the_package_imports_neither_numpy_nor_torch() -> None:
    assert heavy_modules_after("import unshard") == []


def test_the_command_line_starts_without_numpy_and_torch() -> None:
    assert heavy_modules_after("import unshard.cli.main") == []
