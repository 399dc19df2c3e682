"""The plan of a run: its numbers recomputed from their definitions, and the promises of the big configs."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from llmnas.cli import app
from llmnas.config import load_config
from llmnas.cost import prefill_flops_per_token
from llmnas.errors import UserError
from llmnas.pipeline.plan import Machine, plan, tables
from llmnas.supernet import Transformer
from llmnas.train.optimizer import build_optimizer

FOLDER = Path(__file__).parents[2] / "search_configs"
H100S = Machine(gpus=8, gpu_memory=80, tflops=989, utilisation=0.4)


def plan_of(name, machine=H100S, *sets):
    return plan(load_config(FOLDER / f"{name}.yaml", list(sets)), machine)


def test_the_7b_supernet_fits_eight_gpus_of_80_gb_at_stage_3_only_with_checkpointed_blocks():
    found = plan_of("llama_7b")
    assert found.sizes.total > 7e9
    assert found.fits("stage 3")
    assert not found.fits("stage 1")
    kept = plan_of("llama_7b", H100S, "train.checkpoint_blocks=false", "train.micro_batch=4")
    assert not kept.fits("stage 3")


@pytest.mark.parametrize(("name", "gpus"), [("gpt_125m", 8), ("llama_1b", 64), ("llama_7b", 64)])
def test_every_big_config_fits_at_the_stage_it_asks_for(name, gpus):
    config = load_config(FOLDER / f"{name}.yaml", [])
    found = plan(config, Machine(gpus, 80, 989, 0.4))
    assert found.fits(f"stage {config.train.zero_stage}")
    assert found.tokens > 2e10


def test_the_numbers_of_a_small_config_by_hand():
    machine = Machine(gpus=2, gpu_memory=1, tflops=0.1, utilisation=0.5)
    sets = ["train.sampler.kind=sandwich", "train.sampler.random=1", "space.depth=6", "space.kv_heads=1",
            "space.queries_per_group=1", "space.ffn_size=128", "space.hidden_size=64", "retrain.seeds=2"]  # fmt: skip
    config = load_config(FOLDER / "dense_1m.yaml", sets)
    found = plan(config, machine)
    model = Transformer(config.space)
    flops = prefill_flops_per_token(config.space.largest(), config.space.base, 128)  # there is one network only
    assert found.sizes.total == sum(p.numel() for p in model.parameters())
    assert found.sizes.root == 4096 * 64 + 64
    assert found.sizes.block == sum(p.numel() for p in model.layers[0].parameters())
    assert found.tokens == 500 * 3 * 8 * 128
    assert found.work.supernet == pytest.approx(3 * 500 * 3 * 8 * 128 * flops)
    assert found.work.search == pytest.approx(150 * 24 * 128 * flops)
    assert found.work.one_candidate == pytest.approx(3 * 300 * 8 * 128 * flops)
    assert found.work.retrain == pytest.approx(2 * 2 * found.work.one_candidate)
    assert found.work.break_even == pytest.approx((found.work.supernet + found.work.search) / found.work.one_candidate)
    assert found.days(found.work.supernet) == pytest.approx(found.work.supernet / (2 * 0.05e12) / 86400)
    activations = {memory.activations for memory in found.memory.values()}
    assert len(activations) == 1
    assert list(found.memory) == ["stage 0", "stage 1", "stage 2", "stage 3", "stage 3, offload"]


def test_the_original_as_a_teacher_costs_its_weights_and_its_forward_passes():
    sets = [
        "data.tokenizer=some/folder",
        "train.init_from=some/folder",
        "train.distill={source: original, weight: 0.5}",
        "train.correction=100",
    ]
    alone, taught = plan_of("llama_7b"), plan_of("llama_7b", H100S, *sets)
    config = load_config(FOLDER / "llama_7b.yaml", [])
    whole = prefill_flops_per_token(config.space.envelope, config.space.base, config.train.seq_len)
    for name, memory in taught.memory.items():
        assert memory.total - alone.memory[name].total == 4 * taught.sizes.total
    forwards = taught.work.supernet - alone.work.supernet
    assert forwards == pytest.approx(whole * alone.tokens, rel=1e-6)
    tokens = config.train.batch_size * config.train.seq_len
    assert taught.work.correction == pytest.approx(4 * 100 * tokens * whole)
    assert taught.work.total > alone.work.total + forwards
    rows = [row for table in tables(config, taught) for row in table.rows]
    assert any(row[0] == "the original on the text" for row in rows)


def test_every_training_of_retrain_is_counted_once():
    """The study of docs/results.md: 6 networks at 5 seeds and 3 rates, and 6 draws, the best at a rate of the grid."""
    found = plan_of("study_cpu")
    assert found.work.retrained == 6 * (5 + 3) + 6 - 1
    assert plan_of("study_cpu", H100S, "retrain.train.lr=0.005").work.retrained == 54
    alone = plan_of("study_cpu", H100S, "retrain.random_baseline=0", "retrain.lr_grid=[]", "retrain.seeds=1")
    assert alone.work.retrained == 5
    assert found.work.retrain == pytest.approx(53 / 5 * alone.work.retrain)
    assert "retrain: 53 trainings" in tables(load_config(FOLDER / "study_cpu.yaml", []), found)[2].note


def test_checkpointed_blocks_cost_a_forward_pass_and_spare_the_gathered_model():
    plain, checkpointed = (plan_of("dense_1m", H100S, f"train.checkpoint_blocks={on}") for on in ("false", "true"))
    assert checkpointed.work.supernet == pytest.approx(plain.work.supernet * 4 / 3)
    assert checkpointed.memory["stage 3"].activations < plain.memory["stage 3"].activations
    assert checkpointed.memory["stage 3"].gathered < plain.memory["stage 3"].gathered


def test_stage_3_keeps_slices_of_every_gathered_weight_unless_blocks_are_checkpointed():
    """Why the plan says so: autograd saves views of the weights, and a view holds the whole storage."""
    config = load_config(FOLDER / "dense_1m.yaml", [])
    model = Transformer(config.space)
    storages = {p.untyped_storage().data_ptr(): p.numel() for p in model.parameters() if p.dim() > 1}
    tokens = torch.zeros(1, 8, dtype=torch.int64)

    def held(**options):
        found = set()

        def pack(tensor):
            if not isinstance(tensor, torch.nn.Parameter):
                found.add(tensor.untyped_storage().data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(tokens, config.space.middle(), targets=tokens, **options)
        return sum(storages[address] for address in found if address in storages)

    blocks = sum(p.numel() for i, spec in enumerate(config.space.middle().layers) if spec
                 for p in model.layers[i].parameters() if p.dim() > 1)  # fmt: skip
    assert held() > 0.5 * blocks
    assert held(checkpoint_blocks=True) <= model.embedding.weight.numel()


def test_what_training_would_refuse_is_not_planned():
    with pytest.raises(UserError, match=r"train.batch_size = 8 does not divide among 3 processes: use a multiple of 3"):
        plan_of("dense_1m", Machine(3, 80, 989, 0.4))
    with pytest.raises(UserError, match=r"train.micro_batch = 4 does not divide a process's share .*8 / 4 = 2"):
        plan_of("dense_1m", Machine(4, 80, 989, 0.4), "train.micro_batch=4")


def test_the_command_line_prints_it():
    found = CliRunner().invoke(app, ["plan", str(FOLDER / "llama_7b.yaml"), "--gpus", "64", "--gpu-memory", "80"])
    assert found.exit_code == 0
    assert "64 GPUs of 80 GB, bf16, blocks checkpointed; the config asks for stage 3" in found.output.replace("\n", " ")
    assert "candidates trained alone" in " ".join(found.output.split())


def test_muon_keeps_one_moment_of_matrices_and_needs_stage_0():
    """The moments that a step of the real optimizer leaves, in bytes."""
    found = plan_of("quickstart", H100S, "train.optimizer=muon")
    assert set(found.memory) == {"stage 0"}
    config = load_config(FOLDER / "quickstart.yaml", ["train.optimizer=muon"])
    model = Transformer(config.space)
    optimizer = build_optimizer(model, config.train)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [v for state in optimizer.state.values() for name, v in state.items() if name != "step"]
    assert found.memory["stage 0"].optimizer == 4 * sum(value.numel() for value in moments)
    assert found.memory["stage 0"].optimizer < 6 * found.sizes.total < plan_of("quickstart").memory["stage 0"].optimizer
