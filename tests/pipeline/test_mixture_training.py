"""Training a space with experts by the verb: who is idle is told by layer, and what cannot be is one line."""

import pytest
import tiny

from llmnas.errors import UserError
from llmnas.space import SearchSpace
from llmnas.supernet import Transformer, load_weights, save_weights

MIXTURE = {**tiny.CONFIG["space"], "experts": {"choices": [1, 4], "per_layer": True}, "top_k": [1, 2]}
QUICK = [f"train.{change}" for change in ("steps=1", "batch_size=1", "seq_len=8", "eval_sequences=1")]
SETS = [argument for change in QUICK for argument in ("--set", change)]


@pytest.fixture
def config(tmp_path):
    return tiny.write_config(
        tmp_path, tiny.write_corpus(tmp_path / "text"), space=MIXTURE, budget={"max_params": 90000}
    )


def test_experts_without_a_token_in_the_whole_run_are_told_with_their_layer(config, tmp_path):
    """Eight tokens, 16 experts, one each: at least half of them get nothing, in both layers."""
    sets = [*SETS, "--set", "space.experts=[1, 16]", "--set", "space.top_k=[1]"]
    done = tiny.run("train", config, "--run-dir", tmp_path / "run", "--prepare", *sets)
    assert done.code == 0, done.err
    told = [line for line in done.err.splitlines() if "got no token in the whole run" in line]
    assert [line.split(": experts [")[0] for line in told] == ["layer 0", "layer 1"]
    assert all(line.split("[")[1].split("]")[0].count(",") >= 7 for line in told)


def test_another_number_of_experts_cannot_go_on_with_the_weights(llmnas, config, tmp_path):
    arguments = ("train", config, "--run-dir", tmp_path / "run", *SETS)
    assert llmnas(*arguments, "--prepare").code == 0
    done = llmnas(*arguments, "--resume", "--set", "space.experts={choices: [1, 8], per_layer: true}")
    assert done.code == 2
    assert "made with another config: space.experts.choices: [1, 4] -> [1, 8]; use another --run-dir" in done.complaint


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            "space.top_k=[1, 5]",
            "top_k.choices must be at most the least number of experts above 1 (experts: [1, 4]), got [5]",
        ),
        (
            "space.experts=[1]",
            "top_k.choices must be at most the least number of experts above 1 (experts: [1]), got [2]",
        ),
        ("space.experts=[0, 4]", "space.experts"),
        ("space.ffn_size=[16, 30]", "ffn_size must be a multiple of 4 (rows of 16 bytes in float32), got [30]"),
        ("train.moe.expert_parallel=3", "expert_parallel = 3 does not divide the 1 processes"),
    ],
)
def test_impossible_numbers_of_experts_are_one_line(llmnas, config, tmp_path, change, complaint):
    done = llmnas("train", config, "--run-dir", tmp_path / "run", "--prepare", *SETS, "--set", change)
    assert done.code == 2
    assert complaint in done.complaint


def test_weights_of_another_number_of_experts_are_refused_by_it(tmp_path):
    def supernet(**changes):
        return Transformer(SearchSpace.from_dict({**MIXTURE, **changes}), seed=0)

    save_weights(supernet(), tmp_path / "four.safetensors")
    with pytest.raises(UserError, match="of another search space: layer 0 has 4 experts at most, needs 8"):
        load_weights(supernet(experts=[1, 8]), tmp_path / "four.safetensors")
    with pytest.raises(UserError, match="of another search space: layer 0 has 4 experts at most, needs 1"):
        load_weights(supernet(experts=1, top_k=1), tmp_path / "four.safetensors")
    with pytest.raises(UserError, match=r"ffn.down.weight is \[4, 24, 32\], needs \[4, 24, 64\]"):
        load_weights(supernet(ffn_size=[16, 64]), tmp_path / "four.safetensors")


def test_an_architecture_with_experts_that_the_space_does_not_offer_is_refused_by_layer():
    space = SearchSpace.from_dict(MIXTURE)
    values = space.largest().to_dict()
    values["layers"][1]["experts"] = 3
    stranger = type(space.largest()).from_dict(values)
    with pytest.raises(UserError, match="is not in the search space: layer 1: experts = 3 is none of 1, 4"):
        space.require(stranger)
    values["layers"][1]["experts"] = 8
    larger = type(stranger).from_dict(values)
    with pytest.raises(ValueError, match="layer 1: experts = 8 is more than 4"):
        Transformer(space).hidden_states(None, larger)
