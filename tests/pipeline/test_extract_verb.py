"""`llmnas extract`: the best network for each target, by both methods, on a trained supernet; what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import yaml

from llmnas.archive import Archive
from llmnas.cli.examine import target_setting
from llmnas.config import load_config, make_config
from llmnas.cost import BudgetSampler, count_params
from llmnas.errors import UserError
from llmnas.evaluate.evaluator import Evaluator
from llmnas.pipeline.context import Context
from llmnas.pipeline.extract import _earlier, _require_reachable, _trained
from llmnas.pipeline.metrics import measured_on
from llmnas.rng import generator
from llmnas.runs import RunFolder
from llmnas.search.predictor import Predictor
from llmnas.space import Architecture

TARGETS = (9000, 12000)
SMALL = ["--set", "extract.samples=24", "--set", "extract.generations=3", "--set", "extract.population=16"]


def evaluator_of(run):
    config = load_config(run.config, [])
    context = Context(config, RunFolder(run.folder), None)
    windows, bytes_per_token = context.windows(config.search.windows)
    return config, Evaluator(context.supernet(), windows, config.search.sample, bytes_per_token, config.budget.workload)


@pytest.mark.parametrize(("method", "options"), [("ofa", SMALL), ("mip", ["--set", "extract.checks=6"])])
def test_every_target_gets_a_network_that_meets_it_and_was_really_measured(copied, llmnas, method, options):
    command = ["extract", copied.config, "--run-dir", copied.folder, "--method", method, *options]
    done = llmnas(*command, "--targets", f"params={TARGETS[0]},{TARGETS[1]}")
    assert done.code == 0, done.err
    result = json.loads((copied.folder / "extract" / f"{method}.json").read_text())
    config, evaluate = evaluator_of(copied)
    assert [row["limit"] for row in result["targets"]] == list(TARGETS)
    for row in result["targets"]:
        everyone = [row["found"], *row["others"]]
        for one in everyone:
            arch = Architecture.from_dict(one["architecture"])
            assert config.space.contains(arch)
            assert config.budget.admits(config.space.base, arch)
            assert one["metrics"]["params"] == count_params(arch, config.space.base).total <= row["limit"]
            assert one["measured"] == pytest.approx(evaluate.measure(arch)["val_loss"], rel=1e-6)
        assert row["found"]["measured"] == min(one["measured"] for one in everyone)
        assert row["found"]["id"] in done.out
    with_more = result["targets"][1]["found"]["measured"]
    assert with_more <= result["targets"][0]["found"]["measured"] + 0.05

    store = Archive.load(copied.folder / "extract" / "evaluations.sqlite")
    assert len(store) == result["evaluations"]
    store.close()
    assert "exists already" in llmnas(*command, "--targets", "params=9000").complaint
    again = llmnas(*command, "--targets", f"params={TARGETS[0]},{TARGETS[1]}", "--resume")
    assert again.code == 0, again.err
    repeated = json.loads((copied.folder / "extract" / f"{method}.json").read_text())
    assert repeated["evaluations"] == result["evaluations"]  # nothing was measured a second time
    assert repeated["targets"] == result["targets"]
    less = llmnas(*command, "--targets", "params=9500", "--resume")
    assert less.code == 0, less.err
    joined = json.loads((copied.folder / "extract" / f"{method}.json").read_text())["targets"]
    assert joined[:2] == result["targets"]  # what was answered before stays
    assert joined[2]["limit"] == 9500
    assert "params <= 9,000" in less.out


def test_mip_takes_the_best_sum_of_measured_block_scores_and_says_whether_sums_hold(copied, llmnas):
    """The oracle: replace-one by hand, then every member of the space within the limit."""
    done = llmnas(
        "extract", copied.config, "--run-dir", copied.folder, "--method", "mip", "--targets", "params=11000",
        "--set", "extract.checks=6", "--set", "extract.verify=3",
    )  # fmt: skip
    assert done.code == 0, done.err
    result = json.loads((copied.folder / "extract" / "mip.json").read_text())
    config, evaluate = evaluator_of(copied)
    space = config.space
    rng = generator(0, "members")
    drawn = BudgetSampler(space, config.budget).sample_many(rng, 4000)
    members = [arch for arch in dict.fromkeys(drawn) if count_params(arch, space.base).total <= 11000]

    def largest(arch):
        shape = next(spec for spec in arch.layers if spec)
        block = max(
            (spec for a in drawn if a.hidden_size == arch.hidden_size for _, spec in a.kept
             if spec.queries_per_group == shape.queries_per_group),
            key=lambda spec: (spec.kv_heads, spec.ffn_size),
        )  # fmt: skip
        return Architecture(arch.hidden_size, (block,) * space.layers)

    known = {}

    def loss(arch):
        if arch not in known:
            known[arch] = evaluate.measure(arch)["val_loss"]
        return known[arch]

    def predicted(arch):
        parent = largest(arch)
        changes = [
            loss(Architecture(parent.hidden_size, (*parent.layers[:i], spec, *parent.layers[i + 1 :]))) - loss(parent)
            for i, spec in enumerate(arch.layers)
        ]
        return loss(parent) + sum(changes)

    best = min(predicted(arch) for arch in members)
    everyone = [result["targets"][0]["found"], *result["targets"][0]["others"]]
    assert len(everyone) == 3
    assert min(one["predicted"] for one in everyone) == pytest.approx(best, abs=1e-5)
    verdict = result["additivity"]
    assert verdict["networks"] >= 6
    assert verdict["rmse"] >= abs(verdict["bias"])
    assert result["verdict"].startswith("block scores")
    assert result["cells"] == result["cells_of_space"] == 4


def test_ofa_reports_its_predictor_on_networks_that_it_was_not_trained_on(copied, llmnas):
    done = llmnas("extract", copied.config, "--run-dir", copied.folder, "--targets", "flops_per_token=30000", *SMALL)
    assert done.code == 0, done.err
    result = json.loads((copied.folder / "extract" / "ofa.json").read_text())
    assert result["held_out"]["size"] == round(0.2 * result["samples"])
    assert -1 <= result["held_out"]["tau"] <= 1
    assert result["held_out"]["rmse"] > 0
    assert all(row["found"]["deviation"] > 0 for row in result["targets"])
    assert f"tau {result['held_out']['tau']:.2f}" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "extract.targets: none given"),
        (["--targets", "params"], "must read metric=limit,limit"),
        (["--targets", "val_loss=5"], "val_loss has no targets; allowed: params"),
        (["--targets", "params=10"], "extract.targets.params: 10 is below"),
        (["--targets", "params=-5"], "extract.targets.params"),
        (["--targets", "params=9000", "--method", "puzzle"], "'ofa' or 'mip'"),
        (["--targets", "params=9000,9000"], "each once"),
        (
            ["--targets", "params=9000", "--method", "mip", "--set", "extract.samples=50"],
            "extract.samples does nothing",
        ),
        (["--targets", "params=9000", "--set", "extract.cells=2"], "extract.cells does nothing with method ofa"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_measured(copied, llmnas, arguments, message):
    done = llmnas("extract", copied.config, "--run-dir", copied.folder, *arguments)
    assert done.code == 2
    assert message in done.complaint
    assert not (copied.folder / "extract" / "evaluations.sqlite").exists()


def context_of(path, targets, *, hardware=None, **space):
    """A run without text or weights: what targets are checked with."""
    base = {"vocab_size": 256, "max_seq": 64}
    sizes = {"hidden_size": [64], "kv_heads": 2, "queries_per_group": 4, "head_dim": 32, "ffn_size": 128}
    values = {
        "name": "kinds", "space": {"base": base, "layers": 2, "depth": [1, 2], **sizes, **space},
        "train": {"steps": 1, "batch_size": 2, "seq_len": 32, "lr": 0.001}, "extract": {"targets": targets},
        "hardware": hardware,
    }  # fmt: skip
    return Context(make_config(values, [], "x"), RunFolder(path), None)


def test_a_target_is_refused_by_the_cheapest_network_not_by_the_smallest(tmp_path, monkeypatch):
    class Table:
        end_ms = staticmethod(lambda hidden_size: 1.0)
        block_ms = staticmethod(lambda hidden_size, spec: 5.0 if spec.weights == "ternary" else 2.0)

    monkeypatch.setattr("llmnas.pipeline.extract.latency_table", lambda *_: (Table(), ""))
    weights = {"choices": ["ternary", "dense"], "per_layer": True}
    context = context_of(tmp_path / "a", {"latency_ms": [3.5]}, weights=weights)
    assert context.config.space.smallest().layers[0].weights == "ternary"
    _require_reachable(context, [("latency_ms", 3.0)])
    with pytest.raises(UserError, match=r"latency_ms: 2\.9 is below 3, what the cheapest"):
        _require_reachable(context, [("latency_ms", 2.9)])

    mixer = {"choices": ["mlgru", "attention"], "per_layer": True}
    context = context_of(tmp_path / "b", {"params": [9e9]}, mixer=mixer)
    space = context.config.space
    attention = space.build(64, {0: replace(space.smallest().layers[0], mixer="attention")})
    least = count_params(attention, space.base).total
    assert least < count_params(space.smallest(), space.base).total
    _require_reachable(context, [("params", least)])
    with pytest.raises(UserError, match="what the cheapest network needs"):
        _require_reachable(context, [("params", least - 1)])


def test_an_earlier_latency_of_other_hardware_does_not_stay(tmp_path):
    context = context_of(tmp_path / "a", {"latency_ms": [1.0]}, hardware={"device": "a100", "phase": "decode"})
    rows = [
        {"metric": "latency_ms", "limit": 2.0} | measured_on(context.config, ["latency_ms"]),
        {"metric": "latency_ms", "limit": 3.0, "hardware": {"device": "l4", "phase": "decode"}},
        {"metric": "params", "limit": 9e9},
        {"metric": "latency_ms", "limit": 1.0} | measured_on(context.config, ["latency_ms"]),
    ]
    (tmp_path / "ofa.json").write_text(json.dumps({"targets": rows}))
    kept = _earlier(context.config, tmp_path / "ofa.json", [("latency_ms", 1.0)])
    assert kept == [rows[0], rows[2]]
    assert _earlier(context.config, tmp_path / "mip.json", []) == []


@pytest.mark.parametrize("kind", ["gp", "ensemble"])
def test_a_stored_predictor_is_taken_again_where_it_was_told_the_same(tmp_path, monkeypatch, kind):
    context = context_of(tmp_path, {"params": [9e9]}, ffn_size={"choices": [64, 128, 256, 512], "per_layer": True})
    extracting = context.config.extract.model_copy(update={"predictor": kind})
    context = replace(context, config=context.config.model_copy(update={"extract": extracting}))
    space, rng = context.config.space, np.random.default_rng(0)
    archs = list(dict.fromkeys(space.sample(rng) for _ in range(40)))[:16]
    values = [float(i % 5) for i in range(16)]
    path = context.run.result("extract").with_name("predictor.safetensors")
    path.parent.mkdir(parents=True)
    fitted, quality = _trained(context, archs, values)
    with monkeypatch.context() as patched:
        patched.setattr(Predictor, "fit", lambda *_: pytest.fail("fitted again"))
        stored, said = _trained(context, archs, values)
    assert said == quality
    np.testing.assert_array_equal(stored.predict(archs), fitted.predict(archs))
    assert _trained(context, archs, values[::-1])[0].was_told(archs, values[::-1])
    other = context_of(tmp_path, {"params": [9e9]}, ffn_size=64)
    with pytest.raises(UserError, match="a predictor of another search space"):
        _trained(other, archs, values)


def test_limits_of_countable_costs_may_be_written_as_elsewhere():
    assert target_setting("params=500k,1.5M,2e6,9000") == "extract.targets.params=[500000, 1500000, 2000000.0, 9000.0]"
    assert target_setting("memory_bytes=2_000") == "extract.targets.memory_bytes=[2000.0]"
    assert target_setting("latency_ms=0.5") == "extract.targets.latency_ms=[0.5]"
    with pytest.raises(
        UserError, match=r"^--targets params abc: must be a number of params up to 10\^15, for instance 800000, 1.5M"
    ):
        target_setting("params=9000,abc")
    with pytest.raises(UserError, match=r"^--targets latency_ms: '5k' must be a number, for instance latency_ms=10"):
        target_setting("latency_ms=5k")


def test_every_candidate_is_recalibrated_where_the_search_section_says_so(llmnas, tmp_path):
    """Biases that balance experts: `extract` measures what `search` would, not with the supernet's own."""
    space = {**tiny.CONFIG["space"], "experts": [4], "top_k": [1]}
    train = {"steps": 2, "eval_sequences": 1, "moe": {"balance": "bias", "bias_rate": 0.5}}
    config = tiny.write_config(
        tmp_path, tiny.write_corpus(tmp_path / "text"), space=space, budget={"max_params": 90000}, train=train,
        search={"recalibrate": 4},
    )  # fmt: skip
    folder = tmp_path / "run"
    assert llmnas("train", config, "--run-dir", folder, "--prepare").code == 0
    small = [*SMALL, "--set", "extract.samples=10", "--set", "extract.verify=1"]
    done = llmnas("extract", config, "--run-dir", folder, "--targets", "params=50000", *small)
    assert done.code == 0, done.err
    row = json.loads((folder / "extract" / "ofa.json").read_text())["targets"][0]["found"]
    arch = Architecture.from_dict(row["architecture"])
    settings = ([], ["search.recalibrate=0"])
    evaluators = [Context(load_config(config, sets), RunFolder(folder), None).evaluator() for sets in settings]
    with_own, with_the_supernets = (evaluator.measure(arch)["val_loss"] for evaluator in evaluators)
    assert row["measured"] == pytest.approx(with_own, rel=1e-6)
    assert row["measured"] != pytest.approx(with_the_supernets, rel=1e-4)


def test_mip_refuses_a_latency_that_is_no_sum_of_measured_blocks(copied, llmnas, tmp_path):
    values = yaml.safe_load(copied.config.read_text())
    values["hardware"] = {"device": "a100"}
    path = tmp_path / "a100.yaml"
    path.write_text(yaml.safe_dump(values))
    command = ["extract", path, "--run-dir", copied.folder, "--targets", "latency_ms=90"]
    assert "mip needs a latency that is a sum of measured blocks" in llmnas(*command, "--method", "mip").complaint
    done = llmnas(*command, *SMALL)  # a predictor needs no sum: the estimate is as good as any number
    assert done.code == 0, done.err
    assert np.isfinite(json.loads((copied.folder / "extract" / "ofa.json").read_text())["held_out"]["rmse"])
