"""Runs of experts that two processes do together, and the plain one that they must equal: expert_cases.py FOLDER."""

import functools
import json
import shutil
import sys
from pathlib import Path

import torch
from plain_optimizers import Masked, Muon
from train_script import SEQUENCES

from llmnas.space import SearchSpace
from llmnas.supernet import Transformer, save_weights
from llmnas.train.engine import build, start_processes
from llmnas.train.sampling import SupernetSampler
from llmnas.train.schedule import learning_rate
from llmnas.train.settings import TrainSettings
from llmnas.train.trainer import train

SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 64, "shared_gate": True},
        "layers": 3,
        "hidden_size": [16, 24],
        "depth": [2, 3],
        "kv_heads": 1,
        "queries_per_group": [1, 2],
        "head_dim": 8,
        "ffn_size": {"choices": [8, 16], "per_layer": True},
        "experts": {"choices": [1, 2, 4], "per_layer": True},
        "top_k": {"choices": [1, 2], "per_layer": True},
        "shared_experts": {"choices": [0, 1], "per_layer": True},
    }
)
# besides, low-bit weights and the gated recurrence: whole mixers are without a gradient in a step
LOW_BIT = SearchSpace.from_dict(
    {
        **SPACE.model_dump(),
        "weights": {"choices": ["ternary", "dense", "binary"], "per_layer": True},
        "mixer": {"choices": ["mlgru", "attention", "none"], "per_layer": True},
    }
)
IDLE = (1, 3)  # layer and expert that never gets a token: its bias is out of reach
NOTHING_PERSISTS = str(Path(__file__).with_name("zero3_nothing_persists.json"))
KINDS = {
    "single": {"kind": "single", "anchor_every": 3},
    "sandwich": {"kind": "sandwich"},
    "low_bit": {"kind": "uniform", "random": 2},
}
STAGES = (0, 1, 2, 3)
OPTIMIZERS = ("adamw", "muon")  # with `update: active`


def settings_of(kind, stage=0, parallel=1, **changes):
    # the balance loss is a product of two means over a process's own tokens, so no full batch can equal it
    moe = {"balance": "bias", "bias_rate": 0.01, "z_weight": 0.1, "expert_parallel": parallel}
    return TrainSettings(
        steps=6, batch_size=4, seq_len=16, lr=1e-2, warmup=0.3, weight_decay=1.0, grad_clip=0.1, log_every=1,
        save_every=3, threads=1, sampler=KINDS[kind], moe=moe, zero_stage=stage,
        deepspeed=NOTHING_PERSISTS if stage == 3 else None, **changes,
    )  # fmt: skip


def space_of(kind):
    return LOW_BIT if kind == "low_bit" else SPACE


def sampler_of(kind):
    return SupernetSampler(space_of(kind), None, settings_of(kind).sampler, seed=0)


def with_an_idle_expert(model):
    layer, expert = IDLE
    model.layers[layer].ffn.balance[expert] = -9
    return model


@functools.cache
def reference(kind, bias=True, decays_idle=True, optimizer=None):
    """Final state of plain PyTorch on the full batch; the options are mistakes that the comparison must see.

    `optimizer`: with `update: active` the one of the matrices, adamw or muon.
    """
    settings = settings_of(kind)
    model = with_an_idle_expert(Transformer(space_of(kind), seed=0))
    plain = {name for name, _ in model.named_parameters() if name.endswith(("norm", "lower", "embedding.weight"))}
    masked, muon = Masked(model, lambda name: name not in plain), Muon(model, "slice")
    usual = torch.optim.AdamW(
        [{"params": [p for n, p in model.named_parameters() if (n in plain) == free], "weight_decay": 1.0 - free}
         for free in (False, True)],
        betas=(0.9, 0.95), fused=False,
    )  # fmt: skip
    for step in range(settings.steps):
        model.zero_grad()
        networks = sampler_of(kind).networks(step)
        excess = {i: [] for i in range(SPACE.layers)}
        for i, arch in enumerate(networks):
            batch = torch.from_numpy(SEQUENCES.batch((step * len(networks) + i) * 4, 4))
            out = model(batch[:, :-1], arch, targets=batch[:, 1:], z_weight=0.1)
            (out.loss / len(networks)).backward()
            for layer, routing in out.routings.items():
                row = torch.full((4,), torch.nan)
                row[: len(routing.load)] = routing.load * len(routing.load)
                excess[layer].append(row)
        for parameter in model.parameters():
            if parameter.grad is None and decays_idle:
                parameter.grad = torch.zeros_like(parameter)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        rate = learning_rate(step, settings)
        for group in usual.param_groups:
            group["lr"] = rate
        if optimizer is None:
            usual.step()
        else:
            by_muon = muon.moments if optimizer == "muon" else {}
            masked.step(networks, rate, 1.0, only=[name for name in masked.moments if name not in by_muon])
        if optimizer == "muon":
            muon.step(networks, rate, 1.0)
        for layer, rows in excess.items():
            if rows and bias:
                mean = torch.stack(rows).nanmean(0).nan_to_num(1.0)
                model.layers[layer].ffn.balance += 0.01 * torch.sign(1 - mean)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def run(name, kind, out, processes, settings, folder=None):
    logged = []
    model = with_an_idle_expert(build(space_of(kind), 0, settings, processes))

    def evaluate(model):
        with torch.no_grad():
            batch = torch.from_numpy(SEQUENCES.fixed(2))
            return {
                "val_loss": float(model(batch[:, :-1], space_of(kind).largest(), targets=batch[:, 1:]).cross_entropy)
            }

    train(
        model, sampler_of(kind), SEQUENCES, settings, processes, folder=folder,
        log=lambda step, metrics: logged.append(metrics), evaluate=evaluate if settings.zero_stage < 3 else None,
    )  # fmt: skip
    if processes.rank == 0 or settings.zero_stage < 3:
        save_weights(model, out / f"{name}-rank{processes.rank}.safetensors")
    if processes.rank == 0:
        (out / f"{name}.json").write_text(json.dumps(logged))


def main(out):
    processes = start_processes()
    for kind in KINDS:
        for stage in STAGES:
            run(f"{kind}-{stage}", kind, out, processes, settings_of(kind, stage))
        run(f"{kind}-parallel", kind, out, processes, settings_of(kind, parallel=2))
    for name in OPTIMIZERS:
        active = settings_of("low_bit", parallel=2, update="active", optimizer=name)
        run(f"active-{name}", "low_bit", out, processes, active, out / f"checkpoints-{name}")
    folder = out / "checkpoints"
    run("straight", "sandwich", out, processes, settings_of("sandwich", parallel=2), folder)
    if processes.rank == 0:
        shutil.copytree(folder / "step-00000003", out / "step-00000003")
        shutil.rmtree(folder / "step-00000006")
    torch.distributed.barrier()
    run("resumed", "sandwich", out, processes, settings_of("sandwich", parallel=2), folder)
    for name in OPTIMIZERS:
        if processes.rank == 0:
            shutil.rmtree(out / f"checkpoints-{name}" / "step-00000006")
        torch.distributed.barrier()
        active = settings_of("low_bit", parallel=2, update="active", optimizer=name)
        run(f"resumed-{name}", "low_bit", out, processes, active, out / f"checkpoints-{name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
