"""The same verb under DeepSpeed's launcher: two processes on CPU, one result, one voice."""

import json
import shutil
import socket
import subprocess
import sys

import pytest
import tiny

from llmnas.tracking import read_metrics


@pytest.mark.full
def test_train_under_the_launcher(tiny_run, tmp_path):
    shutil.copytree(tiny_run.folder / "data", tmp_path / "run" / "data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--no_local_rank", "--num_gpus", "2"]
    done = subprocess.run(
        [*launcher, "--master_port", str(port), "--module", "llmnas.cli", "train", str(tiny_run.config), "--run-dir",
         str(tmp_path / "run")],
        capture_output=True, text=True, env=tiny.environment(), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    both = done.stdout + done.stderr
    assert both.count("supernet: 6/6") == 1
    assert both.count(f"supernet: {tmp_path / 'run' / 'supernet' / 'model.safetensors'} (") == 1
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "train_loss" in r] == [1, 2, 3, 4, 5, 6]
    alone = [r["train_loss"] for r in read_metrics(tiny_run.folder / "metrics.jsonl") if "train_loss" in r]
    losses = [r["train_loss"] for r in records if "train_loss" in r]
    assert all(abs(a - b) < 1e-3 for a, b in zip(losses, alone, strict=True))  # the same batches, in two halves
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["stages"].keys() == {"train"}
