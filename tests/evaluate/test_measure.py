"""A measured pass is the network's own; measuring leaves no trace; a table made here serves here only."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from strategies import spaces_with_members

from llmnas.cost import Workload
from llmnas.cost.latency import BlockTable
from llmnas.errors import UserError
from llmnas.evaluate import measure
from llmnas.evaluate.measure import Bench, make_pass, measure_latency, measure_table, this_device, time_passes, using
from llmnas.rng import torch_seed
from llmnas.space import Architecture, BaseModel, LayerSpec, SearchSpace
from llmnas.supernet import Transformer, pack, stand_alone_shape

BENCH = Bench()
SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 32, "max_seq": 16}, "layers": 3, "hidden_size": [8, 16], "depth": [1, 2, 3],
        "kv_heads": {"choices": [1, 2], "per_layer": True}, "queries_per_group": 1, "head_dim": [4, 6],
        "ffn_size": {"choices": [8, 16, 24], "per_layer": True},
        "mixer": {"choices": ["mlgru", "attention"], "per_layer": True},
    }
)  # fmt: skip


@settings(max_examples=5)
@given(spaces_with_members())
def test_both_passes_score_the_token_after_the_context(case):
    space, arch = case
    workload = Workload(batch=2, context=6)
    rope_dim = space.base.rope_dim or max(spec.head_dim for _, spec in arch.kept)
    model = Transformer(stand_alone_shape(space.base, rope_dim, arch))
    seed = torch.Generator().manual_seed(torch_seed(0, "measured tokens"))
    tokens = torch.randint(space.base.vocab_size, (2, 6), generator=seed)
    with torch.inference_mode():
        expected = model(tokens)[:, -1]
        for phase in ("prefill", "decode"):
            one_pass = make_pass(arch, space.base, phase, workload, BENCH)
            for _ in range(3):  # again and again: the same work each time
                torch.testing.assert_close(one_pass(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "ffn_size", "packed"), [("ternary", 128, 1), ("binary", 96, 1), ("ternary", 40, 1), ("dense", 128, 0)]
)
def test_low_bit_weights_are_measured_as_they_are_used(monkeypatch, weights, ffn_size, packed):
    made = []
    monkeypatch.setattr(measure, "pack", lambda model: made.append(pack(model)) or made[0])
    arch = Architecture(64, (LayerSpec(2, 1, 32, ffn_size, weights=weights),) * 2)
    base = BaseModel(vocab_size=32, max_seq=16)
    found = make_pass(arch, base, "prefill", Workload(batch=2, context=6), BENCH)()
    assert len(made) == packed
    seed = torch.Generator().manual_seed(torch_seed(0, "measured tokens"))
    tokens = torch.randint(32, (2, 6), generator=seed)
    with torch.inference_mode():
        expected = Transformer(stand_alone_shape(base, 32, arch))(tokens)[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_passes_are_timed_in_turn_in_changing_order():
    calls = []
    passes = [lambda i=i: calls.append(i) for i in range(5)]
    timings = time_passes(passes, BENCH, seconds=0.0, most=6)
    warm, rounds = calls[:5], [calls[i : i + 10] for i in range(5, len(calls), 10)]
    assert warm == [0, 1, 2, 3, 4]
    assert [t.rounds for t in timings] == [4] * 5 == [len(rounds)] * 5
    for order in rounds:
        assert order[::2] == order[1::2]  # untimed, then timed
        assert sorted(order[::2]) == [0, 1, 2, 3, 4]
    assert len({tuple(order) for order in rounds}) > 1


def test_numbers_are_the_lower_quartile_and_the_median_of_the_clock(monkeypatch):
    """A clock that advances by a known amount at every second reading."""
    spent = iter([0.008, 0.001, 0.004, 0.002, 0.016])
    now = [0.0, False]

    def clock():
        if now[1]:
            now[0] += next(spent)
        now[1] = not now[1]
        return now[0]

    monkeypatch.setattr("llmnas.evaluate.measure.time.thread_time", clock)
    (timing,) = time_passes([lambda: None], BENCH, seconds=60.0, most=5)
    assert timing.ms == pytest.approx(2.0)
    assert timing.median_ms == pytest.approx(4.0)
    # even rounds 8, 4, 16: lower quartile 6; odd rounds 1, 2: 1.25
    assert timing.noise == pytest.approx(2 * (6 - 1.25) / (6 + 1.25))


def test_threads_and_gradients_come_back_even_after_a_failure():
    before = torch.get_num_threads()

    def fail():
        assert torch.get_num_threads() == 3
        assert torch.is_inference_mode_enabled()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        time_passes([fail], BENCH._replace(threads=3), seconds=1.0)
    assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()
    with using(BENCH):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_more_threads_than_cores_are_refused():
    with pytest.raises(UserError, match=r"hardware\.threads must be between 1 and"):
        this_device(4096)
    assert this_device(1).threads == 1


def test_networks_too_large_to_hold_together_are_measured_in_groups(monkeypatch):
    monkeypatch.setattr("llmnas.evaluate.measure._GROUP_VALUES", 1)
    archs = [SPACE.smallest(), SPACE.middle(), SPACE.largest()]
    timings = measure_latency(archs, SPACE.base, "decode", Workload(1, 4), BENCH, 0.0)
    assert [t.rounds for t in timings] == [4, 4, 4]
    assert all(t.ms > 0 for t in timings)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_table_measured_here_covers_the_space_and_is_refused_elsewhere(tmp_path, phase):
    workload = Workload(1, 8)
    table = measure_table(SPACE, phase, workload, BENCH, seconds=0.0)
    rng = np.random.default_rng(0)
    assert all(np.isfinite(table.latency_ms(SPACE.sample(rng))) for _ in range(20))
    path = tmp_path / "table.json"
    table.save(path)
    BlockTable.load(path, BENCH.fingerprint, phase, workload, SPACE.base)
    for other in (BENCH._replace(threads=2), BENCH._replace(dtype=torch.bfloat16), BENCH._replace(clock="wall")):
        with pytest.raises(UserError, match="here it is"):
            BlockTable.load(path, other.fingerprint, phase, workload, SPACE.base)
    with pytest.raises(UserError, match="norm_eps"):
        BlockTable.load(path, BENCH.fingerprint, phase, workload, replace(SPACE.base, norm_eps=1e-6))
