"""The table is exact where costs are additive and linear in each size, and says where it knows nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import spaces_with_members

from llmnas.cost import Workload
from llmnas.cost.latency import BlockTable, assemble, design
from llmnas.errors import UserError
from llmnas.space import DIMENSIONS, Architecture, SearchSpace

HERE = {"device": "a chip", "threads": 1}
WORKLOAD = Workload(batch=2, context=16)


def device_ms(arch, coefficients):
    """A device whose every cost is linear in each size (so in products of sizes): embedding, mixer, feed-forward.

    Kinds have prices of their own; the halves of a block add up.
    """
    a, b, c, d, e, f = coefficients
    h = arch.hidden_size
    total = a + b * h
    for _, spec in arch.kept:
        weights = {"dense": 1, "ternary": 0.5, "binary": 0.3}[spec.weights]
        mixer = {"attention": 1, "mlgru": 0.7, "none": 0}[spec.mixer]
        total += c + mixer * weights * d * h * spec.head_dim * (2 * spec.q_heads + 2 * spec.kv_heads)
        total += mixer * e * spec.q_heads * spec.head_dim + weights * f * h * spec.ffn_size * (
            spec.top_k + spec.shared_experts
        )
        total += 0.1 * f * h * spec.experts
    return total


def measured(space, ms):
    plan = design(space)
    found = {arch: ms(arch) for arch in plan.stacks()}
    return assemble(plan, found, HERE, "decode", WORKLOAD, space.base, 0.01, 3.0)


COEFFICIENTS = st.tuples(*[st.floats(0.01, 10.0)] * 6)


@settings(max_examples=20)
@given(spaces_with_members(members=3, most_choices=4) | spaces_with_members(members=3, kinds=True), COEFFICIENTS)
def test_sum_of_the_table_is_exact_on_an_additive_device(case, coefficients):
    space, *archs = case
    table = measured(space, lambda arch: device_ms(arch, coefficients))
    for arch in archs:
        assert table.latency_ms(arch) == pytest.approx(device_ms(arch, coefficients), rel=1e-9)


@settings(max_examples=15)
@given(spaces_with_members(kinds=True), st.integers(0, 2**31))
def test_measured_stacks_come_back_whatever_they_cost(case, seed):
    space, _ = case
    plan, rng = design(space), np.random.default_rng(seed)
    _, deep = plan.depths
    # depths are additive by definition of the end; what a block costs is arbitrary
    cost = {}

    def ms(arch):
        block = cost.setdefault((arch.hidden_size, arch.layers[0]), rng.uniform(1, 2))
        return cost.setdefault(arch.hidden_size, rng.uniform(0, 1)) + arch.depth * block

    table = measured(space, ms)
    for arch in plan.stacks():
        differs = [name for name in DIMENSIONS if getattr(arch.layers[0], name) != getattr(plan.reference, name)]
        halves = {
            "ffn" if name in {"ffn_size", "experts", "top_k", "shared_experts"} else "mixer"
            for name in differs
            if name != "weights"
        }
        assert len(halves) < 2
        if arch.depth == deep:
            assert table.latency_ms(arch) == pytest.approx(ms(arch), rel=1e-9)


def small_space(**changes):
    value = {
        "base": {"vocab_size": 64, "max_seq": 32}, "layers": 3, "hidden_size": [16, 32, 64], "depth": [1, 2, 3],
        "kv_heads": {"choices": [1, 2], "per_layer": True}, "queries_per_group": 1, "head_dim": 8,
        "ffn_size": {"choices": [16, 64], "per_layer": True}, **changes,
    }  # fmt: skip
    return SearchSpace.from_dict(value)


SPACE = small_space()
TABLE = measured(SPACE, lambda arch: device_ms(arch, (1, 0.1, 0.5, 0.01, 0.1, 0.02)))


def test_stacks_are_few_and_within_the_space():
    wide = small_space(hidden_size=list(range(8, 808, 8)), ffn_size=list(range(8, 2008, 8)), head_dim=[4, 6, 8, 10, 12])
    assert len(design(wide).stacks()) < 200
    for arch in design(wide).stacks():
        assert all(getattr(spec, name) in wide.dimension(name).choices for _, spec in arch.kept for name in DIMENSIONS)
        assert arch.hidden_size in wide.hidden_size


@pytest.mark.parametrize(("change", "name"), [({"ffn_size": 65}, "ffn_size"), ({"kv_heads": 3}, "kv_heads")])
def test_size_that_was_not_measured_is_refused(change, name):
    spec = replace(SPACE.largest().kept[0][1], **change)
    with pytest.raises(UserError, match=f"{name} = .* outside"):
        TABLE.latency_ms(Architecture(32, (spec,)))
    with pytest.raises(UserError, match="hidden_size = 8 is outside of 16 to 64"):
        TABLE.latency_ms(replace(SPACE.largest(), hidden_size=8))


def test_stored_table_predicts_the_same(tmp_path):
    TABLE.save(tmp_path / "table.json")
    found = BlockTable.load(tmp_path / "table.json", HERE, "decode", WORKLOAD, SPACE.base)
    rng = np.random.default_rng(0)
    for _ in range(20):
        arch = SPACE.sample(rng)
        assert found.latency_ms(arch) == TABLE.latency_ms(arch)


@pytest.mark.parametrize(
    ("fingerprint", "phase", "workload", "base", "name"),
    [
        ({"device": "another chip", "threads": 1}, "decode", WORKLOAD, {}, "device = a chip, here it is another chip"),
        ({"device": "a chip", "threads": 2}, "decode", WORKLOAD, {}, "threads = 1, here it is 2"),
        ({"device": "a chip"}, "decode", WORKLOAD, {}, "threads = 1, here it is None"),
        (HERE, "prefill", WORKLOAD, {}, "phase = decode"),
        (HERE, "decode", Workload(2, 17), {}, "context = 16"),
        (HERE, "decode", WORKLOAD, {"vocab_size": 65}, "vocab_size = 64"),
    ],
)
def test_table_of_other_conditions_is_refused(tmp_path, fingerprint, phase, workload, base, name):
    TABLE.save(tmp_path / "table.json")
    with pytest.raises(UserError, match=name):
        BlockTable.load(tmp_path / "table.json", fingerprint, phase, workload, replace(SPACE.base, **base))


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value.pop("ends"),
        lambda value: value.update(format=99),
        lambda value: value["ends"].update(ms=[1.0]),
        lambda value: value["ends"].update(ms=[1.0, 2.0, "much"]),
        lambda value: value.update(mixers=[1]),
    ],
)
def test_damaged_table_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "table.json"
    TABLE.save(path)
    value = json.loads(path.read_text())
    damage(value)
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"table\.json: not a latency table") as found:
        BlockTable.load(path, HERE, "decode", WORKLOAD, SPACE.base)
    assert "\n" not in str(found.value)
