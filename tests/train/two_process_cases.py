"""Training runs that two processes do together; each writes its final weights: two_process_cases.py FOLDER [CASE]."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from planned_rises import Planned
from threads_script import Machine
from train_script import SEQUENCES, SPACE

from llmnas.errors import Preempted, RunError
from llmnas.evaluate.quality import window_losses
from llmnas.supernet import save_weights
from llmnas.train import engine as engine_module
from llmnas.train import recovery, trainer
from llmnas.train.balance import Balance
from llmnas.train.divergence import Divergence
from llmnas.train.engine import Engine, Processes, build, deepspeed, start_processes
from llmnas.train.optimizer import build_optimizer
from llmnas.train.sampling import SupernetSampler
from llmnas.train.schedule import learning_rate
from llmnas.train.settings import TrainSettings
from llmnas.train.trainer import train, train_step

STAGES = (0, 1, 2, 3)
LAUNCH = Path(__file__).parents[2] / "launch"
# tiny parameters are never partitioned by default: this file has every one gathered and released at each use
NOTHING_PERSISTS = str(Path(__file__).with_name("zero3_nothing_persists.json"))
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
    "repeats": {"sampler": {"kind": "single", "anchor_every": 3}},  # see `Repeats`
    "active": {"sampler": {"kind": "uniform", "random": 3}, "update": "active"},
    "muon": {"sampler": {"kind": "uniform", "random": 3}, "update": "active", "optimizer": "muon"},
}
ONLY_AT = {"repeats": 3, "muon": 0}  # what only stage 3 can get wrong; what the other stages refuse
# name -> (settings, the kinds it runs)
VARIANTS = {
    "zero0": ({"zero_stage": 0, "deepspeed": str(LAUNCH / "ds_zero0.json")}, ("single",)),
    "zero1": ({"zero_stage": 1, "deepspeed": str(LAUNCH / "ds_zero1.json")}, ("single",)),
    "json": ({"zero_stage": 2, "deepspeed": str(LAUNCH / "ds_zero2.json")}, ("uniform",)),
    "persistent": ({"zero_stage": 3, "deepspeed": str(LAUNCH / "ds_zero3.json")}, ("uniform",)),
    "offload": ({"zero_stage": 3, "deepspeed": str(LAUNCH / "ds_zero3_offload.json")}, ("single", "uniform")),
    "blocks": ({"zero_stage": 3, "deepspeed": NOTHING_PERSISTS, "checkpoint_blocks": True}, ("single", "distilled")),
    "micro2": ({"zero_stage": 2, "micro_batch": 1, "checkpoint_blocks": True}, ("distilled",)),
    "micro3": ({"zero_stage": 3, "micro_batch": 1, "deepspeed": NOTHING_PERSISTS}, ("uniform", "distilled")),
}
RIGHT = [(kind, stage) for kind in KINDS for stage in STAGES if ONLY_AT.get(kind, stage) == stage]
# (kind whose reference it has, ZeRO stage, settings)
OPTIMIZERS = [
    *((f"{kind}+active", stage, {"update": "active"}) for kind in ("single", "sandwich") for stage in STAGES),
    ("active+offload", 3, VARIANTS["offload"][0]),
    ("active+micro", 2, {"micro_batch": 1}),
    ("muon+whole", 0, {"muon": {"scope": "whole"}}),
    ("single+muon", 0, {"update": "active", "optimizer": "muon"}),
]
HALF_PRECISION = {"half_precision": ("uniform",), "half_precision_long": ("sandwich", "single")}


def shipped(kind, stage):
    """What the configs of large models train with in bf16 besides: the file of `launch/`, checkpointed blocks."""
    file = {"deepspeed": str(LAUNCH / f"ds_zero{stage}.json")} if kind == "uniform" else {}
    return {**file, "checkpoint_blocks": True} if file and stage == 3 else file


class Repeats(SupernetSampler):
    """Four equal steps, so that DeepSpeed believes it knows the order of modules, then others."""

    def networks(self, step):
        return super().networks(min(step, 1) if step < 4 else step)


def settings_of(kind, stage=0, **changes):
    partitioned = {"deepspeed": NOTHING_PERSISTS} if stage == 3 else {}
    return TrainSettings(**{**COMMON, **KINDS[kind], "zero_stage": stage, **partitioned, **changes})


def sampler_of(settings):
    kind = Repeats if settings.sampler.anchor_every == 3 else SupernetSampler
    return kind(SPACE, None, settings.sampler, seed=0)


ATTENTIVE = TrainSettings(
    **COMMON,
    sampler={
        "kind": "uniform", "random": 3, "distribution": "uniform",
        "attentive": {"pick": "worst", "pool": 6, "start": 6},
    },
)  # fmt: skip


class ManagedEngine(Engine):
    """The known-wrong way: DeepSpeed counts the backward passes itself and takes each for a step's last."""

    def __init__(self, model, settings, processes):
        self.processes = processes
        self.local_batch = self.micro_batch = settings.batch_size // processes.size
        self.zero_stage = settings.zero_stage
        self.module, self._exchange = model, None
        self._optimizer = build_optimizer(model, settings)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=self._optimizer,
            config={
                "train_micro_batch_size_per_gpu": self.local_batch,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": settings.grad_clip,
                "zero_optimization": {"stage": settings.zero_stage},
            },
        )
        self.device = self._engine.device


class PoisonedEngine(Engine):
    """One backward pass of one rank has a loss that is not finite."""

    calls = 0

    def backward(self, loss):
        self.calls += 1
        super().backward(loss * float("inf") if self.calls == 3 and self.processes.rank == 1 else loss)


class Disagreeing(SupernetSampler):
    """Ranks draw their own networks."""

    def networks(self, step):
        return [self.draw(step, int(os.environ["RANK"]) if step == 2 else 0)]


def lowered(step, settings):
    return learning_rate(step, settings) * (0.5 if step >= 3 else 1.0)


class Cases:
    """The runs; every rank does all of them in the same order."""

    def __init__(self, out: Path, processes: Processes):
        self.out, self.processes = out, processes

    def finish(self, name, model, stage=0):
        if stage < 3 or self.processes.rank == 0:
            save_weights(model, self.out / f"{name}-rank{self.processes.rank}.safetensors")

    def run(self, name, settings, folder=None, sampler=None, **callbacks):
        logged = []
        model = build(SPACE, 0, settings, self.processes)
        train(
            model, sampler or sampler_of(settings), SEQUENCES, settings, self.processes,
            folder=folder, log=lambda step, metrics: logged.append(metrics), **callbacks,
        )  # fmt: skip
        self.finish(name, model, settings.zero_stage)
        if self.processes.rank == 0:
            (self.out / f"{name}.json").write_text(json.dumps(logged))

    def right(self):
        for kind, stage in RIGHT:
            self.run(f"{kind}-{stage}", settings_of(kind, stage))
        for name, (changes, kinds) in VARIANTS.items():
            for kind in kinds:
                self.run(f"{kind}-{name}", settings_of(kind, **changes))

    def half_precision_long(self):
        self.half_precision("half_precision_long")

    def half_precision(self, kinds="half_precision"):
        for stage, kind in itertools.product((1, 2, 3), HALF_PRECISION[kinds]):
            self.run(f"bf16-{kind}-{stage}", settings_of(kind, stage, dtype="bf16", **shipped(kind, stage)))
        self.run("bf16-single-offload", settings_of("single", dtype="bf16", **VARIANTS["offload"][0]))

    def wrong(self):
        for stage, kind in itertools.product((1, 2), ("sandwich", "single")):
            settings = settings_of(kind, stage)
            model = build(SPACE, 0, settings, self.processes)
            engine = ManagedEngine(model, settings, self.processes)
            for step in range(settings.steps):
                networks = sampler_of(settings).networks(step)
                balance, lr = Balance(model, settings.moe), learning_rate(step, settings)
                train_step(engine, networks, SEQUENCES, settings, step, balance, lr)
            self.finish(f"managed-{kind}-{stage}", model)
        clear = engine_module.clear_stale_gradients
        engine_module.clear_stale_gradients = lambda optimizer: None
        for kind in ("sandwich", "uniform", "single"):
            self.run(f"stale-{kind}", settings_of(kind, 3))
        self.run("bf16-stale", settings_of("uniform", 3, dtype="bf16"))
        engine_module.clear_stale_gradients = clear

    def resumed(self):
        for stage in STAGES:
            settings, folder = settings_of("uniform", stage), self.out / f"checkpoints-{stage}"
            self.run(f"straight-{stage}", settings, folder)
            if self.processes.rank == 0:
                shutil.rmtree(folder / "step-00000006")
            self.run(f"resumed-{stage}", settings, folder)

    def faults(self):
        trainer.Engine = PoisonedEngine
        for stage in STAGES:
            self.run(f"poisoned-{stage}", settings_of("single", stage))
        trainer.Engine = Engine
        settings = settings_of("single", 2)
        try:
            self.run("disagreeing", settings, sampler=Disagreeing(SPACE, None, settings.sampler, seed=0))
        except RunError as error:
            (self.out / f"disagreeing-rank{self.processes.rank}.txt").write_text(str(error))

    def rewound(self):
        """Back to step 3 from the fifth, where the rate is half as high; and a run in which it is so from the start."""
        for stage in STAGES:
            settings = settings_of("uniform", stage)
            plain, recovery.learning_rate = recovery.learning_rate, lowered
            self.run(f"lowered-{stage}", settings)
            recovery.learning_rate = plain
            Planned.rises, trainer.Divergence = {4: 3}, Planned
            folder = self.out / f"rewound-{stage}"
            self.run(f"rewound-{stage}", settings_of("uniform", stage, on_divergence="rewind"), folder)
            trainer.Divergence = Divergence
        try:
            settings = settings_of("uniform", 1, lr=100.0, warmup=0.0, grad_clip=1e9, on_divergence="stop")
            self.run("wild", settings)
        except RunError as error:
            (self.out / f"wild-rank{self.processes.rank}.txt").write_text(str(error))

    def evaluated(self):
        """At stage 3 every rank evaluates; training is not disturbed."""
        windows = SEQUENCES.fixed(4)
        self.run(
            "evaluated", settings_of("single", 3, eval_every=2),
            evaluate=lambda model: {"val_loss": float(window_losses(model, SPACE.smallest(), windows).mean())},
        )  # fmt: skip

    def attentive(self):
        """Which networks are trained depends on losses: the ranks must have averaged them."""
        self.run("attentive", ATTENTIVE)

    def threads(self):
        """Rank 1 alone gets busy neighbours."""
        os.environ["OMP_NUM_THREADS"] = "2"
        machine = Machine(busy_from=12 if self.processes.rank == 1 else None)
        plain = trainer.train_step

        def noted(engine, networks, sequences, settings, step, *rest):
            if isinstance(engine, Engine):
                machine.note(step + 1)
            return plain(engine, networks, sequences, settings, step, *rest)

        trainer.train_step = noted
        settings = settings_of("uniform", 1, steps=32, save_every=10, threads="auto")
        with machine.clock():
            self.run("threads", settings, self.out / "threads")
        trainer.train_step = plain
        os.environ["OMP_NUM_THREADS"] = "1"
        (self.out / f"threads-rank{self.processes.rank}.json").write_text(json.dumps(machine.steps))

    def handed_over(self):
        """Go on with what one process saved after two steps; rank 1 is told to stop while it prepares the fourth."""
        for stage in (1, 2, 3):
            settings, folder = settings_of("uniform", stage, save_every=100), self.out / f"handed-{stage}"
            model = build(SPACE, 0, settings, self.processes)
            try:
                train(
                    model, StopRankOne(sampler_of(settings), self.processes.rank), SEQUENCES, settings,
                    self.processes, folder=folder,
                )  # fmt: skip
            except Preempted as error:
                (self.out / f"handed-{stage}-rank{self.processes.rank}.txt").write_text(str(error))

    def returned(self):
        """Two steps of two processes; started again after one process went on from there, the rest."""
        for stage in (1, 2, 3):
            settings, folder = settings_of("uniform", stage, save_every=100), self.out / f"returned-{stage}"
            sampler = sampler_of(settings)
            if not (folder / "step-00000002").exists():
                sampler = StopRankOne(sampler, self.processes.rank, step=2)
            with contextlib.suppress(Preempted):
                self.run(f"returned-{stage}", settings, folder, sampler=sampler)

    def optimizers(self):
        """What an unused weight does: other samplers, offloading, bf16; checkpoints of steps 3 and 6, resumed at 3."""
        for name, stage, changes in OPTIMIZERS:
            self.run(f"{name}-{stage}", settings_of(name.split("+")[0], stage, **changes))
        for kind, stage in (*(("active", stage) for stage in STAGES), ("muon", 0)):
            settings, folder = settings_of(kind, stage), self.out / f"checkpoints-{kind}-{stage}"
            self.run(f"straight-{kind}-{stage}", settings, folder)
            if self.processes.rank == 0:
                shutil.rmtree(folder / "step-00000006")
                shutil.copytree(folder, self.out / f"half-{kind}-{stage}")
            self.run(f"resumed-{kind}-{stage}", settings, folder)

    def killed(self):
        """Never comes back: the launcher ends what is left."""
        (self.out / f"everything-before-rank{self.processes.rank}").touch()
        settings = settings_of("single", 2, steps=1_000_000)
        self.run("killed", settings, sampler=StopRankOne(sampler_of(settings), self.processes.rank, signal.SIGKILL))


class StopRankOne:
    """Sends a signal to rank 1 while a step is prepared, the fourth if nothing else is said."""

    def __init__(self, sampler, rank, number=signal.SIGTERM, step=3):
        self.sampler, self.rank, self.number, self.step = sampler, rank, number, step
        self.predictor = None

    def networks(self, step):
        if step == self.step and self.rank == 1:
            os.kill(os.getpid(), self.number)
        return self.sampler.networks(step)


def main(out, only=None):
    cases = Cases(out, start_processes())
    if only:
        getattr(cases, only)()
        return
    cases.right()
    cases.half_precision()
    cases.wrong()
    cases.resumed()
    cases.faults()
    cases.rewound()
    cases.evaluated()
    cases.attentive()
    cases.threads()
    cases.handed_over()
    cases.killed()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
