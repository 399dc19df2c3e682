"""Objectives and constraints of a run: which are refused before anything is trained, and a search by all of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from llmnas.archive import Archive
from llmnas.config import METRICS, Config, load_config
from llmnas.cost import Workload
from llmnas.cost.roofline import GPUS, roofline_ms
from llmnas.errors import UserError
from llmnas.evaluate.power import NoMeter
from llmnas.files import read_json
from llmnas.pareto import Evaluation
from llmnas.pipeline.context import Context
from llmnas.pipeline.decide import chosen, contenders, price
from llmnas.pipeline.metrics import check_metrics, own_metric, providers, with_own
from llmnas.pipeline.prepare import prepare
from llmnas.pipeline.search import search_supernet
from llmnas.runs import RunFolder
from llmnas.space import Architecture
from llmnas.supernet import Transformer, save_weights
from llmnas.tracking import Tracker

VALUES = {
    "name": "metrics",
    "data": {"source": "corpus.txt"},
    "space": {
        "base": {"vocab_size": 270, "max_seq": 16}, "layers": 2, "hidden_size": [8, 16], "depth": [1, 2],
        "kv_heads": {"choices": [1, 2], "per_layer": True}, "queries_per_group": 1, "head_dim": 4,
        "ffn_size": {"choices": [8, 16], "per_layer": True},
    },
    "train": {"steps": 1, "batch_size": 2, "seq_len": 16, "lr": 0.001},
    "search": {"strategy": "random", "evaluations": 12, "windows": 4, "sample": 4},
    "tracking": {"wandb": "off"},
}  # fmt: skip


def config(search=None, **changes):
    return Config.model_validate({**VALUES, "search": {**VALUES["search"], **(search or {})}, **changes})


@pytest.mark.parametrize("section", ["objectives", "constraints"])
def test_metric_that_does_not_exist_is_refused_with_the_names(section):
    value = {"latency_sm": "min" if section == "objectives" else 1.0}
    with pytest.raises(UserError, match=f"search.{section}: latency_sm does not exist; allowed: val_loss, .*energy_j"):
        check_metrics(config({section: value}), {})
    with pytest.raises(UserError, match="latency_sm does not exist"):
        Context(config({section: value}), None, None)
    check_metrics(config({section: value}), {"latency_sm": lambda arch, base: 1.0})


def test_every_named_metric_is_allowed_in_any_number_and_direction():
    for count in range(1, len(METRICS) + 1):
        check_metrics(config({"objectives": dict.fromkeys(METRICS[:count], "max")}), {})


@pytest.mark.parametrize(
    ("hardware", "search", "message"),
    [
        ({"phase": "decode"}, {}, "no objective, constraint or target of extract needs it"),
        ({"device": "a100", "method": "measure"}, {"constraints": {"latency_ms": 1}}, "hardware.method does nothing"),
        ({"device": "l4", "threads": 2}, {"constraints": {"latency_ms": 1}}, "hardware.threads does nothing"),
        ({"method": "measure", "seconds": 2}, {"constraints": {"latency_ms": 1}}, "hardware.seconds does nothing"),
        ({"correction": 3}, {"constraints": {"latency_ms": 1}}, "at least 8 networks"),
        (
            {"method": "measure"},
            {"constraints": {"energy_j": 1}},
            "hardware.method does nothing without decode_latency",
        ),
        (
            {"phase": "prefill"},
            {"constraints": {"decode_latency_ms": 1}},
            "hardware.phase does nothing without energy_j",
        ),
        ({"device": "b100"}, {"constraints": {"latency_ms": 1}}, "Input should be 'this', 'a100'"),
    ],
)
def test_hardware_that_does_nothing_is_refused(tmp_path, hardware, search, message):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**VALUES, "search": {**VALUES["search"], **search}, "hardware": hardware}))
    with pytest.raises(UserError, match=message):
        load_config(path, [])


def test_command_line_refuses_an_unknown_metric_before_it_writes_anything(tmp_path, monkeypatch, capsys):
    from llmnas.cli import main

    path, run_dir = tmp_path / "run.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump({**VALUES, "search": {**VALUES["search"], "objectives": {"cost": "min"}}}))
    for verb in ("run", "train", "prepare"):
        monkeypatch.setattr("sys.argv", ["llmnas", verb, str(path), "--run-dir", str(run_dir)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("llmnas: search.objectives: cost does not exist; allowed: val_loss, ")
    assert not run_dir.exists()
    # with the function named, the search gets as far as its missing tokens
    mine = own_file(tmp_path, "def cost(arch, base):\n    return arch.depth\n")
    monkeypatch.setattr(
        "sys.argv", ["llmnas", "search", str(path), "--run-dir", str(run_dir), "--objective", f"{mine}:cost"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "run `llmnas prepare`" in capsys.readouterr().err


def own_file(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return path


def test_own_metric_is_a_function_of_a_file(tmp_path):
    path = own_file(tmp_path, "def width(arch, base):\n    return arch.hidden_size / base.vocab_size\n")
    for text, direction in ((f"{path}:width", ""), (f"{path}:width=max", "max")):
        name, way, function = own_metric(text)
        assert (name, way) == ("width", direction)
        space = config().space
        assert function(space.largest(), space.base) == 16 / 270


@pytest.mark.parametrize(
    ("place", "text", "message"),
    [
        ("{}:width", "x = 1", "has no function width"),
        ("{}:width", "def width(", "does not run: SyntaxError"),
        ("{}:width", "1 / 0", "does not run: ZeroDivisionError"),
        ("{}", "", "must read file.py:function"),
        ("{}:width=least", "", "must read file.py:function"),
        ("{}:not a name", "", "must read file.py:function"),
        ("{}.absent:width", "", "no such file"),
    ],
)
def test_own_metric_that_cannot_be_used_is_one_line(tmp_path, place, text, message):
    with pytest.raises(UserError, match=message) as found:
        own_metric(place.format(own_file(tmp_path, text)))
    assert "\n" not in str(found.value)


def test_own_metric_joins_the_objectives_unless_the_config_names_it():
    own = [("width", "max", lambda arch, base: 1.0)]
    assert with_own(config(), own).search.objectives == {"val_loss": "min", "params": "min", "width": "max"}
    named = config({"constraints": {"width": (1.0, None)}})
    assert with_own(named, own) is named
    assert with_own(config(), [("width", "", own[0][2])]).search.objectives["width"] == "min"
    asked = config({"objectives": {"val_loss": "min", "width": "min"}})
    assert with_own(asked, [("width", "", own[0][2])]) is asked
    with pytest.raises(UserError, match=r"width=max, but search\.objectives\.width is the other direction"):
        with_own(asked, own)
    with pytest.raises(UserError, match="two functions are called width"):
        with_own(config(), own * 2)
    with pytest.raises(UserError, match="params is a metric of llmnas"):
        check_metrics(config(), {"params": lambda arch, base: 1.0})


def test_only_what_is_asked_for_is_provided_and_estimates_say_so(tmp_path):
    run = RunFolder(tmp_path)
    assert providers(config(), run, {}) == []
    budget = {"workload": {"batch": 2, "context": 8}}
    asked = {"val_loss": "min", "prefill_latency_ms": "min", "energy_j": "min"}
    made = providers(config({"objectives": asked}, hardware={"device": "h100"}, budget=budget), run, {})
    assert [provider.metric for provider in made] == ["prefill_latency_ms", "energy_j"]
    assert all("ESTIMATE" in provider.provenance for provider in made)
    assert all("batch 2, context 8" in provider.provenance for provider in made)
    space = config().space
    expected = roofline_ms(space.largest(), space.base, Workload(2, 8), "prefill", GPUS["h100"])
    assert made[0].values([space.largest()]) == [expected]
    assert not list(tmp_path.iterdir())


def test_energy_says_why_it_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("llmnas.pipeline.metrics.find_meter", lambda bench: NoMeter("the counter is closed"))
    (provider,) = providers(config({"constraints": {"energy_j": 1.0}}), RunFolder(tmp_path), {})
    assert provider.provenance.endswith("an ESTIMATE from a model: energy for each operation and byte at 45 nm "
                                        "(Horowitz 2014), not a measurement; the counter is closed")  # fmt: skip


def test_own_metric_that_fails_names_the_architecture():
    def broken(arch, base):
        raise KeyError("price")

    (provider,) = providers(config({"constraints": {"mine": 1.0}}), None, {"mine": broken})
    with pytest.raises(UserError, match=r"--objective mine: failed for .*hidden_size.*KeyError: 'price'"):
        provider.values([config().space.largest()])
    (nothing,) = providers(config({"constraints": {"mine": 1.0}}), None, {"mine": lambda arch, base: None})
    assert np.isnan(nothing.values([config().space.largest()])[0])  # recorded as a failed evaluation


def archive_of(losses, objectives=None, constraints=None):
    space = config().space
    rng = np.random.default_rng(0)
    archs: list[Architecture] = []
    while len(archs) < len(losses):
        arch = space.sample(rng)
        archs += [arch] if arch not in archs else []
    archive = Archive(":memory:", objectives or {"val_loss": "min"}, constraints)
    rows = [{"val_loss": x, "params": 100.0 - i, "latency_ms": float(i)} for i, x in enumerate(losses)]
    archive.append(archs, [{**row, **dict.fromkeys(("perplexity", "bits_per_byte"), row["val_loss"])} for row in rows])
    return archive


def test_contenders_are_the_front_then_the_best_of_the_rest():
    archive = archive_of([3.0, 2.0, float("nan"), 1.0, 2.5])
    assert [e.metrics["val_loss"] for e in contenders(archive)] == [1.0, 2.0, 2.5, 3.0]
    assert [e.metrics["val_loss"] for e in contenders(archive, 2)] == [1.0, 2.0]
    limited = archive_of([3.0, 2.0, 1.5, 1.0], {"val_loss": "min", "params": "min"}, {"latency_ms": 2.0})
    assert [e.metrics["val_loss"] for e in contenders(limited)] == [1.5, 2.0, 3.0]
    assert price(limited) == "params"
    assert price(archive) == "params"
    assert price(archive_of([1.0], {"latency_ms": "min", "val_loss": "min"})) == "latency_ms"
    for loss in ("perplexity", "bits_per_byte"):  # the loss by another name is no price
        assert price(archive_of([1.0], {loss: "min", "latency_ms": "min"})) == "latency_ms"


def test_nothing_that_could_be_built_is_refused():
    with pytest.raises(UserError, match=r"nearest is \w+: latency_ms = 0 is 1 above -1; loosen search.constraints"):
        chosen(Context(config(), RunFolder(None), None), archive_of([1.0, 2.0], constraints={"latency_ms": -1.0}))


def search_by(folder, objectives, constraints):
    """(context, archive) of a search by these, with an untrained supernet in place of a trained one."""
    words = np.random.default_rng(0).choice(["red", "green", "blue", "sea", "sky", "sun"], (40, 60))
    lines = [json.dumps({"text": " ".join(row)}) for row in words]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    asked = config(
        {"objectives": objectives, "constraints": constraints}, data={"source": str(folder / "corpus.jsonl")},
        hardware={"seconds": 0.1},
    )  # fmt: skip
    run = RunFolder(folder / "run")
    with Tracker(run.path, "off", "", {}) as tracker:
        context = Context(asked, run, tracker, {"width": lambda arch, base: float(arch.hidden_size)})
        prepare(context)
        save_weights(Transformer(asked.space), run.supernet)
        return context, search_supernet(context)


def test_an_archive_of_another_search_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    monkeypatch.setattr("llmnas.pipeline.search._measuring", lambda *_: pytest.fail("measured"))
    asked = config({"strategy": "evolution"})
    archive = Archive(run.evaluations, dict(asked.search.objectives), {}, {"strategy": "random"})
    archive.append([asked.space.smallest()], [{"val_loss": 1.0, "params": 1.0}])
    archive.close()
    with pytest.raises(UserError, match=r"belongs to another search \(.*strategy: random -> evolution"):
        search_supernet(Context(asked, run, None))


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search by everything at once."""
    objectives = {"val_loss": "min", "latency_ms": "min", "energy_j": "min", "width": "max"}
    return search_by(tmp_path_factory.mktemp("searched"), objectives, {"prefill_latency_ms": 1e4})


def test_every_metric_asked_for_is_there_with_its_provenance(searched):
    context, archive = searched
    assert len(archive) == 12
    for evaluation in archive.evaluations:
        assert evaluation.failure is None
        for name in ("latency_ms", "prefill_latency_ms", "energy_j"):
            assert evaluation.metrics[name] > 0
        assert evaluation.metrics["width"] == evaluation.arch.hidden_size
    provenance = read_json(context.run.manifest)["stages"]["search"]["provenance"]
    assert set(provenance) == {"latency_ms", "prefill_latency_ms", "energy_j", "width"}
    assert "block table" in provenance["latency_ms"]
    assert provenance["latency_ms"].startswith("decode, batch 1, context 16")
    assert provenance["prefill_latency_ms"].startswith("prefill")
    assert sorted(path.name for path in (context.run.path / "latency").iterdir()) == ["decode.json", "prefill.json"]


def test_the_choice_is_written_down_with_its_reasons(searched):
    from llmnas.pipeline.tables import failures, search_tables

    context, archive = searched
    decision = read_json(context.run.decision)
    found = chosen(context, archive)
    assert decision["chosen"] == found.arch.id
    assert found in contenders(archive)
    assert len(decision["statements"]) == len(contenders(archive)) - 1
    assert all("nats" in text or "lost to another" in text for text in decision["statements"])
    asked = [*archive.objectives, *archive.constraints]
    front, choice = search_tables(context.run, archive.front(), archive.evaluations, asked, archive.constraints)
    assert front.columns[-4:] == ("latency_ms", "energy_j", "width", "prefill_latency_ms")
    assert "block table" in front.note
    assert found.arch.id in choice.note
    assert len(choice.rows) == len(decision["statements"])
    assert "failed" not in front.note
    reasons = ["width is nan", "val_loss is nan", "width is nan", "dropped after 8 windows", None]
    windows = {"dropped after 8 windows": 8}
    told = [Evaluation(found.arch, {}, why, i, dropped_after=windows.get(why)) for i, why in enumerate(reasons)]
    assert failures(told) == " 3 of them failed, 2 because width is nan."


def test_a_stored_table_of_another_machine_stops_the_search(searched):
    context, _ = searched
    path = context.run.latency_table("decode")
    text = path.read_text()
    value = json.loads(text)
    value["fingerprint"]["device"] = "another chip"
    try:
        path.write_text(json.dumps(value))
        with pytest.raises(UserError, match="measured with device = another chip"):
            providers(context.config, context.run, context.own_metrics)
    finally:
        path.write_text(text)


def test_correction_is_learned_from_whole_networks(searched, monkeypatch):
    monkeypatch.setattr("llmnas.pipeline.latency._CORRECTION_SECONDS", 0.0)
    context, _ = searched
    asked = context.config.model_copy(update={"hardware": context.config.hardware.model_copy(update={"correction": 8})})
    made = {provider.metric: provider for provider in providers(asked, context.run, context.own_metrics)}
    assert "corrected on 8 networks" in made["latency_ms"].provenance
    assert np.isfinite(made["latency_ms"].values([asked.space.largest()])).all()
    measured = replace(context, config=context.config.model_copy(update={"hardware": None}))
    assert "block table" in providers(measured.config, measured.run, context.own_metrics)[0].provenance


def test_every_candidate_can_be_measured_instead(tmp_path, monkeypatch):
    monkeypatch.setattr("llmnas.pipeline.metrics._MEASURE_SECONDS", 0.0)
    asked = config({"objectives": {"val_loss": "min", "latency_ms": "min"}}, hardware={"method": "measure"})
    (provider,) = providers(asked, RunFolder(tmp_path), {})
    assert "measured on" in provider.provenance
    assert provider.about().endswith("lower quartile over rounds")
    assert all(ms > 0 for ms in provider.values([asked.space.smallest(), asked.space.largest()]))
    assert len(provider.noise) == 2
    provider.noise[:] = [0.01, 0.03]
    assert provider.about().endswith("lower quartile over rounds, mean noise 2.0% over 2 networks")
    assert not list(tmp_path.iterdir())
