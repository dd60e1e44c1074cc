"""Reports of models too large to make: their tensors' real names and shapes, numbers from a formula."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

from unshard.findings import finding
from unshard.measures import Delta, Statistics
from unshard.proof.levels import Level, Losses
from unshard.report.contents import (
    Fact,
    ListedFile,
    Provenance,
    Report,
    ReportedTensor,
    Software,
    Verdict,
)

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def llama_405b() -> Shapes:
    """Yield the 1,137 tensors of Llama 3.1 405B: 126 layers of nine, and three outside."""
    wide, narrow, inner = 16384, 1024, 53248
    yield "model.embed_tokens.weight", (128256, wide)
    for layer in range(126):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (wide,)
        for name, shape in (
            ("q", (wide, wide)),
            ("k", (narrow, wide)),
            ("v", (narrow, wide)),
            ("o", (wide, wide)),
        ):
            yield f"{at}.self_attn.{name}_proj.weight", shape
        yield f"{at}.post_attention_layernorm.weight", (wide,)
        for name, shape in (("gate", (inner, wide)), ("up", (inner, wide)), ("down", (wide, inner))):
            yield f"{at}.mlp.{name}_proj.weight", shape
    yield "model.norm.weight", (wide,)
    yield "lm_head.weight", (128256, wide)


def deepseek_v3() -> Shapes:
    """Yield the tensors of DeepSeek-V3 by its names on the hub, without the scales of its FP8 blocks."""
    wide = 7168
    yield "model.embed_tokens.weight", (129280, wide)
    for layer in range(61):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (wide,)
        yield f"{at}.post_attention_layernorm.weight", (wide,)
        yield f"{at}.self_attn.q_a_proj.weight", (1536, wide)
        yield f"{at}.self_attn.q_a_layernorm.weight", (1536,)
        yield f"{at}.self_attn.q_b_proj.weight", (24576, 1536)
        yield f"{at}.self_attn.kv_a_proj_with_mqa.weight", (576, wide)
        yield f"{at}.self_attn.kv_a_layernorm.weight", (512,)
        yield f"{at}.self_attn.kv_b_proj.weight", (32768, 512)
        yield f"{at}.self_attn.o_proj.weight", (wide, 16384)
        if layer < 3:
            yield from _gated(f"{at}.mlp", wide, 18432)
            continue
        yield f"{at}.mlp.gate.weight", (256, wide)
        yield f"{at}.mlp.gate.e_score_correction_bias", (256,)
        yield from _gated(f"{at}.mlp.shared_experts", wide, 2048)
        for expert in range(256):
            yield from _gated(f"{at}.mlp.experts.{expert}", wide, 2048)
    yield "model.norm.weight", (wide,)
    yield "lm_head.weight", (129280, wide)


def _gated(at: str, wide: int, inner: int) -> Shapes:
    yield f"{at}.gate_proj.weight", (inner, wide)
    yield f"{at}.up_proj.weight", (inner, wide)
    yield f"{at}.down_proj.weight", (wide, inner)


def report_of(shapes: Shapes, *, subject: str = "Llama-3.1-405B-tuned") -> Report:
    """Return a report in which everything is known."""
    tensors = tuple(_tensor(number, name, shape) for number, (name, shape) in enumerate(shapes))
    return Report(
        command="convert",
        subject=subject,
        verdict=Verdict(
            "attention",
            "Verified, with warnings",
            "Every byte was read back from the disk and is what it should be; 2 warnings need a look.",
        ),
        created="2026-11-24 13:40 UTC",
        facts=(
            Fact("Tensors", (f"{len(tensors):,}",)),
            Fact("Parameters", (f"{sum(math.prod(t.shape) for t in tensors) / 1e9:.0f} B",)),
            Fact("Size", ("812 GB",)),
            Fact("Base", ("meta-llama/Llama-3.1-405B",)),
        ),
        levels=(
            Level(
                "bytes",
                "sound",
                (
                    f"{len(tensors):,} tensors, 812 GB, read back and equal bit for bit to the source",
                    "checksums of the source: all of 1.62 TB agree",
                ),
            ),
            Level("structure", "sound", (f"names, shapes and dtypes of {len(tensors):,} tensors",)),
            Level("forward", "not checked", ("switched off",), losses=Losses(2.314, 2.291, math.log(128256))),
        ),
        findings=(
            finding("U201", subject="model.layers.0", saw="12 names lost `_fsdp_wrapped_module.`"),
            finding(
                "U403",
                subject="model.layers.7.mlp.up_proj.weight",
                saw="1,204 values in 3 tensors became zero, most of them in this one",
                remedy="Keep more range with --dtype keep or --dtype bfloat16.",
            ),
            finding(
                "U302",
                subject="lm_head.weight",
                saw="differs from `model.embed_tokens.weight` in 2,101,346,304 values",
                expected="equal, as `tie_word_embeddings` says",
                remedy="Nothing, if training untied them: both were written, and the flag is false.",
            ),
        ),
        tensors=tensors,
        compared_with="meta-llama/Llama-3.1-405B",
        software=(
            Software("unshard", "0.1.0", "0.1.0", "the manifest"),
            Software("transformers", "4.44.2", "5.23.0", "config.json"),
            Software("torch", None, "2.13.0"),
        ),
        provenance=Provenance(
            facts=(
                Fact("Layout", ("sharded checkpoint of DCP",)),
                Fact("Writer", ("torch 2.4",)),
                Fact("Step", ("4000",)),
                Fact("Base", ("meta-llama/Llama-3.1-405B", "found by --base")),
            ),
            sources=tuple(ListedFile(f"__{i}_0.distcp", 12_600_000_000 + i) for i in range(8)),
            files=(ListedFile("config.json", 843, "the base, edited", hashlib.sha256(b"c").hexdigest()),),
            dropped=(("model.layers.0.self_attn.rotary_emb.inv_freq", "the model computes it itself"),),
            edits={"vocab_size": "128256"},
        ),
    )


def _tensor(number: int, name: str, shape: tuple[int, ...]) -> ReportedTensor:
    count = math.prod(shape)
    relative = 0.0 if "norm" in name else 10 ** (-2.2 + math.sin(number * 0.7) * 0.5 + number % 126 / 90)
    norm = 0.02 * math.sqrt(count)
    changed = int(count * min(1.0, relative * 40))
    return ReportedTensor(
        name=name,
        shape=shape,
        dtype="float32" if "norm" in name or "bias" in name else "bfloat16",
        nbytes=count * (4 if "norm" in name or "bias" in name else 2),
        file=f"model-{number % 191 + 1:05}-of-00191.safetensors",
        sources=(f"_fsdp_wrapped_module.{name}",) if number % 3 else (name,),
        source_dtype="float32",
        sha256=hashlib.sha256(name.encode()).hexdigest(),
        statistics=Statistics(
            count=count,
            nans=0,
            infinities=0,
            zeros=count // 1000,
            subnormals=0,
            minimum=-0.31 - number % 7,
            maximum=0.29,
            mean=1.3e-6,
            deviation=0.02,
            magnitudes=tuple(
                (e, 1 + int(count * math.exp(-(((e + 6 + number % 3) / 2.5) ** 2)))) for e in range(-24, 1)
            ),
            digest=number,
        ),
        delta=Delta(
            count=count,
            changed=changed,
            survived=changed - changed // 20,
            dot=norm * norm,
            norm=norm * math.hypot(1.0, relative),
            other_norm=norm,
            distance=norm * relative,
            largest=relative * 0.3,
        ),
    )
