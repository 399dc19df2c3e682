"""Sweeps: valid for W&B by its own schema, and every command line that an agent makes of them runs.

`schema.json` is a copy from the package `sweeps` 0.3.0 of Weights & Biases (MIT, see LICENSE.schema).
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from llmnas.config import load_config
from llmnas.process import sweep_arguments

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(Path(__file__).with_name("schema.json").read_text())
FILES = sorted((ROOT / "search_configs" / "sweeps").glob("*.yaml"))


def sweep_of(path):
    return yaml.safe_load(path.read_text())


def extremes(parameter):
    """Values that a parameter can take: all that are listed, or both ends of its range."""
    if "value" in parameter:
        return [parameter["value"]]
    whole = parameter.get("distribution", "").startswith(("int", "q_"))
    return parameter.get("values") or [(int if whole else float)(parameter[end]) for end in ("min", "max")]


def command_of(sweep, values):
    """The argument list that a W&B agent runs for one trial, made by W&B's own functions."""
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    command = []
    for part in create_sweep_command(sweep["command"]):
        command += arguments["args"] if part == "${args}" else [part]
    return [part for part in command if part not in {"${env}", "/usr/bin/env", "env"}]


def trials(sweep):
    """Every value of every parameter at least once."""
    choices = {name: extremes(parameter) for name, parameter in sweep["parameters"].items()}
    for values in itertools.islice(itertools.zip_longest(*choices.values()), 50):
        yield {name: choices[name][0] if value is None else value
               for name, value in zip(choices, values, strict=True)}  # fmt: skip


def test_every_method_has_a_sweep():
    assert {sweep_of(path)["method"] for path in FILES} == {"bayes", "grid", "random"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_sweep_is_valid_for_wandb(path):
    sweep = sweep_of(path)
    jsonschema.Draft7Validator(SCHEMA).validate(sweep)
    broken = {**sweep, "method": "guess"}
    assert list(jsonschema.Draft7Validator(SCHEMA).iter_errors(broken))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_trial_is_a_config_that_can_be_run(path):
    sweep = sweep_of(path)
    for values in trials(sweep):
        command = command_of(sweep, values)
        launcher, rest = command[: command.index("llmnas.cli")], command[command.index("llmnas.cli") + 1 :]
        assert launcher == ["deepspeed", "--no_local_rank", "--num_gpus", "1", "--module"]
        arguments = sweep_arguments(rest)
        assert Path(arguments[1]).name == "quickstart.yaml"
        sets = [value for flag, value in itertools.pairwise(arguments) if flag == "--set"]
        assert len(sets) == len(values)
        dumped = load_config(ROOT / arguments[1], sets).model_dump(mode="json")
        for name, value in values.items():
            found = dumped
            for key in name.split("."):
                found = found[key]
            assert (found["choices"] if isinstance(found, dict) else found) in (value, [value])


def test_only_config_keys_are_rewritten():
    kept = ["train", "a.yaml", "--run-dir=x", "--set", "a.b=1", "--resume", "--log.level"]
    assert sweep_arguments(kept) == kept
    assert sweep_arguments(["--train.lr=1e-3", "--seed=3", "--a.b=x=y z"]) == [
        "--set", "train.lr=1e-3", "--set", "seed=3", "--set", "a.b=x=y z",
    ]  # fmt: skip


SMALL = ["--train.steps=2", "--train.batch_size=2", "--train.seq_len=32", "--train.eval_sequences=2",
         "--space.base.vocab_size=320", "--space.base.max_seq=32", "--data.source=tiny.jsonl", "--data.validation=0.3",
         "--budget.max_params=null", "--search.windows=4", "--search.sample=3"]  # fmt: skip


def test_the_command_of_a_trial_runs_and_names_its_folder_and_run_after_it(tmp_path):
    """The very command, in a process of its own, on a text of a few lines."""
    sweep = sweep_of(ROOT / "search_configs" / "sweeps" / "train_bayes.yaml")
    command = command_of(sweep, {**next(trials(sweep)), "train.sampler.kind": "sandwich"})
    (tmp_path / "search_configs").symlink_to(ROOT / "search_configs")
    words = [f"word{i} is the {i * 7 % 13}th of {i} words and not the last." for i in range(400)]
    documents = [json.dumps({"text": " ".join(words[i : i + 40])}) for i in range(0, 400, 40)]
    (tmp_path / "tiny.jsonl").write_text("\n".join(documents))
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline", "WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "trial7", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run([*command, *SMALL], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run = tmp_path / "runs" / "quickstart" / "trial7"
    assert (run / "supernet" / "model.safetensors").exists()
    assert (run / "wandb.id").read_text() == "trial7"
    assert list(run.glob("wandb/offline-run-*-trial7"))
    names = {name for line in (run / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    assert {"val_loss_random", "train_loss", "cross_entropy_3", "grad_norm", "peak_memory_bytes"} <= names
