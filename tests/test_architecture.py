"""The house: imports go down only, modules stay small, and rooms keep to their own."""

import ast
from pathlib import Path

import pytest

import unshard

SOURCE = Path(unshard.__file__).parent

LAYERS = (
    {"errors", "findings", "pages", "dtypes", "progress", "sizes", "jsonable"},
    {"storage", "tensors"},
    {"checkpoint", "record"},
    {"readers", "recipes"},
    {"base"},
    {"match", "model_folder"},
    {"plan"},
    {"writers", "manifest"},
    {"engines", "measures", "checks", "inference"},
    {"proof"},
    {"inspection", "diagnosis", "comparison", "preparation", "verification", "environment"},
    {"conversion", "mending", "report"},
    {"demo", "cli", "training", "__init__", "__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# Rooms that are strangers to one another though they stand on one level.
STRANGERS = (
    {"readers", "recipes"},
    {"inspection", "diagnosis", "comparison", "preparation", "verification"},
    {"engines", "inference"},
)
TORCH_ROOMS = {"inference", "demo", "training"}
TORCH_MODULES = {"proof/forward.py", "base/model_class.py", "environment/torch_facts.py"}
# CPython's unpickler, given only classes that store what they are given; it runs in a process of its own,
# under limits of the kernel, and what it says is checked like the file itself. tests/readers/test_unpickling*
# hold it to what our own machine says.
INERT_UNPICKLER = "readers/unpickling/inert_unpickler.py"
MODULES = sorted(SOURCE.rglob("*.py"))


def name(module: Path) -> str:
    return str(module.relative_to(SOURCE))


def room(module: Path) -> str:
    return module.relative_to(SOURCE).parts[0].removesuffix(".py")


def tree(module: Path) -> ast.Module:
    return ast.parse(module.read_text())


def imported(module: Path) -> set[str]:
    """Return every module that is imported anywhere in `module`, by full name."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_used(module: Path) -> set[str]:
    parts = (dotted.split(".") for dotted in imported(module))
    return {part[1] for part in parts if part[0] == "unshard" and len(part) > 1 and part[1] in LEVEL}


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_every_room_has_a_level(module: Path) -> None:
    assert room(module) in LEVEL


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_modules_import_only_from_levels_below(module: Path) -> None:
    own = room(module)
    above = {used for used in rooms_used(module) if LEVEL[used] > LEVEL[own]}
    strangers = {used for group in STRANGERS if own in group for used in rooms_used(module) & (group - {own})}
    assert not above | strangers


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_modules_and_functions_stay_small(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= 400
    functions = [n for n in ast.walk(tree(module)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f.name for f in functions if _body_lines(f) > 60]
    assert not long


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function's body, its docstring aside."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body and body[-1].end_lineno else 0


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_no_module_can_run_a_pickle(module: Path) -> None:
    forbidden = {"pickle", "cPickle", "_pickle", "dill", "joblib", "shelve", "marshal", "pickletools"}
    used = {dotted.split(".")[0] for dotted in imported(module)} & forbidden
    assert used == ({"pickle"} if name(module) == INERT_UNPICKLER else set())
    calls = [n for n in ast.walk(tree(module)) if isinstance(n, ast.Call)]
    assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id in {"eval", "exec", "compile"}]
    loads = [c for c in calls if isinstance(c.func, ast.Attribute) and ast.unparse(c.func) == "torch.load"]
    assert not loads


def test_only_a_process_of_its_own_uses_the_inert_unpickler() -> None:
    users = [
        name(module) for module in MODULES if "unshard.readers.unpickling.inert_unpickler" in imported(module)
    ]
    assert users == ["readers/dcp/table_process.py"]


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_nothing_but_training_scripts_imports_the_room_for_them(module: Path) -> None:
    assert room(module) == "training" or "training" not in rooms_used(module)


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_only_the_rooms_that_run_models_import_torch(module: Path) -> None:
    heavy = {"torch", "transformers", "accelerate"} & {dotted.split(".")[0] for dotted in imported(module)}
    allowed = room(module) in TORCH_ROOMS or name(module) in TORCH_MODULES
    assert allowed or not heavy


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_names_tell_what_a_module_is_for(module: Path) -> None:
    assert module.stem not in {"utils", "common", "helpers", "core", "misc"}
    assert module.stem != "base" or module.parent == SOURCE
