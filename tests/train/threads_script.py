"""A training on a machine whose speed is told: threads_script.py FOLDER [STEP TO DIE AFTER]."""

import contextlib
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from train_script import SETTINGS, run

from llmnas.supernet import save_weights
from llmnas.train import darts, threads, trainer

AUTO = SETTINGS.model_copy(update={"threads": "auto", "steps": 32, "save_every": 10, "keep": 9})
QUIET, BUSY = {1: 1.0, 2: 0.6}, {1: 1.5, 2: 9.0}


class Machine:
    """A clock on which everything takes the seconds that are said for the number of threads.

    Attributes:
        seconds: by number of threads.
        busy_from: the step after which two neighbours compute.
        steps: the number of threads in every step that was trained.
    """

    def __init__(self, busy_from=None, quiet=QUIET):
        self.seconds, self.busy_from, self.time, self.steps = quiet, busy_from, 0.0, {}

    def now(self):
        self.time += self.seconds[torch.get_num_threads()]
        return self.time

    def note(self, step):
        """A step is done, or about to be."""
        self.steps[step] = torch.get_num_threads()
        if step == self.busy_from:
            self.seconds = BUSY

    @contextlib.contextmanager
    def clock(self):
        """While entered, trainings measure on this machine."""
        before = trainer.Threads, threads.SHARE
        trainer.Threads = darts.Threads = partial(threads.Threads, now=self.now)
        threads.SHARE = 0.2  # few steps are enough
        try:
            yield
        finally:
            trainer.Threads, threads.SHARE = before
            darts.Threads = trainer.Threads

    def train(self, folder, settings=AUTO, log=None, **options):
        """The model of `train_script.run`."""

        def both(step, metrics):
            self.note(step)
            if log:
                log(step, metrics)

        with self.clock():
            return run(folder, settings, log=both, **options)


def main(folder, die_after=0):
    stream = os.open(folder / "log.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def log(step, metrics):
        line = [step, metrics["train_loss"].hex(), torch.get_num_threads()]
        os.write(stream, (json.dumps(line) + "\n").encode())
        if step == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    # a start that goes on finds the machine as it is by then: busy
    machine = Machine(busy_from=12) if die_after or not (folder / "checkpoints").exists() else Machine(quiet=BUSY)
    save_weights(machine.train(folder / "checkpoints", log=log), folder / "weights.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
