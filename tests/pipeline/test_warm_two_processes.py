"""A supernet that starts from a pretrained model under DeepSpeed's launcher: two processes do what one does."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from glass import speech
from real_models import write_glass
from safetensors.torch import load_file
from test_warm import MIXTURE, SPACE

from llmnas.runs import RunFolder
from llmnas.space import SearchSpace
from llmnas.supernet import Transformer
from llmnas.tracking import read_metrics

NOTHING_PERSISTS = Path(__file__).parents[1] / "train" / "zero3_nothing_persists.json"
TEACHER = {"source": "original", "weight": 0.5, "top_k": 64, "blocks": 0.1}
STAGE = {
    0: {"zero_stage": 0},
    2: {"zero_stage": 2},
    3: {"zero_stage": 3, "deepspeed": str(NOTHING_PERSISTS)},  # every parameter is gathered and released at each use
}


def config_of(folder, space, balance="none"):
    # the balance loss depends on how a batch is divided (docs/moe.md)
    moe = {"balance": balance, "z_weight": 0.0}
    train = {**tiny.CONFIG["train"], "lr": 1e-3, "distill": TEACHER}
    if "experts" in space:
        train["moe"] = moe
    retrain = {"inherit": True, "hand_designed": []}
    config = tiny.write_config(
        folder, tiny.write_corpus(folder / "text"), space=space, train=train, retrain=retrain, budget={}
    )
    values = yaml.safe_load(config.read_text()) | {"budget": {}}
    config.write_text(yaml.safe_dump(values))
    return config


def launched(arguments, where):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--no_local_rank", "--num_gpus", "2"]
    return subprocess.run(
        [*launcher, "--master_port", str(port), "--module", "llmnas.cli", *map(str, arguments)],
        capture_output=True, text=True, env=tiny.environment(), cwd=where, check=False,
    )  # fmt: skip


def losses_of(run):
    return [record["train_loss"] for record in read_metrics(run.metrics) if "train_loss" in record]


@pytest.mark.parametrize(
    ("stage", "space", "correction"),
    [
        pytest.param(3, SPACE, 3, id="3-corrected", marks=pytest.mark.full),
        pytest.param(0, SPACE, 0, id="0", marks=pytest.mark.full),
        pytest.param(2, SPACE, 3, id="2-corrected", marks=pytest.mark.full),
        pytest.param(3, MIXTURE, 0, id="3-experts", marks=pytest.mark.full),
    ],
)
def test_two_processes_start_from_a_folder_and_train_what_one_does(llmnas, tmp_path, stage, space, correction):
    """The first rank writes text, tokens and sorted weights, both read them; each has the frozen teacher.

    Where the model itself is trained on the text first, both do that too.
    """
    folder = tmp_path / "glass"
    write_glass(folder)
    config = config_of(tmp_path, space)
    alone, together = RunFolder(tmp_path / "alone"), RunFolder(tmp_path / "together")
    common = ("train", config, "--init-from", folder, "--prepare", "--set", f"train.correction={correction}")
    arguments = (*common, "--run-dir")
    assert llmnas(*arguments, alone.path).code == 0
    sets = [argument for key, value in STAGE[stage].items() for argument in ("--set", f"train.{key}={value}")]
    done = launched((*arguments, together.path, *sets), tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    start = ("pretrained" if correction else "initial") + ".safetensors"
    assert alone.initial.with_name(start).read_bytes() == together.initial.with_name(start).read_bytes()
    assert losses_of(together) == pytest.approx(losses_of(alone), rel=1e-4)
    first, one, two = (load_file(path) for path in (alone.initial, alone.supernet, together.supernet))
    assert one.keys() == two.keys()
    if correction:
        # what rounds differently may be sorted differently, and heads in another order are the same function
        first, one, two = ({"logits": logits_of(space, weights)} for weights in (first, one, two))
    wrong = sum(float((one[name] - two[name]).double().square().sum()) for name in one)
    update = sum(float((one[name] - first[name]).double().square().sum()) for name in one)
    assert update > 0
    assert (wrong / update) ** 0.5 < 1e-2
    assert all(torch.isfinite(value).all() for value in two.values())


def logits_of(space, weights):
    """[8, 128, vocabulary] of the largest network on real text."""
    model = Transformer(SearchSpace.from_dict(space))
    model.load_state_dict(weights)
    with torch.no_grad():
        return model.eval()(speech()[0][:, :-1])
