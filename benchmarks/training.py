"""What saving costs while training waits: `save_full` beside a gather and beside `dcp.save`.

    python benchmarks/training.py [--work DIR] [--rounds N] [--ranks N] [--dtype bfloat16|float32] [--json]

Real ranks on gloo hold one model of TinyLlama-1.1B's shapes twice, sharded by FSDP1 and by FSDP2. In
every round each way saves it once, and its output is removed. Time is rank 0's clock between two
barriers. Memory is the most anonymous memory a rank had during the save beyond what it had before.

    FSDP1 gather          FULL_STATE_DICT, rank 0 only, then torch.save
    FSDP2 gather          get_model_state_dict(full_state_dict=True, cpu_offload=True), then torch.save
    dcp.save              torch's own writer, which waits for the disk
    save_full             durable (waits for the disk) or not; without a record, and with its digests

Bars: 2 times as fast as the FSDP1 gather, neither waiting for the disk; 1.5 times dcp.save, both
waiting for it; 300 MB beyond the level before; the record with its digests half of the save.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from inputs import DEFAULT_WORK, TINYLLAMA
from measuring import Bar, Run, remove, report, table, wall

if TYPE_CHECKING:
    import torch

FIRST_GATHER, DCP = "FSDP1 gather + torch.save", "FSDP2 dcp.save, durable"
FAST = {kind: f"{kind} save_full" for kind in ("FSDP1", "FSDP2")}
DURABLE = {kind: f"{way}, durable" for kind, way in FAST.items()}
RECORDED = {kind: f"{way}, durable, record" for kind, way in FAST.items()}
_SAMPLE_SECONDS = 0.005


class _Watch:
    """The most anonymous memory this process has while the block runs, beyond what it had before."""

    def __enter__(self) -> Self:
        self.before = self.most = _anonymous()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            self.most = max(self.most, _anonymous())

    @property
    def growth(self) -> int:
        """Bytes."""
        return self.most - self.before


def _anonymous() -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def _model(dtype: torch.dtype) -> torch.nn.Module:
    """Return the model without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**TINYLLAMA.config())
    with torch.device("meta"):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model


def _fill(module: torch.nn.Module, *, recurse: bool) -> None:
    """Give a module's own parameters memory, and random numbers."""
    import torch

    module.to_empty(device="cpu", recurse=recurse)
    with torch.no_grad():
        for parameter in module.parameters(recurse=recurse):
            parameter.normal_(0, 0.02)


def _sharded(kind: str, dtype: torch.dtype) -> torch.nn.Module:
    """Return the model sharded, its layers units of their own, without ever holding it whole."""
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    model = _model(dtype)
    if kind == "FSDP1":
        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=ModuleWrapPolicy({LlamaDecoderLayer}),
            device_id=torch.device("cpu"),
            param_init_fn=partial(_fill, recurse=False),
        )
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    _fill(model, recurse=True)
    return model


def _gather_first(model: torch.nn.Module, out: Path) -> None:
    import torch
    from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType

    # Offloading frees the storage it copies from: without GPUs, the storage of the model itself.
    policy = FullStateDictConfig(offload_to_cpu=False, rank0_only=True)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT, policy):
        state = model.state_dict()
    if torch.distributed.get_rank() == 0:
        torch.save(state, out)


def _gather_second(model: torch.nn.Module, out: Path) -> None:
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if torch.distributed.get_rank() == 0:
        torch.save(state, out)


def _dcp(model: torch.nn.Module, out: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=out)


def _save_full(model: torch.nn.Module, out: Path, *, record: bool, durable: bool) -> None:
    from unshard.training import save_full

    save_full(model, out, record=record, durable=durable, fingerprint=False)


def _ways(models: dict[str, torch.nn.Module], work: Path) -> dict[str, tuple[Callable[[], None], Path]]:
    """Return every way to save, and where it saves to."""
    first, second = models["FSDP1"], models["FSDP2"]
    torch_file, folder = work / "gathered.pt", work / "saved"
    ways: dict[str, tuple[Callable[[], None], Path]] = {
        FIRST_GATHER: (partial(_gather_first, first, torch_file), torch_file),
        "FSDP2 gather + torch.save": (partial(_gather_second, second, torch_file), torch_file),
        DCP: (partial(_dcp, second, folder), folder),
    }
    for kind, model in models.items():
        save = partial(_save_full, model, folder)
        ways[FAST[kind]] = (partial(save, record=False, durable=False), folder)
        ways[DURABLE[kind]] = (partial(save, record=False, durable=True), folder)
        ways[RECORDED[kind]] = (partial(save, record=True, durable=True), folder)
    return ways


def _rank(rank: int, ranks: int, work: Path, dtype_name: str, rounds: int, results: Path) -> None:
    """Save in every way, in every round; rank 0 writes what that took."""
    import torch
    import torch.distributed as dist

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    store = dist.FileStore(str(work / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    models = {kind: _sharded(kind, getattr(torch, dtype_name)) for kind in ("FSDP1", "FSDP2")}
    taken: dict[str, list[tuple[float, float, list[int]]]] = {}
    # The first round makes imports and buffers: its time does not count, its memory does, for what is
    # freed after it need not be asked for again.
    for number in range(rounds + 1):
        for name, (way, out) in _ways(models, work).items():
            dist.barrier()
            began, cpu = time.perf_counter(), time.process_time()
            with _Watch() as watch:
                way()
                dist.barrier()
            told: list[Any] = [None] * ranks
            dist.all_gather_object(told, (time.process_time() - cpu, watch.growth))
            if rank == 0:
                wall_seconds = time.perf_counter() - began
                remove(out)
                growths = [growth for _, growth in told]
                taken.setdefault(name, []).append((wall_seconds, sum(c for c, _ in told), growths))
                if number:
                    print(f"round {number}/{rounds}: {name}: {wall_seconds:.2f} s", file=sys.stderr)
    if rank == 0:
        results.write_text(json.dumps(taken))
    dist.barrier()
    dist.destroy_process_group()


def bars(runs: dict[str, list[Run]], record_seconds: dict[str, float]) -> list[Bar]:
    """Return the promises, measured."""
    found = []
    for kind in ("FSDP1", "FSDP2"):
        fast, durable = wall(runs[FAST[kind]]), wall(runs[DURABLE[kind]])
        memory = runs[RECORDED[kind]][0].peak_bytes / 1e6
        found += [
            Bar(f"{FAST[kind]} / {FIRST_GATHER}", fast / wall(runs[FIRST_GATHER]), 0.5, "x"),
            Bar(f"{DURABLE[kind]} / {DCP}", durable / wall(runs[DCP]), 1.5, "x"),
            Bar(f"{kind}: what the record adds / the save", record_seconds[kind] / durable, 0.5, "x"),
            Bar(f"{RECORDED[kind]}: memory", memory, 300, "MB"),
        ]
    return found


def main() -> None:
    """Run the ranks and report."""
    import torch.multiprocessing

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="where outputs lie for a while")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    work = options.work / "training"
    remove(work)
    work.mkdir(parents=True)
    results = work / "results.json"
    torch.multiprocessing.spawn(
        _rank,
        (options.ranks, work, options.dtype, options.rounds, results),
        nprocs=options.ranks,
    )
    taken = json.loads(results.read_text())
    remove(work)
    most = {name: max(max(growths) for _, _, growths in each) for name, each in taken.items()}
    runs = {name: [Run(w, c, most[name]) for w, c, _ in each[1:]] for name, each in taken.items()}
    added = {kind: wall(runs[RECORDED[kind]]) - wall(runs[DURABLE[kind]]) for kind in FAST}
    memory = "\n".join(f"{name}: {count / 1e6:.0f} MB" for name, count in most.items())
    beside = {name: DCP if "durable" in name else FIRST_GATHER for name in runs}
    text = f"{options.ranks} ranks, {options.dtype}\n\n{table(runs, beside)}\n\n"
    text += f"most anonymous memory of a rank beyond the level before:\n{memory}"
    report(text, bars(runs, added), as_json=options.json)


if __name__ == "__main__":
    main()
