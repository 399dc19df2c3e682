"""Two processes under DeepSpeed against one process of plain PyTorch: several networks, one optimizer step.

One launch does every run of `two_process_cases.py`; the reference below shares no code with `llmnas.train` but
the choice of networks and the learning rate, which tests of their own check.
"""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from train_script import SEQUENCES, SPACE
from two_process_cases import KINDS, STAGES, sampler_of, settings_of

from llmnas.supernet import Transformer
from llmnas.train.schedule import learning_rate

TOLERANCE = 1e-3  # of the update; seen: 5e-6, and 6e-2 for the smallest of the mistakes below
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    out = tmp_path_factory.mktemp("two_processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("two_process_cases.py")
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--no_local_rank", "--num_gpus", "2"]
    finished = subprocess.run(
        [*launcher, "--master_port", str(port), str(script), str(out)],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return out


@functools.cache
def reference(kind, decay_all=False, clip=True, skip_unused=False):
    """(final weights, losses) on the full batch; the options are mistakes that the comparison must see."""
    settings = settings_of(kind)
    model = Transformer(SPACE, seed=0)
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[decay_all or name.split(".")[-1] in MATRICES].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": 1.0}, {"params": groups[False], "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=False,
    )
    losses = []
    for step in range(settings.steps):
        optimizer.zero_grad()
        losses.append(backward(model, sampler_of(settings).networks(step), settings, step))
        for parameter in model.parameters():
            if parameter.grad is None and not skip_unused:
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1 if clip else torch.inf)
        assert norm > 0.1, "every step must be clipped, or nothing is tested"
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}, losses


def backward(model, networks, settings, step):
    """Gradients of the mean loss of the networks; their mean cross entropy."""
    total, teacher = 0.0, None
    for i, arch in enumerate(networks):
        batch_number = step if settings.shared_batch else step * len(networks) + i
        batch = torch.from_numpy(SEQUENCES.batch(batch_number * 4, 4))
        log_probs = model(batch[:, :-1], arch).log_softmax(-1).flatten(0, 1)
        loss = cross_entropy = F.nll_loss(log_probs, batch[:, 1:].flatten())
        if settings.distill.weight and teacher is None:
            teacher = log_probs.detach()
        elif settings.distill.weight:
            loss = 0.5 * cross_entropy + 0.5 * F.kl_div(log_probs, teacher, log_target=True, reduction="batchmean")
        (loss / len(networks)).backward()
        total += cross_entropy.item()
    return total / len(networks)


def update_error(weights, expected):
    """|w - w_expected| / |w_expected - w_0|, over all parameters together."""
    first = {name: parameter.detach() for name, parameter in Transformer(SPACE, seed=0).named_parameters()}
    assert weights.keys() == expected.keys() == first.keys()
    wrong = sum(float((weights[name] - expected[name]).double().square().sum()) for name in first)
    update = sum(float((expected[name] - first[name]).double().square().sum()) for name in first)
    return (wrong / update) ** 0.5


def weights_of(launched, name, rank=0):
    return load_file(launched / f"{name}-rank{rank}.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_cases_are_the_hard_ones():
    """Largest first; largest absent; whole layers without a gradient in a step, after steps in which they had one."""
    networks = {kind: [sampler_of(settings_of(kind)).networks(step) for step in range(6)] for kind in KINDS}
    assert all(step[0] == SPACE.largest() for step in networks["sandwich"])
    assert all(SPACE.largest() not in step for step in networks["uniform"])
    assert networks["single"][0] == [SPACE.largest()]
    assert sum(step[0].depth < SPACE.layers for step in networks["single"][1:]) >= 3


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_does(launched, kind, stage):
    expected, losses = reference(kind)
    weights = weights_of(launched, f"{kind}-{stage}")
    assert update_error(weights, expected) <= TOLERANCE
    assert same(weights, weights_of(launched, f"{kind}-{stage}", rank=1))
    assert json.loads((launched / f"{kind}-{stage}.json").read_text()) == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize("stage", [1, 2])
def test_managed_accumulation_fails_this_comparison(launched, stage):
    """The control: this mode is silently wrong with several networks a step (by 97 %), and right with one."""
    assert update_error(weights_of(launched, f"managed-sandwich-{stage}"), reference("sandwich")[0]) > TOLERANCE
    assert update_error(weights_of(launched, f"managed-single-{stage}"), reference("single")[0]) <= TOLERANCE


@pytest.mark.parametrize("mistake", [{"decay_all": True}, {"clip": False}, {"skip_unused": True}])
def test_a_smaller_mistake_would_be_seen(mistake):
    assert update_error(reference("single", **mistake)[0], reference("single")[0]) > TOLERANCE


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_processes_are_bit_equal(launched, stage):
    straight = weights_of(launched, f"straight-{stage}")
    assert same(straight, weights_of(launched, f"uniform-{stage}"))  # checkpoints change nothing
    for rank in (0, 1):
        assert same(straight, weights_of(launched, f"resumed-{stage}", rank))
    losses = json.loads((launched / f"uniform-{stage}.json").read_text())
    assert json.loads((launched / f"resumed-{stage}.json").read_text()) == losses[3:]
