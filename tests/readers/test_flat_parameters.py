"""FSDP1's LOCAL_STATE_DICT: flat parameters of real runs, and what does not fit them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from awkward import Value, read_values, true_values
from known_shapes import knowing, shapes_of
from reader_suite import opened
from safetensors.torch import load_file, save_file

from trainers.catalogue import TrainedCheckpoint
from trainers.flat_parameters import leave_in_dcp
from trainers.ranks import run_ranks
from unshard import inspect
from unshard.base import find_base
from unshard.checkpoint import Checkpoint
from unshard.conversion import convert
from unshard.errors import BaseModelError, InputError, UnsafeFileError
from unshard.match import with_shapes
from unshard.readers.distributed.rank_states import (
    RankState,
    RankTensor,
    SharedLayouts,
    describe_rank_state,
)
from unshard.readers.flat.flat_states import describe_flat
from unshard.readers.flat.units import FlatUnits
from unshard.readers.torch_save.torch_objects import StoredTensor
from unshard.storage.files import InputFile

UNITS = ("flat", "flat-tied", "flat-four", "flat-checkpointed")
SLICES = ("flat-original", "flat-original-tied", "flat-original-four")
EXPERTS = ("flat-mixtral", "flat-original-mixtral")
AWKWARD = ("flat-awkward", "flat-original-awkward")

Runs = Mapping[str, TrainedCheckpoint]


def file_of(rank: int) -> str:
    return f"pytorch_model_fsdp_rank{rank}.bin"


def with_base(run: TrainedCheckpoint, path: Path | None = None) -> Checkpoint:
    """Return a checkpoint in the shapes of its base."""
    checkpoint = opened(path or run.path)
    base, _ = find_base(checkpoint, reference=str(run.base), download=False)
    return with_shapes(checkpoint, base, accept_inferred=False)


def truth_of(run: TrainedCheckpoint) -> dict[str, Value]:
    return true_values(load_file(run.truth))


def state_of(path: Path, rank: int) -> RankState:
    return describe_rank_state(InputFile.describe(path), rank, select=None, shared=SharedLayouts())


def without_wrappers(values: Mapping[str, Value]) -> dict[str, Value]:
    return {name.replace("_checkpoint_wrapped_module.", ""): value for name, value in values.items()}


@pytest.fixture
def copied(trained_checkpoints: Runs, tmp_path: Path) -> Path:
    """A checkpoint of vectors to be damaged."""
    shutil.copytree(trained_checkpoints["flat"].path, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def copied_slices(trained_checkpoints: Runs, tmp_path: Path) -> Path:
    """A checkpoint of slices to be damaged."""
    shutil.copytree(trained_checkpoints["flat-original"].path, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("trained_checkpoint", [*UNITS, *SLICES, *EXPERTS], indirect=True)
def test_every_parameter_is_bit_for_bit_what_training_held(trained_checkpoint: TrainedCheckpoint) -> None:
    checkpoint, truth = with_base(trained_checkpoint), truth_of(trained_checkpoint)
    found = without_wrappers(read_values(checkpoint.tensors))
    # A pair that is shared is once in a vector, and has a slice under each name.
    alone = {"lm_head.weight"} if trained_checkpoint.run.tied and "lm_head.weight" not in found else set()
    assert found == {name: value for name, value in truth.items() if name not in alone}
    assert not [finding.code for finding in checkpoint.findings if finding.code == "U120"]


@pytest.mark.parametrize("trained_checkpoint", [*UNITS, *SLICES, *EXPERTS], indirect=True)
def test_a_run_becomes_a_model(trained_checkpoint: TrainedCheckpoint, tmp_path: Path) -> None:
    run = trained_checkpoint
    assert run.base is not None
    done = convert(run.path, tmp_path / "out", base=run.base, durable=False)
    assert {level.name: level.verdict for level in done.proof} == {"bytes": "sound", "structure": "sound"}


@pytest.mark.parametrize("trained_checkpoint", AWKWARD, indirect=True)
def test_odd_buffers_are_whole_on_every_rank_and_taken_once(trained_checkpoint: TrainedCheckpoint) -> None:
    truth = load_file(trained_checkpoint.truth)
    shapes = shapes_of(truth)
    del shapes["tied.weight"]  # it is `wide.weight`, and in a vector once
    checkpoint = with_shapes(opened(trained_checkpoint.path), knowing(shapes), accept_inferred=False)
    found = read_values(checkpoint.tensors)
    assert found == {name: value for name, value in true_values(truth).items() if name in found}
    assert truth.keys() - found.keys() <= {"tied.weight"}
    assert checkpoint.storages.keys() == found.keys()


def test_slices_of_a_shared_pair_are_told_to_be_one(trained_checkpoints: Runs) -> None:
    storages = with_base(trained_checkpoints["flat-original-tied"]).storages
    assert (
        storages["lm_head.weight"] == storages["model.embed_tokens.weight"] != storages["model.norm.weight"]
    )


@pytest.mark.parametrize("name", ["flat", "flat-original"])
def test_ranks_that_hold_the_same_ranges_are_replicas(
    name: str, trained_checkpoints: Runs, tmp_path: Path
) -> None:
    """Hybrid sharding cuts for one group of ranks; another group holds the same."""
    run = trained_checkpoints[name]
    states = [state_of(run.path / file_of(rank), rank) for rank in (0, 1)]
    again = [replace(state, file=f"again-{state.file}", rank=state.rank + 2) for state in states]
    flat = describe_flat([*states, *again], run.path)
    assert flat is not None
    base, _ = find_base(opened(run.path), reference=str(run.base), download=False)
    checkpoint = replace(opened(run.path), unshaped=flat.unshaped, replicas=flat.replicas)
    assert read_values(with_shapes(checkpoint, base, accept_inferred=False).tensors) == truth_of(run)
    assert {replica.name.rpartition(".")[2] for replica in flat.replicas} == {"_flat_param"}
    assert all(replica.kept.count == replica.other.count > 0 for replica in flat.replicas)


def test_slices_of_ranges_that_were_moved_to_another_device_are_put_together(
    trained_checkpoints: Runs,
) -> None:
    """With `offload_to_cpu` the ranges are copies, and slices are views of nothing that was saved."""
    run = trained_checkpoints["flat-original-four"]
    states = []
    for rank in (2, 0, 3, 1):
        state = state_of(run.path / file_of(rank), rank)
        moved: dict[str, RankTensor] = {
            name: replace(tensor, storage=replace(tensor.storage, key=f"moved-{tensor.storage.key}"))
            if isinstance(tensor, StoredTensor)
            else tensor
            for name, tensor in state.tensors.items()
        }
        states.append(replace(state, tensors=moved))
    flat = describe_flat(states, run.path)
    assert flat is not None
    checkpoint = replace(opened(run.path), unshaped=flat.unshaped)
    base, _ = find_base(checkpoint, reference=str(run.base), download=False)
    assert read_values(with_shapes(checkpoint, base, accept_inferred=False).tensors) == truth_of(run)


@pytest.mark.parametrize("other", ["layers.1.mlp.gate_proj", "layers.0.mlp.up_proj"])
def test_a_slice_that_does_not_follow_the_one_before_is_refused(
    other: str, trained_checkpoints: Runs
) -> None:
    run = trained_checkpoints["flat-original"]
    first, second = (state_of(run.path / file_of(rank), rank) for rank in (0, 1))
    changed = dict(second.tensors)
    changed["model.layers.0.mlp.gate_proj.weight"] = changed[f"model.{other}.weight"]
    with pytest.raises(UnsafeFileError, match=r"holds slices of `model\.layers\.0\.mlp\.gate_proj\.weight`"):
        describe_flat([first, replace(second, tensors=changed)], run.path)


@pytest.mark.parametrize("name", ["flat", "flat-original"])
def test_a_missing_rank_is_refused_before_anything_is_read(
    name: str, trained_checkpoints: Runs, tmp_path: Path
) -> None:
    run = trained_checkpoints[name]
    for rank in (0, 1):
        copy = tmp_path / str(rank)
        shutil.copytree(run.path, copy)
        (copy / file_of(rank)).unlink()
        with pytest.raises(InputError, match=file_of(rank)):
            opened(copy)


@pytest.mark.parametrize("name", ["flat", "flat-original"])
def test_a_file_cut_anywhere_is_refused(name: str, trained_checkpoints: Runs, tmp_path: Path) -> None:
    run = trained_checkpoints[name]
    size = (run.path / file_of(1)).stat().st_size
    for kept in (0, 100, size // 2, size - 1):
        copy = tmp_path / str(kept)
        shutil.copytree(run.path, copy)
        with (copy / file_of(1)).open("r+b") as file:
            file.truncate(kept)
        with pytest.raises(InputError, match=file_of(1)):
            opened(copy)


@pytest.mark.parametrize("name", ["flat", "flat-original", "flat-four", "flat-original-four"])
def test_files_whose_names_were_exchanged_are_refused_or_put_in_order(
    name: str, trained_checkpoints: Runs, tmp_path: Path
) -> None:
    run = trained_checkpoints[name]
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / file_of(0)).rename(tmp_path / "kept")
    (tmp_path / "run" / file_of(1)).rename(tmp_path / "run" / file_of(0))
    (tmp_path / "kept").rename(tmp_path / "run" / file_of(1))
    try:
        found = read_values(with_base(run, tmp_path / "run").tensors)
    except UnsafeFileError:
        return
    assert found == truth_of(run)


def test_a_rank_of_another_run_is_refused(trained_checkpoints: Runs, copied: Path) -> None:
    shutil.copy(trained_checkpoints["flat-original"].path / file_of(1), copied / file_of(1))
    with pytest.raises(InputError):
        opened(copied)


def test_slices_of_another_run_are_refused(trained_checkpoints: Runs, copied_slices: Path) -> None:
    shutil.copy(trained_checkpoints["flat-original-tied"].path / file_of(1), copied_slices / file_of(1))
    with pytest.raises(InputError):
        opened(copied_slices)


@pytest.mark.parametrize("change", [{"model.norm.weight": (47,)}, {"lm_head.weight": (516, 48)}])
@pytest.mark.parametrize("name", ["flat", "flat-original"])
def test_a_base_of_another_size_is_refused_with_numbers(
    name: str, change: dict[str, tuple[int, ...]], trained_checkpoints: Runs
) -> None:
    run = trained_checkpoints[name]
    shapes = shapes_of(load_file(run.truth)) | change
    for accept in (False, True):  # nothing can be inferred
        with pytest.raises(BaseModelError, match=r"has [\d,]+ elements, "):
            with_shapes(opened(run.path), knowing(shapes), accept_inferred=accept)


def test_a_parameter_more_or_less_is_refused(trained_checkpoints: Runs) -> None:
    run = trained_checkpoints["flat"]
    shapes = shapes_of(load_file(run.truth))
    fewer = {name: shape for name, shape in shapes.items() if name != "model.norm.weight"}
    for other in (shapes | {"model.layers.0.mlp.up_proj.bias": (75,)}, fewer):
        with pytest.raises(BaseModelError, match="has other parameters than the 3 flat parameters"):
            with_shapes(opened(run.path), knowing(other), accept_inferred=False)


def test_two_shapes_of_one_length_cannot_be_told_apart_and_the_bases_is_taken(
    trained_checkpoints: Runs,
) -> None:
    run = trained_checkpoints["flat-original"]
    shapes = shapes_of(load_file(run.truth)) | {"lm_head.weight": (48, 515)}
    checkpoint = with_shapes(opened(run.path), knowing(shapes), accept_inferred=False)
    assert checkpoint.tensors["lm_head.weight"].shape == (48, 515)


@pytest.mark.parametrize(
    ("name", "message"), [("flat", "without the names and shapes"), ("flat-original", "ranges of flattened")]
)
def test_without_a_base_nothing_can_be_inferred(
    name: str, message: str, trained_checkpoints: Runs, tmp_path: Path
) -> None:
    path = trained_checkpoints[name].path
    for accept in (False, True):
        with pytest.raises(BaseModelError, match=message) as caught:
            convert(path, tmp_path / "out.pt", to="pt", accept_inferred_shapes=accept)
        assert "--base" in str(caught.value.hint)
        assert "--accept" not in str(caught.value.hint)


def test_inspect_shows_vectors_without_a_base_and_parameters_with_one(trained_checkpoints: Runs) -> None:
    run = trained_checkpoints["flat"]
    alone, based = inspect(run.path), inspect(run.path, base=run.base)
    assert {name: t.shape for name, t in alone.tensors.items() if name == "_flat_param"} == {
        "_flat_param": (2 * 515 * 48 + 48,)
    }
    assert {name: t.shape for name, t in based.tensors.items()} == shapes_of(load_file(run.truth))
    assert "U114" in {f.code for f in alone.findings}
    assert alone.parameters == based.parameters


def vectors_of(run: TrainedCheckpoint) -> tuple[Checkpoint, FlatUnits]:
    checkpoint = opened(run.path)
    assert isinstance(checkpoint.unshaped, FlatUnits)
    return checkpoint, checkpoint.unshaped


def test_without_names_of_modules_the_order_of_the_class_is_taken_and_told(trained_checkpoints: Runs) -> None:
    run = trained_checkpoints["flat"]
    checkpoint, units = vectors_of(run)
    bare = replace(checkpoint, unshaped=replace(units, modules=()))
    base, _ = find_base(checkpoint, reference=str(run.base), download=False)
    found = with_shapes(bare, base, accept_inferred=False)
    assert read_values(found.tensors) == truth_of(run)
    assert "U120" in {finding.code for finding in found.findings}


def test_without_names_of_modules_experts_are_refused(trained_checkpoints: Runs) -> None:
    run = trained_checkpoints["flat-mixtral"]
    checkpoint, units = vectors_of(run)
    bare = replace(checkpoint, unshaped=replace(units, modules=()))
    base, _ = find_base(checkpoint, reference=str(run.base), download=False)
    with pytest.raises(BaseModelError, match="the order of the parameters in them is not known"):
        with_shapes(bare, base, accept_inferred=False)


def test_names_in_an_order_that_nothing_tells_are_refused(trained_checkpoints: Runs) -> None:
    checkpoint, units = vectors_of(trained_checkpoints["flat-awkward"])
    truth = load_file(trained_checkpoints["flat-awkward"].truth)
    del truth["tied.weight"]
    bare = replace(checkpoint, unshaped=replace(units, modules=()))
    with pytest.raises(BaseModelError, match="the order of the parameters in them is not known"):
        with_shapes(bare, knowing(shapes_of(truth)), accept_inferred=False)


def test_a_model_inside_another_module_is_found_by_the_names_of_modules(trained_checkpoints: Runs) -> None:
    run = trained_checkpoints["flat"]
    checkpoint, units = vectors_of(run)
    inner = replace(
        units,
        modules=("", "net", *(f"net.{name}" for name in units.modules if name)),
        vectors={f"net.{name}": vector for name, vector in units.vectors.items()},
    )
    base, _ = find_base(checkpoint, reference=str(run.base), download=False)
    found = with_shapes(replace(checkpoint, unshaped=inner), base, accept_inferred=False)
    assert read_values(found.tensors) == {f"net.{name}": value for name, value in truth_of(run).items()}


def test_an_order_of_modules_other_than_that_of_the_class_is_followed(trained_checkpoints: Runs) -> None:
    """The files say how they were written; no class of today is asked."""
    run = trained_checkpoints["flat"]
    checkpoint, units = vectors_of(run)
    other = replace(units, modules=tuple(reversed(units.modules)))
    base, _ = find_base(checkpoint, reference=str(run.base), download=False)
    found = with_shapes(replace(checkpoint, unshaped=other), base, accept_inferred=False)
    assert read_values(found.tensors) != truth_of(run)
    assert next(iter(found.tensors)) == "lm_head.weight"


def test_a_base_without_weights_is_asked_by_its_class(trained_checkpoints: Runs, tmp_path: Path) -> None:
    run = trained_checkpoints["flat"]
    assert run.base is not None
    (tmp_path / "base").mkdir()
    shutil.copy(run.base / "config.json", tmp_path / "base")
    checkpoint = opened(run.path)
    base, _ = find_base(checkpoint, reference=str(tmp_path / "base"), download=False)
    assert base is not None
    assert base.expected_in_order
    found = with_shapes(checkpoint, base, accept_inferred=False)
    assert read_values(found.tensors) == truth_of(run)


def test_a_base_that_is_an_index_only_tells_no_shapes(trained_checkpoints: Runs, tmp_path: Path) -> None:
    run = trained_checkpoints["flat-original"]
    base = replace(knowing({}), expected=None)
    with pytest.raises(BaseModelError, match="ranges of flattened parameters"):
        with_shapes(opened(run.path), base, accept_inferred=False)


def test_a_checkpoint_verifies_a_model_made_of_it(trained_checkpoints: Runs, tmp_path: Path) -> None:
    from unshard import verify

    run = trained_checkpoints["flat"]
    assert run.base is not None
    convert(run.path, tmp_path / "out", base=run.base, durable=False, dtype="keep")
    assert verify(tmp_path / "out", against=run.path, forward=False).sound
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    assert not verify(tmp_path / "out", against=run.path, forward=False).sound


@pytest.fixture(scope="module")
def in_dcp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flat parameters that DCP saved: untied packed ones, and tied aligned ones."""
    folder = tmp_path_factory.mktemp("dcp")
    run_ranks(2, leave_in_dcp, folder, timeout_seconds=200.0)
    return folder


@pytest.mark.parametrize("original", [False, True])
def test_flat_parameters_in_dcp_are_found_by_the_order_of_the_class(original: bool, in_dcp: Path) -> None:
    """DCP keeps one rank's slice of every parameter; what it lost is in the flat parameters."""
    truth = load_file(in_dcp / f"{original}.safetensors")
    if original:
        del truth["lm_head.weight"]  # tied, and a slice at that
    shuffled = {name: shapes_of(truth)[name] for name in sorted(truth)}
    checkpoint = with_shapes(opened(in_dcp / str(original)), knowing(shuffled), accept_inferred=False)
    assert read_values(checkpoint.tensors) == true_values(truth)
    assert "U120" in {finding.code for finding in checkpoint.findings}
    assert checkpoint.storages.keys() == truth.keys()


@pytest.mark.parametrize("original", [False, True])
def test_flat_parameters_in_dcp_that_do_not_fit_are_refused(original: bool, in_dcp: Path) -> None:
    shapes = shapes_of(load_file(in_dcp / f"{original}.safetensors"))
    other = shapes | {"model.layers.1.mlp.up_proj.weight": (74, 48)}
    with pytest.raises(BaseModelError, match="has other parameters than the 3 flat parameters"):
        with_shapes(opened(in_dcp / str(original)), knowing(other), accept_inferred=False)
