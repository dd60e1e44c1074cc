"""What the package promises to those who import it."""

import subprocess
import sys

import unshard

PUBLIC = [
    "Checkpoint",
    "Conversion",
    "DescribedTensor",
    "Finding",
    "Inspection",
    "Severity",
    "UnshardError",
    "Verification",
    "__version__",
    "convert",
    "inspect",
    "load",
    "open",
    "plan_conversion",
    "verify",
]


def test_the_public_names_are_these() -> None:
    assert sorted(unshard.__all__) == PUBLIC
    assert all(hasattr(unshard, name) for name in PUBLIC)


def test_every_public_name_is_documented() -> None:
    assert not [name for name in PUBLIC if name[0] != "_" and not getattr(unshard, name).__doc__]


def test_importing_the_package_imports_neither_numpy_nor_torch() -> None:
    code = "import sys, unshard; print(*sorted({'numpy', 'torch', 'transformers', 'rich', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_command_line_starts_without_numpy_and_torch() -> None:
    code = "import sys, unshard.cli.main; print(*sorted({'numpy', 'torch', 'transformers', 'rich', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
