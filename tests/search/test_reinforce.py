"""The reward of the paper, masks that leave exactly what can still be feasible, and what the controller learns."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from test_arch_kernel import MIXED
from toy_problem import SPACE, TWO, measure, members

from llmnas.cost import Budget
from llmnas.errors import UserError
from llmnas.pareto import Evaluation
from llmnas.search import Problem, search
from llmnas.search.partial import Decisions
from llmnas.search.reinforce import Controller, Reinforce, ReinforceOptions, log_reward
from llmnas.space import Architecture, SearchSpace, decode, encode

SMALL = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 16},
        "layers": 3,
        "hidden_size": [16, 32],
        "depth": [1, 2, 3],
        "kv_heads": [1],
        "queries_per_group": [1, 2],
        "head_dim": [8],
        "ffn_size": {"choices": [16, 32, 64], "per_layer": True},
    }
)


def test_the_reward_is_the_papers():
    acc, latency, target = 0.4, 30.0, 20.0
    soft = math.exp(log_reward(math.log(acc), {"ms": latency}, {"ms": target}, "soft"))
    hard = math.exp(log_reward(math.log(acc), {"ms": latency}, {"ms": target}, "hard"))
    assert soft == pytest.approx(acc * (latency / target) ** -0.07)
    assert hard == pytest.approx(acc * (latency / target) ** -1)
    below = {kind: math.exp(log_reward(math.log(acc), {"ms": 10.0}, {"ms": target}, kind)) for kind in ("soft", "hard")}
    assert below == pytest.approx({"soft": acc * 0.5**-0.07, "hard": acc})
    with pytest.raises(UserError, match="positive"):
        log_reward(0.0, {"ms": -1.0}, {"ms": 1.0}, "soft")


def test_doubling_latency_for_five_percent_accuracy_is_an_even_trade_under_the_soft_exponents():
    """How the paper arrives at -0.07."""
    slow = log_reward(math.log(0.5 * 1.05), {"ms": 40.0}, {"ms": 20.0}, "soft")
    fast = log_reward(math.log(0.5), {"ms": 20.0}, {"ms": 20.0}, "soft")
    assert slow == pytest.approx(fast, abs=0.002)


@pytest.mark.parametrize("policy", ["any", "keep_ends", "even"])
@pytest.mark.parametrize(
    "budget", [None, Budget(max_params=4_000), Budget(min_params=6_000), Budget(max_flops_per_token=50_000)],
    ids=["free", "most", "least", "flops"],
)  # fmt: skip
def test_masks_leave_exactly_what_has_a_feasible_completion(policy, budget):
    depth = SMALL.depth.model_copy(update={"policy": policy, "choices": (1, 3) if policy != "keep_ends" else (2, 3)})
    space = SMALL.model_copy(update={"depth": depth})
    decisions = Decisions(space, budget)
    codes = [encode(space, a).tolist() for a in members(space) if budget is None or budget.admits(space.base, a)]
    assert codes
    prefixes: dict[tuple[int, ...], set[int]] = {}
    for code in codes:
        for i, value in enumerate(code):
            prefixes.setdefault(tuple(code[:i]), set()).add(value)
    for prefix, values in prefixes.items():
        assert set(np.flatnonzero(decisions.allowed(list(prefix))).tolist()) == values


def test_the_controller_draws_only_what_is_allowed():
    controller = Controller(Decisions(SMALL, None).values, 0)
    budget = Budget(max_params=4_000)
    codes, masks = controller.sample(Decisions(SMALL, budget), 40, np.random.default_rng(0))
    archs = [decode(SMALL, code.numpy()) for code in codes]
    assert all(SMALL.contains(a) and budget.admits(SMALL.base, a) for a in archs)
    assert len(set(archs)) > 5
    log_probability, entropy = controller.score(codes, masks)
    assert (log_probability < 0).all()
    assert (entropy > 0).all()


def test_the_controller_writes_layers_of_every_kind():
    decisions = Decisions(MIXED, Budget(max_params=60_000))
    codes, _ = Controller(decisions.values, 0).sample(decisions, 40, np.random.default_rng(0))
    archs = [decisions.build(code.tolist()) for code in codes]
    assert all(MIXED.contains(arch) for arch in archs)
    assert {spec.mixer for arch in archs for _, spec in arch.kept} == {"attention", "mlgru", "none"}
    found = search(MIXED, lambda batch: table(batch), "reinforce", {"val_loss": "min"}, evaluations=24)
    assert len(found) == 24


def test_probabilities_of_all_members_sum_to_one():
    decisions = Decisions(SMALL, None)
    controller = Controller(decisions.values, 3)
    codes = torch.tensor([encode(SMALL, arch).tolist() for arch in members(SMALL)])
    rows = [[decisions.allowed(code[:i].tolist()) for i in range(len(code))] for code in codes]
    masks = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
    with torch.no_grad():
        log_probability, _ = controller.score(codes, masks)
    assert log_probability.exp().sum().item() == pytest.approx(1, abs=1e-4)


def table(archs: Sequence[Architecture]) -> list[dict[str, float]]:
    """Wider is better at the middle layer and worse at the ends; latency is the width."""
    rows = []
    for arch in archs:
        sizes = [0 if spec is None else spec.ffn_size for spec in arch.layers]
        loss = 2.0 - 0.02 * sizes[1] + 0.01 * (sizes[0] + sizes[2]) - 0.01 * arch.hidden_size
        rows.append({"val_loss": loss, "latency_ms": 1.0 + sum(sizes) / 10 + arch.hidden_size / 10})
    return rows


def probability_of_best(controller: Controller, space: SearchSpace, best: Architecture) -> float:
    code = encode(space, best)
    decisions = Decisions(space, None)
    masks = [torch.from_numpy(decisions.allowed(code[:i].tolist()))[None] for i in range(len(code))]
    with torch.no_grad():
        return controller.score(torch.from_numpy(code)[None], masks)[0].exp().item()


def test_converges_to_the_optimum_of_a_small_table():
    problem = Problem(SMALL, {"val_loss": "min"}, {}, None, 0)
    strategy = Reinforce(problem, ReinforceOptions(start=8))
    everything = members(SMALL)
    losses = [row["val_loss"] for row in table(everything)]
    good = [a for a, loss in zip(everything, losses, strict=True) if loss <= min(losses) + 1e-9]
    before = sum(probability_of_best(strategy._controller, SMALL, a) for a in good)
    found: list[float] = []
    for _ in range(12):
        archs = strategy.ask(8)
        rows = table(archs)
        found += [row["val_loss"] for row in rows]
        strategy.tell([Evaluation(a, row) for a, row in zip(archs, rows, strict=True)])
    assert min(found) == pytest.approx(min(losses))
    after = sum(probability_of_best(strategy._controller, SMALL, a) for a in good)
    assert after > 20 * before
    codes, _ = strategy._controller.sample(Decisions(SMALL, None), 64, np.random.default_rng(5))
    drawn = [row["val_loss"] for row in table([decode(SMALL, code.numpy()) for code in codes])]
    assert np.mean(drawn) < np.quantile(losses, 0.2)


def learned_latency(**options) -> float:
    goals = {"val_loss": "min", "latency_ms": "min"}
    strategy = Reinforce(Problem(SMALL, goals, {}, None, 1), ReinforceOptions(start=8, **options))
    for _ in range(12):
        archs = strategy.ask(8)
        strategy.tell([Evaluation(a, row) for a, row in zip(archs, table(archs), strict=True)])
    codes, _ = strategy._controller.sample(Decisions(SMALL, None), 64, np.random.default_rng(5))
    return float(np.mean([row["latency_ms"] for row in table([decode(SMALL, code.numpy()) for code in codes])]))


def test_the_target_of_what_should_be_large_is_a_least_value():
    """Tokens a second above it are good enough; below it they cost, the more the farther."""
    goals = {"val_loss": "min", "speed": "max"}
    strategy = Reinforce(Problem(SMALL, goals, {}, None, 0), ReinforceOptions(targets={"speed": 50}, exponents="hard"))
    rewards = [
        strategy._log_reward(Evaluation(SMALL.smallest(), {"val_loss": 1.0, "speed": speed}))
        for speed in (10, 25, 50, 90)
    ]
    assert rewards[0] < rewards[1] < rewards[2] == rewards[3] == -1.0


def test_the_exponents_move_the_latency_that_is_found():
    target = {"latency_ms": 6.0}
    soft = learned_latency(targets=target, exponents="soft")
    hard = learned_latency(targets=target, exponents="hard")
    assert hard < soft - 0.4
    loose = learned_latency(targets={"latency_ms": 14.0}, exponents="hard")
    assert hard < loose - 0.4


def test_stays_within_the_budget_and_learns_in_it():
    budget = Budget(max_params=6_000)
    decisions = Decisions(SMALL, budget)

    def expected_loss(strategy: Reinforce) -> float:
        codes, _ = strategy._controller.sample(decisions, 64, np.random.default_rng(5))
        return float(np.mean([row["val_loss"] for row in table([decode(SMALL, code.numpy()) for code in codes])]))

    strategy = Reinforce(Problem(SMALL, {"val_loss": "min"}, {}, budget, 0), ReinforceOptions(start=8))
    before = expected_loss(strategy)
    for _ in range(8):
        archs = strategy.ask(8)
        assert all(budget.admits(SMALL.base, arch) for arch in archs)
        strategy.tell([Evaluation(a, row) for a, row in zip(archs, table(archs), strict=True)])
    assert expected_loss(strategy) < before - 0.5


def test_a_constraint_is_learned():
    def inside(strategy: Reinforce) -> float:
        codes, _ = strategy._controller.sample(Decisions(SMALL, None), 64, np.random.default_rng(5))
        rows = table([decode(SMALL, code.numpy()) for code in codes])
        return float(np.mean([row["latency_ms"] <= 6.5 for row in rows]))

    strategy = Reinforce(Problem(SMALL, {"val_loss": "min"}, {"latency_ms": 6.5}, None, 0), ReinforceOptions(start=8))
    before = inside(strategy)
    for _ in range(10):
        archs = strategy.ask(8)
        strategy.tell([Evaluation(a, row) for a, row in zip(archs, table(archs), strict=True)])
    assert before < 0.5
    assert inside(strategy) > before + 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "speed"}, "quality: 'speed' is no objective"),
        ({"targets": {"val_loss": 2.0}}, "positive target of another objective than val_loss; allowed:"),
        ({"targets": {"params": -2.0}}, "must be a positive target"),
    ],
)
def test_options_that_name_nothing_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        search(SPACE, measure, "reinforce", TWO, options=options)
    with pytest.raises(UserError, match="exponents does nothing without a second objective"):
        search(SPACE, measure, "reinforce", {"val_loss": "min"}, options={"exponents": "hard"})
