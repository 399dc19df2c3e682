"""What DeepSpeed is told: our keys, the file's keys, and nothing that contradicts."""

import json
from pathlib import Path

import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError

from llmnas.errors import RunError, UserError
from llmnas.train.deepspeed_json import _OFFLOADS, _SIZES, _SWITCHES, deepspeed_config
from llmnas.train.settings import TrainSettings
from llmnas.train.stale import VERIFIED, clear_stale_gradients, require_verified_version

LAUNCH = Path(__file__).parents[2] / "launch"
FILES = sorted(LAUNCH.glob("*.json"))


def settings_of(**changes):
    return TrainSettings(**{"steps": 1, "batch_size": 8, "grad_clip": 0.5, **changes})


def stage_of(path):
    return json.loads(path.read_text())["zero_optimization"]["stage"]


def test_there_is_a_file_for_every_stage_and_for_offloading():
    assert [path.name for path in FILES] == [
        "ds_zero0.json", "ds_zero1.json", "ds_zero2.json", "ds_zero3.json", "ds_zero3_offload.json",
    ]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_merged_under_our_keys(path):
    stage = stage_of(path)
    config = deepspeed_config(settings_of(zero_stage=stage, deepspeed=str(path), micro_batch=2), 2)
    assert config["zero_optimization"].items() >= json.loads(path.read_text())["zero_optimization"].items()
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["managed_gradient_accumulation"] is False
    assert config["gradient_clipping"] == (0.5 if stage else 0.0)


def test_without_a_file_the_stage_alone_decides():
    config = deepspeed_config(settings_of(zero_stage=3, dtype="bf16"), 4)
    assert config["zero_optimization"] == {"stage": 3, "stage3_prefetch_bucket_size": 0}
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}


@pytest.mark.parametrize(
    ("stage", "content", "message"),
    [
        (1, {"gradient_clipping": 1.0}, r"gradient_clipping is decided by llmnas \(train.grad_clip\); remove it"),
        (1, {"gradient_accumulation_steps": 4}, r"gradient_accumulation_steps is decided .*train.micro_batch"),
        (1, {"optimizer": {}}, "optimizer is decided by llmnas"),
        (2, {"zero_optimization": {"stage": 3}}, "zero_optimization.stage = 3, but train.zero_stage = 2"),
        (3, {"zero_optimization": {"stage3_prefetch_bucket_size": 100}}, "prefetch_bucket_size must be 0"),
        (3, {"zero_optimization": {"zero_quantized_weights": True}}, "zero_quantized_weights: not verified"),
        (1, {"zero_optimization": {"overlap_comm": True}}, "overlap_comm needs stage 2 or 3"),
        (2, {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "offload_optimizer needs train.zero_st"),
        (3, {"zero_optimization": {"offload_param": {"device": "nvme"}}}, "only none and cpu are verified"),
        (1, {"steps_per_print": 10}, r"steps_per_print is decided by llmnas \(train.log_every\)"),
        (1, {"torch_autocast": {"enabled": True}}, r"torch_autocast: not verified here; allowed: zero_optimization$"),
        (1, {"zero_optimisation": {"stage": 3}}, "zero_optimisation: not .*; allowed: zero_optimization$"),
        (1, {"amp": {"enabled": True}}, "amp: not verified here"),
        (1, {"communication_data_type": "fp16"}, "communication_data_type: not verified here"),
        (3, {"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}}, r"offload_optimizer\.ratio: not verified"),
        (1, [], "must hold a JSON object"),
        (1, {"memory_breakdown": True}, "memory_breakdown: not verified here"),
        (1, {"zero_optimization": None}, "zero_optimization: must hold a JSON object, found None"),
        (1, {"zero_optimization": [1]}, r"zero_optimization: must hold a JSON object, found \[1\]"),
        (1, {"zero_optimization": {"stage": None}}, "zero_optimization.stage = None, but train.zero_stage = 1"),
        (3, {"zero_optimization": {"offload_optimizer": True}}, "offload_optimizer: must hold a JSON object"),
        (3, {"zero_optimization": {"offload_param": {"device": ["cpu"]}}}, r"device = \['cpu'\]: only none and cpu"),
        (3, {"zero_optimization": {"offload_param": {"pin_memory": "no"}}}, "pin_memory = 'no': must be true or false"),
        (2, {"zero_optimization": {"overlap_comm": "yes"}}, "overlap_comm = 'yes': must be true or false"),
        (2, {"zero_optimization": {"reduce_bucket_size": "many"}}, "reduce_bucket_size = 'many': must be a whole numb"),
        (2, {"zero_optimization": {"reduce_bucket_size": True}}, "reduce_bucket_size = True: must be a whole number"),
        (2, {"zero_optimization": {"reduce_bucket_size": 0.5}}, "reduce_bucket_size = 0.5: must be a whole number"),
        (2, {"zero_optimization": {"reduce_bucket_size": 0}}, "a whole number, at least 1"),
        (2, {"zero_optimization": {"allgather_bucket_size": 7}}, "allgather_bucket_size = 7: must be even"),
    ],
)
def test_what_contradicts_or_was_never_verified_is_refused(tmp_path, stage, content, message):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        deepspeed_config(settings_of(zero_stage=stage, deepspeed=str(path)), 1)
    assert str(error.value).startswith(f"{path}: ")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match="is a folder, not a file"):
        deepspeed_config(settings_of(deepspeed=str(tmp_path)), 1)


def test_every_value_that_is_let_through_is_one_that_deepspeed_takes(tmp_path):
    """The smallest of each; sizes are often written 5e8."""
    zero = {"stage": 3, "sub_group_size": 5e8, **{key: _SIZES[key] for key in _SIZES.keys() - {"sub_group_size"}}}
    zero |= dict.fromkeys(_SWITCHES, True) | {key: {"device": "cpu", "pin_memory": False} for key in _OFFLOADS}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    config = deepspeed_config(settings_of(zero_stage=3, deepspeed=str(path)), 1)["zero_optimization"]
    assert DeepSpeedZeroConfig(**config).sub_group_size == 500_000_000
    with pytest.raises(ValidationError, match="reduce_bucket_size"):
        DeepSpeedZeroConfig(**{**config, "reduce_bucket_size": _SIZES["reduce_bucket_size"] - 1})


def test_bf16_without_master_weights_is_refused():
    with pytest.raises(ValidationError, match="dtype: bf16 needs zero_stage 1, 2 or 3: stage 0 keeps no fp32 copy"):
        settings_of(dtype="bf16")


def test_another_deepspeed_is_refused_at_stage_3():
    """Fails when DeepSpeed is upgraded: verify `stale.py` with test_two_processes, then change VERIFIED."""
    require_verified_version()
    with pytest.raises(UserError, match=rf"zero_stage = 3 is verified with deepspeed {VERIFIED}, found 0.99.0"):
        require_verified_version("0.99.0")


def test_buffers_that_have_moved_are_an_error_not_a_silent_wrong_update():
    class Renamed:
        offload_optimizer = False

    with pytest.raises(RunError, match="no gradient buffers at _DeepSpeedZeroOptimizer_Stage3__param_id_to_grad"):
        clear_stale_gradients(Renamed())
