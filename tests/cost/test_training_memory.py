"""Memory of training: against what autograd really keeps, and against DeepSpeed's own estimates."""

import dataclasses

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from llmnas.cost.training import ModelSizes, layer_saved_values, model_states, saved_bytes
from llmnas.space import SearchSpace
from llmnas.supernet import Transformer

BATCH, SEQ = 2, 24
SIZES = ModelSizes(total=7_000_000_000, root=262_000_000, block=200_000_000)


def space_of(**changes):
    values = {"layers": 2, "hidden_size": 64, "depth": 2, "kv_heads": 2, "queries_per_group": 2, "head_dim": 16,
              "ffn_size": 96, **changes}  # fmt: skip
    base = {"vocab_size": 80, "qk_norm": values.pop("qk_norm", False)}
    return SearchSpace.from_dict({"base": base, **values})


def kept_bytes(space, **options):
    """Bytes that autograd keeps for the backward pass of the largest network, besides parameters and rotations."""
    model = Transformer(space)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages, alive = {}, []

    def pack(tensor):
        alive.append(tensor)  # so that no address is used twice
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters and tensor.is_floating_point():
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(0, 80, (BATCH, SEQ))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(tokens, targets=tokens, **options)
    return sum(storages.values())


@pytest.fixture(autouse=True)
def loss_of_a_gpu(monkeypatch):
    """The plan is for GPUs, where the logits exist once; a CPU's loss keeps less (`nn/cross_entropy.py`)."""
    monkeypatch.setattr("llmnas.nn.loss.linear_cross_entropy", torch.nn.functional.linear_cross_entropy)


@pytest.mark.parametrize(
    "changes",
    [{}, {"ffn_size": 160}, {"kv_heads": 4}, {"queries_per_group": 4}, {"head_dim": 32}, {"qk_norm": True},
     {"hidden_size": 96}, {"layers": 3, "depth": 3}],
    ids=str,
)  # fmt: skip
def test_activations_are_what_autograd_keeps(changes):
    """Every size that the formula has is changed in turn; the scalars of the loss are left out of it."""
    space = space_of(**changes)
    found = saved_bytes(space.envelope, space.base, BATCH * SEQ, 4, checkpoint_blocks=False)
    assert found == pytest.approx(kept_bytes(space), rel=2e-3)


def test_with_checkpointed_blocks_only_their_inputs_stay():
    """The block that is whole for a moment is on top of what lies between the passes."""
    space = space_of(layers=4, depth=4)
    found = saved_bytes(space.envelope, space.base, BATCH * SEQ, 4, checkpoint_blocks=True)
    block = 4 * BATCH * SEQ * layer_saved_values(space.base, 64, space.envelope.kept[0][1])
    assert found - block == pytest.approx(kept_bytes(space, checkpoint_blocks=True), rel=2e-2)


@pytest.mark.parametrize("gpus", [8, 64])
def test_stage_3_is_deepspeeds_estimate_plus_what_is_on_its_way(gpus):
    bucket = 1000
    ours = model_states(SIZES, 3, gpus, bf16=True, bucket=bucket)
    _, theirs, _ = estimate_zero3_model_states_mem_needs(
        SIZES.total, SIZES.root + SIZES.block, num_gpus_per_node=8, num_nodes=gpus // 8, cpu_offload=False
    )
    assert ours.total - 2 * bucket == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("gpus", [8, 64])
def test_stage_2_is_deepspeeds_estimate_without_a_second_copy_of_the_gradients(gpus):
    """Ours are summed in fp32; theirs adds a bf16 share, for us the bucket on its way."""
    ours = model_states(SIZES, 2, gpus, bf16=True)
    _, theirs = estimate_zero2_model_states_mem_needs(
        SIZES.total, num_gpus_per_node=8, num_nodes=gpus // 8, cpu_offload=False
    )
    assert ours.total - 2 * 200_000_000 == pytest.approx(theirs - 2 * SIZES.total / gpus, rel=1e-6)


def test_one_gpu_holds_all_of_it_at_every_stage():
    """fp32: weights, gradients, moments; ZeRO keeps a master copy besides."""
    assert model_states(SIZES, 0, 1, bf16=False).total == 16 * SIZES.total
    assert model_states(SIZES, 1, 1, bf16=False).total == 20 * SIZES.total


def test_higher_stages_need_less_and_offloading_least():
    totals = [model_states(SIZES, stage, 8, bf16=True).total for stage in (1, 2, 3)]
    offloaded = model_states(SIZES, 3, 8, bf16=True, offload=True)
    assert sorted([*totals, offloaded.total], reverse=True) == [*totals, offloaded.total]
    assert offloaded.host == pytest.approx(18 * SIZES.total / 8, rel=1e-6)


def test_what_is_refused_in_training_is_refused_in_the_plan():
    for stage, options in ((0, {"bf16": True}), (2, {"bf16": True, "offload": True})):
        with pytest.raises(ValueError, match="stage 0 trains in fp32 only; offloading needs stage 3"):
            model_states(SIZES, stage, 8, **options)


def test_the_parts_add_up():
    memory = model_states(SIZES, 3, 8, bf16=True)
    parts = dataclasses.asdict(memory)
    assert memory.total == sum(parts.values()) - memory.host
