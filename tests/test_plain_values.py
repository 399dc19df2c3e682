"""Values that leave a process: they pickle and copy, and NumPy's numbers are as good as Python's."""

import copy
import json
import pickle
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from llmnas.config import load_config
from llmnas.cost import Budget, Workload, count_params, memory
from llmnas.errors import UserError
from llmnas.pareto import Evaluation, Failed
from llmnas.search import STRATEGIES, Problem, load_strategy, search
from llmnas.space import Architecture, BaseModel, FixedShape, LayerKinds, LayerSpec, SearchSpace, decode, encode

ROOT = Path(__file__).parents[1]
RUNS = sorted((ROOT / "search_configs").glob("*.yaml"))
MIXED = SearchSpace.from_dict({
    "base": {"vocab_size": 64}, "layers": 3, "hidden_size": [8, 16], "depth": [2, 3], "kv_heads": [1, 2],
    "queries_per_group": [1], "head_dim": [4, 8], "ffn_size": {"choices": [8, 16], "per_layer": True},
    "weights": {"choices": ["binary", "ternary", "dense"], "per_layer": True}, "mixer": ["mlgru", "attention"],
    "experts": [1, 2], "top_k": [1, 2], "shared_experts": [0, 1],
})  # fmt: skip
ARCH = MIXED.largest()
VALUES = {
    "space": MIXED,
    **{name: getattr(MIXED, name) for name in SearchSpace.model_fields},
    "architecture": ARCH,
    "layer": ARCH.layers[0],
    "kinds": LayerKinds(("ternary",), ("mlgru",)),
    "shape": FixedShape(MIXED.base, ARCH),
    "budget": Budget(max_params=70_000, workload=Workload(batch=2)),
    "parameters": count_params(ARCH, MIXED.base),
    "memory": memory(ARCH, MIXED.base, Workload()),
    "evaluation": Evaluation(ARCH, {"loss": 1.0}, None, 3, proposed=True),
    "failed": Failed("no memory", {"params": 1.0}, 8),
    "problem": Problem.of(MIXED, {"loss": "min"}, {"loss": 3}, Budget(max_params=70_000), 0, [ARCH]),
    **{f"options of {name}": load_strategy(name)[0]() for name in STRATEGIES},
    **{path.stem: load_config(path, []) for path in RUNS},
}


@pytest.mark.parametrize("name", VALUES)
def test_a_public_value_survives_pickle_and_copy(name):
    value = VALUES[name]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(value, protocol)) == value
    assert copy.deepcopy(value) == value
    assert copy.copy(value) == value


def test_a_space_is_unpickled_in_another_process(tmp_path):
    (tmp_path / "space").write_bytes(pickle.dumps([MIXED, ARCH]))
    script = "import pickle, sys; s, a = pickle.load(open(sys.argv[1], 'rb')); print(a.id, s.contains(a), s.size())"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "space")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [ARCH.id, "True", str(MIXED.size())]


def test_a_space_of_numpy_numbers_is_the_same_space():
    plain = {
        "base": {"vocab_size": 64, "rope_theta": 1e4}, "layers": 3, "hidden_size": [8, 16], "depth": [2, 3],
        "kv_heads": 1, "queries_per_group": [1], "head_dim": [4], "ffn_size": {"choices": [8, 16], "per_layer": True},
        "shared_experts": 0,
    }  # fmt: skip
    counted = {
        "base": {"vocab_size": np.int64(64), "rope_theta": np.float32(1e4)}, "layers": np.int32(3),
        "hidden_size": np.array([8, 16]), "depth": np.arange(2, 4), "kv_heads": np.uint8(1),
        "queries_per_group": [np.int64(1)], "head_dim": (np.int16(4),),
        "ffn_size": {"choices": np.array([8, 16]), "per_layer": True}, "shared_experts": np.int64(0),
    }  # fmt: skip
    one, other = SearchSpace.from_dict(plain), SearchSpace.from_dict(counted)
    assert one == other
    assert one.model_dump_json() == other.model_dump_json()
    assert SearchSpace(**{**counted, "base": BaseModel(np.int64(64))}).model_dump_json() == one.model_dump_json()


@pytest.mark.parametrize("wrong", [np.float64(8.5), np.bool_(True), np.array([8.5]), True, 8.5, "8"])
def test_what_is_no_whole_number_is_no_size(wrong):
    with pytest.raises(UserError, match="hidden_size"):
        SearchSpace.from_dict({**MIXED.model_dump(), "hidden_size": wrong})


def test_architectures_and_limits_of_numpy_numbers_are_plain():
    spec = LayerSpec(*map(np.int64, (1, 1, 8, 16)), shared_experts=np.int64(0))
    arch, plain = Architecture(np.int64(8), (spec, None)), Architecture(8, (LayerSpec(1, 1, 8, 16), None))
    assert arch == plain
    assert arch.id == plain.id
    assert arch.kept == plain.kept
    assert count_params(arch, MIXED.base) == count_params(plain, MIXED.base)
    for wrong in (np.int64(0), np.float64(8), np.bool_(True), -1):
        with pytest.raises(ValueError, match="every size of an architecture must be a positive integer"):
            Architecture(wrong, (spec,))
    budget = Budget(max_params=np.int64(7), max_flops_per_token=np.float32(8), workload=Workload(np.int64(2)))
    assert json.dumps(asdict(budget)) == json.dumps(asdict(Budget(7, max_flops_per_token=8.0, workload=Workload(2))))
    rng = np.random.default_rng(0)
    arch = MIXED.sample(rng)
    assert decode(MIXED, np.asarray(encode(MIXED, arch), dtype=np.int16)) == arch


def loss(archs):
    return [{"loss": np.float32(arch.hidden_size), "params": np.int64(arch.depth)} for arch in archs]


def test_a_search_may_be_asked_for_with_numpy_numbers(tmp_path):
    asked = {
        "space": MIXED, "evaluate": loss, "strategy": "nsga2", "objectives": {"loss": "min", "params": "min"},
        "archive_path": tmp_path / "evaluations.sqlite",
    }  # fmt: skip
    search(**asked, budget=Budget(max_params=70_000), constraints={"loss": 16}, evaluations=12, seed=3, batch=4,
           options={"population": 8}, evaluation={"windows": 3}).close()  # fmt: skip
    archive = search(
        **asked, budget=Budget(max_params=np.int64(70_000)), constraints={"loss": np.float32(16)},
        evaluations=np.int64(16), seed=np.int32(3), batch=np.uint8(4), options={"population": np.int64(8)},
        evaluation={"windows": np.int64(3)},
    )  # fmt: skip
    assert len(archive) == 16


@pytest.mark.parametrize("name", ["ofa", "reinforce"])
def test_options_in_mappings_and_lists_may_be_numpy_numbers(name):
    kind, _ = load_strategy(name)
    many = {"ofa": {"loss": np.array([1.0, 2.0])}, "reinforce": {"loss": np.float64(2)}}
    plain = {"ofa": {"loss": [1.0, 2.0]}, "reinforce": {"loss": 2.0}}
    assert kind.model_validate({"targets": many[name]}) == kind.model_validate({"targets": plain[name]})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"space": "space.yaml"}, "space: must be a SearchSpace"),
        ({"space": MIXED.model_dump()}, "space: must be a SearchSpace"),
        ({"evaluate": None}, "evaluate: must be a function"),
        ({"strategy": None}, "strategy: must be a name, or something with ask.* got None"),
        ({"objectives": "loss"}, "objectives: 'loss' names no directions"),
        ({"objectives": ["loss"]}, "objectives: .* names no directions"),
        ({"objectives": {"loss": None}}, "loss: None is not a direction; allowed: min, max"),
        ({"objectives": {3: "min"}}, "3: 'min' is not a direction|objectives: 3"),
        ({"constraints": "loss"}, "constraints: 'loss' has no bounds"),
        ({"constraints": {"loss": "3"}}, "loss: '3' is neither an upper bound nor"),
        ({"budget": 70_000}, "budget: must be a Budget or None"),
        ({"budget": {"max_params": 70_000}}, "budget: must be a Budget or None"),
        ({"options": ["population"]}, "options: must be a mapping"),
        ({"options": "population"}, "options: must be a mapping"),
        ({"first": ARCH}, "first: must be a list of architectures"),
        ({"first": [ARCH.to_json()]}, "first: must be a list of architectures"),
        ({"evaluation": 3}, "evaluation: must be a mapping"),
        ({"evaluation": {"path": Path("x")}}, "evaluation: .* is no plain value"),
        ({"archive_path": 3}, "3 is not a path"),
        ({"evaluations": np.float64(3)}, "evaluations must be a whole number"),
        ({"evaluations": True}, "evaluations must be a whole number"),
        ({"batch": np.int64(0)}, "batch must be at least 1, got 0"),
        ({"seed": np.int64(-1)}, "seed must be at least 0, got -1"),
        ({"seed": "0"}, "seed must be a whole number, got '0'"),
    ],
)
def test_an_argument_of_another_kind_is_one_line(wrong, message):
    asked = {"space": MIXED, "evaluate": loss, "strategy": "random", "objectives": {"loss": "min"}, "evaluations": 4}
    with pytest.raises(UserError, match=message) as error:
        search(**(asked | wrong))
    assert "\n" not in str(error.value)
