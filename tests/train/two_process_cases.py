"""Training runs that two processes do together; each writes its final weights: two_process_cases.py FOLDER."""

import itertools
import json
import shutil
import sys
from pathlib import Path

from train_script import SEQUENCES, SPACE

from llmnas.supernet import Transformer, save_weights
from llmnas.train.balance import Balance
from llmnas.train.engine import Engine, _optimizer, deepspeed, start_processes
from llmnas.train.sampling import SupernetSampler
from llmnas.train.settings import TrainSettings
from llmnas.train.trainer import train, train_step

STAGES = (0, 1, 2)
# a strong decay, so that a parameter in the wrong group is seen; a norm that every step exceeds
COMMON = {
    "steps": 6, "batch_size": 4, "seq_len": 16, "lr": 1e-2, "warmup": 0.3, "weight_decay": 1.0, "grad_clip": 0.1,
    "log_every": 1, "save_every": 3, "threads": 1,
}  # fmt: skip
KINDS = {
    "sandwich": {"sampler": {"kind": "sandwich"}},
    "uniform": {"sampler": {"kind": "uniform", "random": 3}},
    "single": {"sampler": {"kind": "single", "anchor_every": 4}},
    "distilled": {"sampler": {"kind": "sandwich"}, "shared_batch": True, "distill": {"weight": 0.5, "top_k": 64}},
}


def settings_of(kind, stage=0):
    return TrainSettings(**COMMON, **KINDS[kind], zero_stage=stage)


def sampler_of(settings):
    return SupernetSampler(SPACE, None, settings.sampler, seed=0)


class ManagedEngine(Engine):
    """The known-wrong way: DeepSpeed counts the backward passes itself and takes each for a step's last."""

    def __init__(self, model, settings, processes):
        self.processes = processes
        self.local_batch = settings.batch_size // processes.size
        self.zero_stage = settings.zero_stage
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=_optimizer(model, settings),
            config={
                "train_micro_batch_size_per_gpu": self.local_batch,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": settings.grad_clip,
                "zero_optimization": {"stage": settings.zero_stage},
            },
        )
        self.device = self._engine.device


def main(out):
    processes = start_processes()

    def finish(name, model):
        save_weights(model, out / f"{name}-rank{processes.rank}.safetensors")

    def run(name, settings, folder=None):
        losses = []
        model = Transformer(SPACE, seed=0)
        train(
            model, sampler_of(settings), SEQUENCES, settings, processes,
            folder=folder, log=lambda step, metrics: losses.append(metrics["train_loss"]),
        )  # fmt: skip
        finish(name, model)
        if processes.rank == 0:
            (out / f"{name}.json").write_text(json.dumps(losses))

    for stage in STAGES:
        for kind in KINDS:
            run(f"{kind}-{stage}", settings_of(kind, stage))

    for stage, kind in itertools.product((1, 2), ("sandwich", "single")):
        settings = settings_of(kind, stage)
        model = Transformer(SPACE, seed=0)
        engine = ManagedEngine(model, settings, processes)
        for step in range(settings.steps):
            networks = sampler_of(settings).networks(step)
            train_step(engine, networks, SEQUENCES, settings, step, Balance(model, settings.moe))
        finish(f"managed-{kind}-{stage}", model)

    for stage in STAGES:
        settings, folder = settings_of("uniform", stage), out / f"checkpoints-{stage}"
        run(f"straight-{stage}", settings, folder)
        if processes.rank == 0:
            shutil.rmtree(folder / "step-00000006")
        engine.barrier()
        run(f"resumed-{stage}", settings, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
