"""Experts, low-bit weights and MLGRU on two processes against plain PyTorch on one: ZeRO 0 to 3, experts divided."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from expert_cases import IDLE, KINDS, OPTIMIZERS, SPACE, STAGES, reference, sampler_of, settings_of, space_of
from safetensors.torch import load_file
from train_script import SEQUENCES

from llmnas.errors import UserError
from llmnas.space import SearchSpace
from llmnas.supernet import Transformer, load_weights
from llmnas.train.engine import Engine, start_processes
from llmnas.train.expert_parallel import require_divisible, require_parts
from llmnas.train.settings import TrainSettings

TOLERANCE = 1e-3  # of the update; seen: 5e-6
RUNS = [*map(str, STAGES), "parallel"]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    out = tmp_path_factory.mktemp("expert_processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("expert_cases.py")
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--no_local_rank", "--num_gpus", "2"]
    done = subprocess.run(
        [*launcher, "--master_port", str(port), str(script), str(out)],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    (out / "output.txt").write_text(done.stdout + done.stderr)
    return out


def update_error(state, expected, kind="single"):
    """|w - w_expected| / |w_expected - w_0| over all parameters together; buffers are compared by themselves."""
    first = {name: value.detach() for name, value in Transformer(space_of(kind), seed=0).named_parameters()}
    assert state.keys() == expected.keys()
    wrong = sum(float((state[name] - expected[name]).double().square().sum()) for name in first)
    update = sum(float((expected[name] - first[name]).double().square().sum()) for name in first)
    return (wrong / update) ** 0.5


def state_of(launched, name, rank=0):
    return load_file(launched / f"{name}-rank{rank}.safetensors")


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_experts_as_one_does(launched, kind, run):
    expected, state = reference(kind), state_of(launched, f"{kind}-{run}")
    assert update_error(state, expected, kind) <= TOLERANCE
    for name in expected:
        if name.endswith("balance"):
            torch.testing.assert_close(state[name], expected[name], atol=1e-6, rtol=0)
    for rank in (1,) if run != "3" else ():
        other = state_of(launched, f"{kind}-{run}", rank)
        torch.testing.assert_close(state, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_divided_experts_move_where_a_network_uses_them_and_go_on_from_a_checkpoint(launched, optimizer):
    """`update: active`: of low-bit, dense and recurrent layers; a process may hold none of a step's experts."""
    expected = reference("low_bit", optimizer=optimizer)
    state = state_of(launched, f"active-{optimizer}")
    assert update_error(state, expected, "low_bit") <= TOLERANCE
    assert update_error(state_of(launched, f"resumed-{optimizer}"), state, "low_bit") <= 1e-4
    torch.testing.assert_close(state, state_of(launched, f"active-{optimizer}", 1), rtol=0, atol=0, equal_nan=True)
    assert update_error(reference("low_bit"), expected, "low_bit") > 0.01


def test_the_low_bit_networks_hold_every_kind_of_layer():
    """Ternary, binary and dense, MLGRU and attention, with and without a router, and steps without a whole mixer."""
    steps = [sampler_of("low_bit").networks(step) for step in range(6)]
    layers = [[spec for arch in step for _, spec in arch.kept] for step in steps]
    found = {(spec.weights, spec.mixer, spec.experts > 1) for step in layers for spec in step}
    assert {("ternary", "mlgru", True), ("ternary", "attention", True), ("binary", "mlgru", False)} <= found
    assert {("dense", "mlgru", True), ("dense", "attention", True), ("binary", "attention", True)} <= found
    assert any(all(spec.mixer != "mlgru" for spec in step) for step in layers)


def test_the_idle_expert_decays_and_is_named(launched):
    layer, expert = IDLE
    first = Transformer(SPACE, seed=0).layers[layer].ffn.gate.weight[expert].detach()
    for run in RUNS:
        gate = state_of(launched, f"sandwich-{run}")[f"layers.{layer}.ffn.gate.weight"][expert]
        ratio = gate / first
        assert ratio.std() < 1e-4  # nothing but the decay moved it
        assert 0.9 < ratio.mean() < 0.99
    assert f"layer {layer}: experts [{expert}] got no token" in (launched / "output.txt").read_text()


@pytest.mark.parametrize(
    ("kind", "mistake"),
    [*((k, {"bias": False}) for k in KINDS), *((k, {"decays_idle": False}) for k in ("single", "low_bit"))],
)
def test_a_smaller_mistake_would_be_seen(kind, mistake):
    assert update_error(reference(kind, **mistake), reference(kind), kind) > TOLERANCE


def test_divided_experts_go_on_from_a_checkpoint_and_are_evaluated(launched):
    straight, resumed = (state_of(launched, name) for name in ("straight", "resumed"))
    assert update_error(straight, reference("sandwich")) <= TOLERANCE
    assert update_error(resumed, straight) <= 1e-4
    model = load_weights(Transformer(SPACE), launched / "straight-rank0.safetensors")
    batch = torch.from_numpy(SEQUENCES.fixed(2))
    with torch.no_grad():
        expected = float(model(batch[:, :-1], SPACE.largest(), targets=batch[:, 1:]).cross_entropy)
    found = [m["val_loss"] for m in json.loads((launched / "straight.json").read_text()) if "val_loss" in m]
    assert found[-1] == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_of_other_parts_is_refused(launched):
    require_parts(launched / "step-00000003", 2)
    with pytest.raises(UserError, match=r"divided among 2 processes, but train.moe.expert_parallel = 1; use 2"):
        require_parts(launched / "step-00000003", 1)


def test_what_does_not_combine_is_refused():
    with pytest.raises(ValueError, match=r"moe.expert_parallel = 2 needs zero_stage: 0.*got 3"):
        TrainSettings(steps=1, zero_stage=3, moe={"expert_parallel": 2})
    with pytest.raises(UserError, match="expert_parallel = 2 does not divide the 1 processes"):
        Engine(Transformer(SPACE), settings_of("single", parallel=2), start_processes())
    with pytest.raises(UserError, match="expert_parallel = 3 does not divide the 4 experts of layer 0"):
        require_divisible(Transformer(SPACE), 3, 3)
    dense = SearchSpace.from_dict({**SPACE.model_dump(), "experts": 1, "top_k": 1, "shared_experts": 0})
    with pytest.raises(UserError, match="the space has no experts"):
        require_divisible(Transformer(dense), 2, 2)
