"""Runs of Meta's, torchtitan's, torchtune's, LitGPT's and OLMo-core's become models that compute the same."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
from safetensors.torch import load_file, save_file

import unshard as package
from command_line import Unshard
from schemes_truth import HEAD_SIZE, HEADS, KEY_HEADS, SCHEMES, cut_as_meta, meta_logits
from tiny_models import SIZES, same_bits, write_folder
from unshard.errors import IncompleteCheckpointError, MatchError, UnshardError, UnsupportedLayoutError

THETA = 50000.0
TOKENS = torch.tensor([1, 5, 300, 17, 17, 2, 444, 90])
Truth = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base: a Llama whose heads of queries and of keys differ in number, all weights random."""
    sizes = {"num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS, "head_dim": HEAD_SIZE}
    config = transformers.LlamaConfig(
        **{**SIZES, **sizes, "vocab_size": 516},
        tie_word_embeddings=False,
        rope_theta=THETA,
        rms_norm_eps=1e-6,
    )
    return write_folder(random_model(config, seed=3), tmp_path_factory.mktemp("scheme") / "base")


def random_model(config: Any, *, seed: int) -> Any:
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def truth(base: Path) -> Truth:
    """What training made of the base."""
    config = transformers.LlamaConfig.from_pretrained(base)
    state: Truth = random_model(config, seed=4).state_dict()
    return state


def state_file(name: str, *, container: str | None = None, prefix: str = "") -> Callable[[Path, Truth], Path]:
    def write(folder: Path, state: Truth) -> Path:
        state = {prefix + key: tensor for key, tensor in state.items()}
        folder.mkdir()
        torch.save(state if container is None else {container: state, "step": 7}, folder / name)
        return folder

    return write


def meta_files(count: int, *, llama3: bool = True) -> Callable[[Path, Truth], Path]:
    def write(folder: Path, state: Truth) -> Path:
        folder.mkdir()
        for number, part in enumerate(cut_as_meta(state, count, llama3=llama3)):
            torch.save(part, folder / f"consolidated.{number:02d}.pth")
        params = {"dim": 48, "n_layers": 2, "n_heads": HEADS, "n_kv_heads": KEY_HEADS, "vocab_size": 516}
        (folder / "params.json").write_text(json.dumps(params))
        return folder

    return write


def distributed(folder: Path, state: Truth) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        dcp.save(dict(state), checkpoint_id=folder / "step-10")
    return folder


def safetensors(folder: Path, state: Truth) -> Path:
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    return folder


def lit_model(folder: Path, state: Truth) -> Path:
    """Write what `litgpt finetune_full` leaves."""
    final = folder / "final"
    final.mkdir(parents=True)
    torch.save({"model": state}, final / "lit_model.pth")
    (final / "model_config.yaml").write_text(f"name: tiny\nn_head: {HEADS}\nn_query_groups: {KEY_HEADS}\n")
    (final / "hyperparameters.yaml").write_text("precision: bf16-true\n")
    return folder


JOBS: dict[str, tuple[str, Callable[[Path, Truth], Path]]] = {
    "Meta, one file": ("meta", meta_files(1)),
    "Meta, two files of Llama 3": ("meta", meta_files(2)),
    "Meta, two files of Llama 2": ("meta", meta_files(2, llama3=False)),
    "torchtitan of 2025, DCP": ("meta", distributed),
    "torchtitan, DCP": ("torchtitan", distributed),
    "torchtitan, fused, DCP": ("torchtitan, fused", distributed),
    "torchtune, its own format": ("torchtune", state_file("model-00001-of-00001.bin")),
    "torchtune, an epoch": ("torchtune", state_file("torchtune_model_0.pt")),
    "torchtune, safetensors": ("torchtune", safetensors),
    "torchtune, compiled": ("torchtune", state_file("torchtune_model_1.pt", prefix="_orig_mod.")),
    "LitGPT": ("litgpt", lit_model),
    "LitGPT, before 2025": ("litgpt, before 2025", lit_model),
    "LitGPT, compiled": ("litgpt", state_file("lit_model.pth", container="model", prefix="_orig_mod.")),
    "OLMo-core": ("olmo-core", state_file("model.pt")),
}


@pytest.mark.parametrize(("scheme", "write"), JOBS.values(), ids=list(JOBS))
def test_a_run_in_another_schemes_names_becomes_the_model_bit_for_bit(
    scheme: str,
    write: Callable[[Path, Truth], Path],
    base: Path,
    truth: Truth,
    tmp_path: Path,
    unshard: Unshard,
) -> None:
    run = write(tmp_path / "run", SCHEMES[scheme](truth))
    said = unshard("inspect", run, "--json")
    assert said.code == 0
    assert said.json["model"]["scheme"] == scheme.partition(",")[0]
    done = package.convert(run, tmp_path / "out", base=base, durable=False)
    assert "U208" in {told.code for told in done.findings}
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == truth.keys()
    assert all(same_bits(written[name], truth[name]) for name in truth)
    assert unshard("verify", tmp_path / "out").code == 0


def test_the_converted_model_computes_what_metas_own_rotary_attention_computes(
    base: Path, truth: Truth, tmp_path: Path
) -> None:
    original = SCHEMES["meta"](truth)
    run = meta_files(2)(tmp_path / "run", original)
    package.convert(run, tmp_path / "out", base=base, durable=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    expected = meta_logits(original, TOKENS, theta=THETA)
    with torch.inference_mode():
        logits = model(TOKENS[None]).logits[0]
    # Rounding of float64 over two layers, each of sums of at most 516 products; frequencies are float32.
    assert torch.allclose(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    unpermuted = meta_logits({**original, **not_permuted(original, truth)}, TOKENS, theta=THETA)
    assert (unpermuted - expected).abs().max() > 1e-2 * expected.abs().max()


def not_permuted(original: Mapping[str, torch.Tensor], truth: Truth) -> Truth:
    """Return the queries and keys with their rows as Hugging Face has them, which is wrong here."""
    return {
        name: truth[f"model.layers.{name.split('.')[1]}.self_attn.{name.split('.')[3][1]}_proj.weight"]
        for name in original
        if name.endswith((".wq.weight", ".wk.weight"))
    }


def test_a_missing_file_of_metas_is_named(base: Path, truth: Truth, tmp_path: Path) -> None:
    run = meta_files(2)(tmp_path / "run", SCHEMES["meta"](truth))
    for name, other in (("consolidated.01.pth", "00"), ("consolidated.00.pth", "01")):
        content = (run / name).read_bytes()
        (run / name).unlink()
        with pytest.raises(IncompleteCheckpointError, match=name) as caught:
            package.convert(run, tmp_path / f"out{other}", base=base, durable=False)
        assert {"U110"} <= {gap.code for gap in caught.value.gaps}
        (run / name).write_bytes(content)


def test_norms_that_differ_between_metas_files_are_refused(base: Path, truth: Truth, tmp_path: Path) -> None:
    run = meta_files(2)(tmp_path / "run", SCHEMES["meta"](truth))
    part = torch.load(run / "consolidated.01.pth")
    part["norm.weight"] += 1
    torch.save(part, run / "consolidated.01.pth")
    with pytest.raises(UnshardError, match=r"norm\.weight"):
        package.convert(run, tmp_path / "out", base=base, durable=False)


def test_tensors_of_metas_files_that_are_cut_by_an_unknown_rule_are_refused(
    base: Path, truth: Truth, tmp_path: Path
) -> None:
    run = meta_files(2)(tmp_path / "run", SCHEMES["meta"](truth))
    for number in range(2):
        path = run / f"consolidated.0{number}.pth"
        part = torch.load(path)
        torch.save({**part, "layers.0.feed_forward.router_DE": torch.full((4, 4), float(number))}, path)
    with pytest.raises(UnsupportedLayoutError, match="router_DE"):
        package.convert(run, tmp_path / "out", base=base, durable=False)


def test_parts_of_unequal_size_in_metas_files_are_refused(base: Path, truth: Truth, tmp_path: Path) -> None:
    run = meta_files(2)(tmp_path / "run", SCHEMES["meta"](truth))
    part = torch.load(run / "consolidated.01.pth")
    part["layers.1.feed_forward.w1.weight"] = part["layers.1.feed_forward.w1.weight"][:-1].clone()
    torch.save(part, run / "consolidated.01.pth")
    with pytest.raises(UnshardError, match=r"layers\.1\.feed_forward\.w1"):
        package.convert(run, tmp_path / "out", base=base, durable=False)


def test_norms_that_every_file_of_metas_has_are_compared_on_request(
    base: Path, truth: Truth, tmp_path: Path
) -> None:
    run = meta_files(2)(tmp_path / "run", SCHEMES["meta"](truth))
    told = package.convert(run, tmp_path / "out", base=base, durable=False).findings
    assert "U116" in {one.code for one in told}
    package.convert(run, tmp_path / "compared", base=base, durable=False, compare_replicas=True)


FINE_TUNED = ["meta", "torchtitan", "torchtitan, fused", "torchtune"]


def tuned(base: Path) -> Truth:
    """Return the base's weights, a little changed."""
    torch.manual_seed(9)
    state = load_file(base / "model.safetensors")
    return {name: tensor + torch.randn_like(tensor) * 0.02 for name, tensor in state.items()}


@pytest.mark.parametrize("scheme", FINE_TUNED)
def test_rows_that_are_like_the_bases_say_that_their_order_is_right(
    scheme: str, base: Path, tmp_path: Path
) -> None:
    run = state_file("model.pt")(tmp_path / "run", SCHEMES[scheme](tuned(base)))
    done = package.convert(run, tmp_path / "out", base=base, durable=False)
    assert not {"U211", "U212"} & {told.code for told in done.findings}


def test_metas_names_over_rows_in_hugging_faces_order_are_refused(
    base: Path, tmp_path: Path, unshard: Unshard
) -> None:
    state = tuned(base)
    original = SCHEMES["meta"](state)
    run = state_file("model.pt")(tmp_path / "run", {**original, **not_permuted(original, state)})
    with pytest.raises(MatchError, match=r"k_proj.*with rows left as they are.*q_proj") as caught:
        package.convert(run, tmp_path / "out", base=base, durable=False)
    assert caught.value.code == "U211"
    assert not (tmp_path / "out").exists()
    assert "U211" in unshard("check", run, "--base", base, "--deep").words


@pytest.mark.parametrize("scheme", FINE_TUNED)
def test_a_base_that_counts_other_heads_than_training_had_is_refused_and_the_counts_are_named(
    scheme: str, base: Path, tmp_path: Path
) -> None:
    run = state_file("model.pt")(tmp_path / "run", SCHEMES[scheme](tuned(base)))
    other = tmp_path / "other"
    shutil.copytree(base, other)
    config = json.loads((base / "config.json").read_bytes())
    counts = {"num_attention_heads": HEADS // 2, "num_key_value_heads": KEY_HEADS // 2, "head_dim": 16}
    (other / "config.json").write_text(json.dumps({**config, **counts}))
    with pytest.raises(MatchError, match=f"with {HEADS} heads, {KEY_HEADS} of keys") as caught:
        package.convert(run, tmp_path / "out", base=other, durable=False)
    assert caught.value.code == "U211"


def test_rows_that_are_like_the_bases_in_no_order_are_not_proven(
    base: Path, truth: Truth, tmp_path: Path
) -> None:
    run = state_file("model.pt")(tmp_path / "run", SCHEMES["meta"](truth))
    done = package.convert(run, tmp_path / "out", base=base, durable=False)
    told = [one for one in done.findings if one.code == "U212"]
    assert [one.subject for one in told] == [f"model.layers.0.self_attn.{w}_proj.weight" for w in "kq"]
    assert {str(one.severity) for one in told} == {"info"}


def test_a_run_without_a_base_keeps_its_names_and_is_told_why(
    truth: Truth, tmp_path: Path, unshard: Unshard
) -> None:
    run = state_file("torchtune_model_0.pt")(tmp_path / "run", SCHEMES["torchtune"](truth))
    done = package.convert(run, tmp_path / "model.pt", to="pt", durable=False)
    assert "U209" in {told.code for told in done.findings}
    assert torch.load(tmp_path / "model.pt").keys() == SCHEMES["torchtune"](truth).keys()


def test_a_base_that_has_the_schemes_own_names_leaves_them(truth: Truth, tmp_path: Path) -> None:
    state = SCHEMES["meta"](truth)
    base = safetensors(tmp_path / "base", state)
    config = {"model_type": "llama", "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS}
    (base / "config.json").write_text(json.dumps(config))
    run = state_file("model.pt")(tmp_path / "run", state)
    done = package.convert(run, tmp_path / "out", base=base, durable=False)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == state.keys()
    assert "U208" not in {told.code for told in done.findings}


def test_a_tied_model_whose_output_the_scheme_leaves_out_is_complete(tmp_path: Path) -> None:
    sizes = {"num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS, "head_dim": HEAD_SIZE}
    config = transformers.LlamaConfig(**{**SIZES, **sizes}, tie_word_embeddings=True)
    base = write_folder(random_model(config, seed=5), tmp_path / "base")
    state = random_model(config, seed=6).state_dict()
    kept = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    run = state_file("torchtune_model_0.pt")(tmp_path / "run", SCHEMES["torchtune"](kept))
    package.convert(run, tmp_path / "out", base=base, durable=False)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == kept.keys()
    assert all(same_bits(written[name], kept[name]) for name in kept)
