"""A config that is malformed cannot exist: every mistake is one line with file, key and what is allowed."""

from pathlib import Path

import pytest
import tiny
import torch
import yaml

from llmnas.config import Config, as_kept, differences, load_config
from llmnas.errors import UserError
from llmnas.nn.lowbit import grouped_product


@pytest.fixture
def config(tmp_path):
    return tiny.write_config(tmp_path, "sotu")


def complaint(path, *sets):
    with pytest.raises(UserError) as error:
        load_config(path, list(sets))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_knob_is_changed(config):
    found = load_config(config, ["train.lr=0.5", "search.strategy=random", "retrain.hand_designed=[qwen3, llama3]"])
    assert found.train.lr == 0.5
    assert found.search.strategy == "random"
    assert found.retrain.hand_designed == ("qwen3", "llama3")
    assert found.train.steps == tiny.STEPS


def test_the_last_of_two_changes_counts_and_a_new_section_is_made(config):
    found = load_config(config, ["seed=1", "seed=2", "budget.max_flops_per_token=1e9"])
    assert found.seed == 2
    assert found.budget.max_flops_per_token == 1e9
    assert found.budget.max_params == 14000


def test_a_bare_off_is_the_word(config):
    """YAML 1.1 reads it as false."""
    assert load_config(config, ["tracking.wandb=off"]).tracking.wandb == "off"


LATENCY = ["search.constraints={latency_ms: 5}"]


@pytest.mark.parametrize(
    "sets",
    [
        [],
        [*LATENCY, "hardware={}"],
        [*LATENCY, "hardware={device: h100, phase: prefill}"],
        [*LATENCY, "hardware={method: measure, threads: 2}"],
        ["search.constraints={energy_j: 5}", "hardware={device: this}"],
        ["search.constraints={decode_latency_ms: 5}", "hardware={method: table, correction: 8}"],
        ["darts={}"],
        ["darts={trace_every: 2, trace_sequences: 4}"],
        ["train.sampler={kind: fair}", "extract={method: mip, cells: 3}", "ladder={seeds: 0}"],
    ],
)
def test_a_dumped_config_is_the_same_config(config, sets):
    """What a run folder stores writes every key, those at their defaults too."""
    found = load_config(config, sets)
    assert Config.model_validate(yaml.safe_load(yaml.safe_dump(found.model_dump(mode="json")))) == found


def test_a_section_that_is_off_can_be_set_key_by_key(config, tmp_path):
    """Also in a stored config, which has it as null."""
    stored = tmp_path / "config.yaml"
    stored.write_text(yaml.safe_dump(load_config(config, []).model_dump(mode="json")))
    for path in (config, stored):
        assert load_config(path, ["train.second_phase.lr=0.3"]).train.second_phase.lr == 0.3


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.lr", ["--set train.lr:", "key.key=value"]),
        ("=3", ["key.key=value"]),
        ("train..lr=3", ["key.key=value"]),
        ("train.lr=[1", ["not YAML"]),
        ("name=2020-13-45", ["--set name=2020-13-45: not YAML: month must be in 1..12"]),
        ("data.source=" + 2000 * "[", ["--set data.source=[", "nested too deep"]),
        ("train={steps: 1, steps: 2}", ["'steps' stands twice"]),
        ("name.deep=3", ["name is not a section"]),
        ("train.lrr=3", ["train.lrr", "unknown key; allowed: steps, ", " lr, "]),
        ("trian.lr=3", ["trian", "unknown key; allowed: name, ", " train, "]),
        ("train.lr=fast", ["train.lr", "'fast'"]),
        ("train.lr=-1", ["train.lr", "greater than 0", "-1"]),
        ("train.steps=0", ["train.steps", "0"]),
        ("seed=true", ["seed: true or false where a number is expected"]),
        ("train.lr=true", ["train.lr: true or false"]),
        ("space.hidden_size=[32, true]", ["space.hidden_size"]),
        ("retrain.lr_grid=[true]", ["retrain.lr_grid[0]: true or false"]),
        ("search.constraints={params: true}", ["search.constraints.params: true or false"]),
        ("train.steps=2.5", ["train.steps", "2.5"]),
        ("data.validation=1", ["data.validation", "less than 1"]),
        ("train.sampler.kind=all", ["train.sampler.kind", "single", "uniform", "sandwich"]),
        ("search.objectives={val_loss: least}", ["search.objectives.val_loss", "min", "max"]),
        ("search.sample=2", ["search.sample = 2", "less than 3 of 12 windows"]),
        ("retrain.hand_designed=[gpt5]", ["retrain.hand_designed", "smollm2"]),
        ("retrain.train={lrr: 3}", [": retrain.train: lrr: unknown key; allowed: steps, ", " lr, "]),
        ("correlate.architectures=1", ["correlate.architectures", "greater than or equal to 2"]),
        ("correlate.train={steps: 0}", ["correlate.train", "steps"]),
        ("train.seq_len=65", ["train.seq_len = 65", "max_seq = 64"]),
        ("space.head_dim=7", ["space.head_dim", "even"]),
        ("space.hidden_size=[]", ["space.hidden_size", "no choices"]),
        ("budget.max_params=-5", ["budget", "positive"]),
        ("budget.max_flops_per_token=.inf", ["budget.max_flops_per_token", "finite"]),
        (f"budget.max_params={10**400}", ["budget: max_params must be a positive, finite number"]),
        ("space.layers=100000000000", ["space.layers", "less than or equal to 10000"]),
        (f"space.hidden_size={10**30}", ["space.hidden_size", "less than 2147483648"]),
        (f"space.base.vocab_size={10**30}", ["space.base: vocab_size must be less than 2^31"]),
        ("retrain.lr_grid=[.inf]", ["retrain.lr_grid.0", "finite"]),
        ("ladder.lr_grid=[.nan]", ["ladder.lr_grid.0", "finite"]),
        ("train.lr=.inf", ["train.lr", "finite"]),
        ("retrain.train={lr: .inf}", ["retrain.train: lr", "finite"]),
        ("darts={alpha_lr: .inf}", ["darts.alpha_lr", "finite"]),
        ("budget.max_param=5", ["budget.max_param", "unknown key; allowed: max_params, "]),
        ("budget.workload={contxt: 5}", ["budget.workload.contxt", "allowed: batch, context, "]),
        ("space.base.nope=1", ["space.base.nope", "allowed: vocab_size, "]),
        ("space.ffn_size.per_leyer=true", ["space.ffn_size.per_leyer", "allowed: choices, per_layer"]),
        ("train.sampler.path_dropout={rate: 0.1, rat: 1}", ["train.sampler.path_dropout.rat", "allowed: rate, ramp"]),
        (
            "train.sampler.phases=[{start: 0, open: [depth], strt: 2}]",
            ["train.sampler.phases.0.strt", "allowed: start, open"],
        ),
        ("search.halving={first: 2, fist: 2}", ["search.halving.fist", "allowed: first, keep"]),
        ("name=a/b", ["name"]),
        ("name=..", ["name"]),
        ("tracking.wandb=maybe", ["tracking.wandb", "offline"]),
        ("space=null", ["space"]),
    ],
)
def test_a_wrong_change_is_named(config, assignment, words):
    message = complaint(config, assignment)
    assert all(word in message for word in words), message


def test_a_missing_section_is_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: c\n")
    message = complaint(path)
    assert message.startswith(f"{path}: ")
    assert "missing key" in message
    assert "more)" in message


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "mapping"),
        (b"- 1\n", "mapping"),
        (b"a: [", "YAML"),
        (b"a: \xff", "UTF-8"),
        (b"name: a\nname: b\n", "twice"),
    ],
)
def test_a_file_that_is_no_config(tmp_path, content, word):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    message = complaint(path)
    assert str(path) in message
    assert word in message


def test_a_missing_file_and_a_folder(tmp_path):
    assert "no such file" in complaint(tmp_path / "none.yaml")
    assert "folder" in complaint(tmp_path)


def test_a_python_object_in_yaml_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: !!python/object/apply:os.system ['true']\n")
    assert "YAML" in complaint(path)


def test_differences_name_the_key_and_both_values():
    old = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert differences(old, {"a": {"b": 1, "c": 3}, "d": [1]}) == ["a.c: 2 -> 3"]
    assert differences(old, {"a": {"b": 1}, "d": [2]}) == ["a.c: 2 -> None", "d: [1] -> [2]"]
    assert differences(old, old) == []


def test_a_stage_inherits_and_overrides(config):
    found = load_config(config, ["train.sampler.kind=sandwich", "train.shared_batch=true", "train.distill.weight=0.5"])
    settings = found.stage_settings("retrain", {"steps": 3})
    assert (settings.steps, settings.lr) == (3, 0.01)
    assert settings.sampler.kind == "single"  # one network: nothing to sample, no teacher
    assert settings.distill.weight == 0


def test_recalibration_is_refused_where_nothing_holds_statistics(config):
    with pytest.raises(UserError, match=r"search\.recalibrate does nothing"):
        load_config(config, ["search.recalibrate=16"])
    with_experts = ["search.recalibrate=16", "space.experts=[1, 2]", "train.moe.balance=bias"]
    assert load_config(config, with_experts).search.recalibrate == 16
    with pytest.raises(UserError, match=r"search\.recalibrate does nothing"):
        load_config(config, [*with_experts, "train.moe.balance=loss"])


MIXED = ["space.experts=[1, 4]", "train.moe.balance=bias"]


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["train.moe.balance=bias"], "train.moe.balance does nothing: space.experts is [1]"),
        (["retrain.train={moe: {z_weight: 0}}"], "retrain.train.moe.z_weight does nothing: space.experts is [1]"),
        (["train.moe.expert_parallel=2"], "train.moe.expert_parallel does nothing: space.experts is [1]"),
        ([*MIXED, "train.moe.weight=0.5"], "weight does nothing with balance: bias; it is of balance: loss"),
        (["space.experts=4", "train.moe.bias_rate=0.5"], "bias_rate does nothing with balance: loss"),
        (["space.base.router=sigmoid"], "space.base.router does nothing: space.experts is [1]"),
        (["space.base.norm_top_k=true"], "space.base.norm_top_k does nothing: space.experts is [1]"),
        ([*MIXED, "space.base.shared_gate=true"], "space.base.shared_gate does nothing: space.shared_experts is [0]"),
    ],
)
def test_what_only_experts_use_is_refused_where_it_does_nothing(config, sets, words):
    assert words in complaint(config, *sets)


def test_what_experts_use_is_taken_where_they_are(config):
    base = ["space.base.router=sigmoid", "space.base.norm_top_k=true", "space.base.shared_gate=true"]
    found = load_config(config, [*MIXED, *base, "space.shared_experts=[0, 1]", "train.moe.bias_rate=0.5"])
    assert (found.train.moe.bias_rate, found.space.base.router) == (0.5, "sigmoid")


@pytest.mark.parametrize("where", ["train", "retrain.train"])
def test_experts_in_bf16_need_rows_of_16_bytes(config, where):
    """What `grouped_mm` takes: 8 values of 2 bytes, where float32 asks for 4 of 4 (the space itself checks those)."""
    bf16 = [f"{where}.dtype=bf16", f"{where}.zero_stage=1"]
    words = (
        f"{where}.dtype: with experts in bf16 every hidden_size and ffn_size must be a multiple of 8 (rows of 16 bytes)"
    )
    assert f"{words}, got [20]" in complaint(config, *MIXED, *bf16, "space.ffn_size=[16, 20]")
    assert f"{words}, got [12]" in complaint(config, *MIXED, *bf16, "space.hidden_size=[12, 24]")
    load_config(config, [*MIXED, *bf16])
    load_config(config, [*bf16, "space.ffn_size=[16, 20]"])  # no experts: any size
    with torch.no_grad(), pytest.raises(RuntimeError, match="16 bytes"):
        grouped_product(torch.ones(4, 20).bfloat16(), torch.ones(2, 20, 24).bfloat16(), torch.tensor([2, 4]).int())


def test_relative_paths_are_those_beside_the_config(config, tmp_path, monkeypatch):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project / "texts", project / "stores" / "a", elsewhere / "other", elsewhere / "texts"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    path = project / "my.yaml"

    def data_of(values, *sets):
        path.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "data": values}))
        return load_config(path, list(sets)).data

    assert data_of({"source": "texts"}).source == str(project / "texts")
    assert data_of({"source": "../elsewhere/other"}).source == str(elsewhere / "other")
    assert data_of({"source": "other"}).source == "other"  # nothing of that name beside it
    assert data_of({"source": "texts"}, "data.source=other").source == "other"  # typed here
    assert data_of({"source": "sotu"}).source == "sotu"
    stores = data_of({"tokens": [{"path": "stores/a"}], "validation": {"a": "stores/a"}})
    assert stores.tokens[0].path == stores.held_out["a"] == str(project / "stores" / "a")
    monkeypatch.chdir(project)
    assert data_of({"source": "texts"}).source == str(project / "texts")  # the same from its own folder
    path = Path("my.yaml")
    assert data_of({"source": "texts"}).source == str(project / "texts")
    path = project / "my.yaml"
    (project / "manifest.json").write_text("{}")  # a run's own config, read from elsewhere
    monkeypatch.chdir(elsewhere)
    assert data_of({"source": "texts"}).source == "texts"


@pytest.mark.parametrize(
    ("kept", "now", "same"),
    [
        ("texts", "project/texts", True),  # a run of before, begun in the folder of its config
        ("../texts", "texts", True),
        ("project/texts", "texts", True),  # the text is gone, and is not needed any more
        ("project/texts", "link/texts", True),
        ("texts", "project/other", False),
        ("here", "project/here", False),  # what lies here is another
        ("sotu", "project/sotu", False),
        ("..", "project", False),
    ],
)
def test_paths_that_mean_the_same_are_spelt_as_they_are_kept(tmp_path, monkeypatch, kept, now, same):
    (tmp_path / "project" / "texts").mkdir(parents=True)
    (tmp_path / "link").symlink_to("project")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    one, other = (str(tmp_path / path) if path.startswith(("project", "link")) else path for path in (kept, now))
    if now == "texts" and kept.startswith(".."):
        other = str(tmp_path / "texts")

    def values(path):
        stores = [{"path": path, "weight": 1.0}]
        data = {"source": path, "tokenizer": path, "tokens": stores, "validation": {"a": path}}
        return {"data": data, "train": {"init_from": path}}

    expected = values(one if same else other)
    given = values(other)
    assert as_kept(given, values(one)) == expected
    assert given == values(other)
    assert as_kept(given, {"data": {"validation": 0.1}}) == given
