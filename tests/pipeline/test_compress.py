"""A pretrained folder and a budget to a smaller stock checkpoint; what cannot be is one line and leaves nothing."""

import json
import shutil
from dataclasses import replace

import pytest
import tiny
import torch
from real_models import write_glass
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmnas.archive import Archive
from llmnas.config import make_config
from llmnas.cost import Budget, count_params
from llmnas.pipeline.compress import Request, compress_config, compress_values, parse_limit, space_values
from llmnas.pipeline.pruned import beginnings, pruned
from llmnas.runs import RunFolder
from llmnas.space import Architecture, SearchSpace

WHOLE = 852_608
LOSSY = ("--set", "data.lossy_tokenizer=true")  # the model knows no quotation marks
QUICK = {
    "train.steps": 2, "train.batch_size": 2, "train.seq_len": 32, "train.calibration": 4, "train.eval_sequences": 2,
    "search.evaluations": 6, "search.windows": 8, "search.sample": 4, "retrain.train.steps": 2, "tracking.wandb": "off",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("glass") / "glass-en"
    write_glass(path)
    # as most models have one: special tokens in a text are special
    end = Tokenizer.from_file(str(path / "tokenizer.json")).id_to_token(3)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end, "pad_token": end}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus") / "text", 6)


def run_tokens(run, stage):
    return json.loads(run.manifest.read_text())["stages"][stage]["tokens"]


def sets(**changes):
    return [argument for key, value in {**QUICK, **changes}.items() for argument in ("--set", f"{key}={value}")]


def test_a_folder_and_a_budget_give_a_smaller_checkpoint(llmnas, folder, corpus, tmp_path):
    run = RunFolder(tmp_path / "run")
    arguments = ("compress", folder, "--corpus", corpus, *LOSSY, "--run-dir", run.path, "--baselines")
    quick = sets(**{"train.correction": 8})
    done = llmnas(*arguments, "--max-params", "600k", *quick)
    assert done.code == 0, done.err
    for row in (
        "the model",
        "the model, trained on the text",
        "found, cut out of the model",
        "found, healed",
        "found, cut out of the model, healed",
        "last layers dropped",
        "all layers narrower",
        "the model, trained on as many tokens",
    ):
        assert row in done.out
    (export,) = run.export("x").parent.iterdir()
    model = AutoModelForCausalLM.from_pretrained(export)
    assert model.__class__.__module__.startswith("transformers.")
    assert sum(p.numel() for p in model.parameters()) <= 600_000
    card = (export / "README.md").read_text()
    assert f'base_model: "{folder.name}"' in card
    assert "read as plain characters (`split_special_tokens`)" not in card  # it reads them as ids
    before = sum(run_tokens(run, stage) for stage in ("correction", "train"))
    (found_run,) = json.loads(run.result("retrain").read_text())["runs"]["found"]
    assert f"Tokens seen: {before + found_run['tokens']:,}" in card
    generation = json.loads((export / "generation_config.json").read_text())
    assert {name: generation[name] for name in ("bos_token_id", "eos_token_id")} == {
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    tokenizer = AutoTokenizer.from_pretrained(export)
    text = "The people of the United States"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == model.config.eos_token_id == 3
    assert tokenizer(tokenizer.eos_token)["input_ids"] == [3]  # its own settings, not ours
    result = json.loads(run.result("retrain").read_text())
    assert [runs[0]["start"] for runs in result["runs"].values()] == ["supernet", *["pretrained"] * 5]
    space = SearchSpace.from_dict(space_values(folder, per_layer=False))
    scores = json.loads(run.initial.with_name("layers.json").read_text())
    for recipe in ("last_layers", "depth", "width"):  # the whole budget, whatever the search left of it
        whole = count_params(pruned(recipe, space, 600_000, scores), space.base).total
        assert [r["params"] for r in result["runs"][recipe]] == [whole]
    (found,), (cut,) = result["runs"]["found"], result["runs"]["found_cut"]
    assert (cut["architecture"], cut["tokens"]) == (found["architecture"], found["tokens"])
    assert cut["val_loss"] != found["val_loss"]
    pairs = {(c["of"], c["against"]): c["difference"] for c in result["comparisons"]}
    assert pairs["found_cut", "width"] == cut["val_loss"] - result["runs"]["width"][0]["val_loss"]
    assert len(pairs) == 4 + 3
    (uncut,) = result["runs"]["original"]
    assert (uncut["params"], uncut["tokens"]) == (WHOLE, found["tokens"] + run_tokens(run, "train"))
    cuts = beginnings(space, Budget(max_params=600_000, min_params=540_000), scores)
    largest = max(count_params(arch, space.base).total for arch in cuts)
    assert Archive.load(run.evaluations).evaluations[0].metrics["params"] == largest
    assert "From equal starts, found_cut against last_layers: " in " ".join(done.out.split())
    assert f"the model, which was trained on {8 * 2 * 32:,} tokens first" in " ".join(done.out.split())
    # nothing is computed again
    stamps = [path.stat().st_mtime_ns for path in (run.pretrained, run.initial, run.supernet)]
    assert llmnas(*arguments, "--max-params", "600k", *quick).code == 2
    assert llmnas(*arguments, "--max-params", "600k", *quick, "--resume").code == 0
    assert [path.stat().st_mtime_ns for path in (run.pretrained, run.initial, run.supernet)] == stamps
    # a search may go on with more evaluations
    before = [e.arch for e in Archive.load(run.evaluations).evaluations]
    more = ("search", run.config, "--run-dir", run.path, "--resume", "--set", "search.evaluations=8")
    assert llmnas(*more).code == 0
    assert [e.arch for e in Archive.load(run.evaluations).evaluations][: len(before)] == before


@pytest.mark.full
def test_a_latency_budget(llmnas, folder, corpus, tmp_path):
    run = tmp_path / "run"
    arguments = ("compress", folder, "--corpus", corpus, *LOSSY, "--run-dir", run)
    done = llmnas(*arguments, "--latency-ms", "1e-6", *sets())
    assert "below the smallest network" in done.complaint
    for _ in range(5):  # on a busy machine the next measurement may be twice this one
        if done.code == 0 or "below the smallest network" not in done.complaint:
            break
        low = float(done.complaint.split("space, ")[1].split()[0])
        more = {"hardware.seconds": 10, "search.evaluations": 40}
        done = llmnas(*arguments, "--latency-ms", 1.5 * low, *sets(**more))
    assert done.code == 0, done.err
    assert "found, healed" in done.out


def test_what_cannot_be_is_one_line_and_leaves_nothing(llmnas, folder, corpus, tmp_path):
    run = tmp_path / "run"

    def complaint(*arguments, model=folder, text=corpus):
        done = llmnas("compress", model, "--corpus", text, *LOSSY, "--run-dir", run, *arguments)
        assert done.code == 2
        assert not run.exists()
        return done.complaint

    assert "no such folder" in complaint("--max-params", "600k", model=tmp_path / "absent")
    assert "holds no config.json; give the Hugging Face folder" in complaint("--max-params", "600k", model=tmp_path)
    assert "give one budget" in complaint()
    assert "--max-params 100%: a share of the model must lie between 0% and 100%" in complaint("--max-params", "100%")
    assert "below the smallest network of the space" in complaint("--max-params", "0.1%")
    assert "give one budget" in complaint("--max-params", "600k", "--latency-ms", "3")
    assert f"the model has {WHOLE:,} parameters already" in complaint("--max-params", WHOLE)
    assert "below the smallest network of the space" in complaint("--max-params", "1000")
    assert "no such file or folder" in complaint("--max-params", "600k", text=tmp_path / "absent")
    experts = ("space.experts=[1, 2]", "space.ffn_size=[172, 344]")
    mixture = complaint("--max-params", "600k", *(argument for value in experts for argument in ("--set", value)))
    assert "copies of a feed-forward make no model smaller" in mixture
    gpt2 = shutil.copytree(folder, tmp_path / "gpt2")
    (gpt2 / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert "model_type is 'gpt2': positions are learned vectors" in complaint("--max-params", "600k", model=gpt2)
    untold = shutil.copytree(folder, tmp_path / "untold")
    (untold / "tokenizer.json").unlink()
    assert "tokenizer.json: no such file" in complaint("--max-params", "600k", model=untold)


@pytest.mark.parametrize("per_layer", [True, False])
def test_the_space_holds_the_model_and_its_halves(folder, per_layer):
    space = SearchSpace.from_dict(space_values(folder, per_layer=per_layer))
    assert count_params(space.largest(), space.base).total == WHOLE
    assert space.largest() == space.envelope
    smallest = space.smallest()
    assert (smallest.hidden_size, smallest.depth) == (64, 2)
    assert smallest.kept[0][1].ffn_size == 88
    assert space.ffn_size.per_layer is per_layer


def test_a_share_of_the_model_is_a_budget(folder):
    assert parse_limit("50%", folder) == WHOLE // 2
    assert parse_limit(" 62.5 %", folder) == int(0.625 * WHOLE)
    assert parse_limit("1.5M", folder) == 1_500_000


def test_a_folder_of_any_name_gives_a_run_a_name(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "modèle 😀")
    assert make_config(compress_values(Request(copied, "sotu", 600_000)), [], "compress").name == "compress-mod-le--"


def test_the_config_is_one_that_the_other_verbs_take(folder):
    values = compress_values(Request(folder, "sotu", latency_ms=2.0))
    config = make_config(values, ["train.steps=7"], "compress")
    assert config.train.steps == 7
    assert config.search.constraints == {"decode_latency_ms": 2.0}
    config = compress_config(Request(folder, "sotu", max_params=600_000, baselines=True), [])
    assert (config.budget.min_params, config.budget.max_params) == (540_000, 600_000)
    assert make_config(config.model_dump(mode="json"), [], "again") == config


def test_networks_far_below_the_budget_take_no_part_unless_there_are_no_others(folder):
    def limits(*sets, most=600_000):
        budget = compress_config(Request(folder, "sotu", max_params=most), sets).budget
        return budget.min_params, budget.max_params

    assert limits() == (540_000, 600_000)
    assert limits("budget.max_params=500000") == (450_000, 500_000)
    assert limits("budget.min_params=null") == (None, 600_000)
    assert limits("budget.min_params=300000") == (300_000, 600_000)
    coarse = ["space.hidden_size=[128]", "space.ffn_size=341", "space.kv_heads=2", "space.queries_per_group=2"]
    assert limits("space.depth.choices=[2, 4]", *coarse) == (None, 600_000)  # 491,904 parameters, and the whole
    assert limits(most=1000) == (None, 1000)


def test_a_search_begins_with_cuts_by_importance(folder):
    values = space_values(folder, per_layer=True)
    scores, budget = [0.1, 0.4, 0.0, 0.3], Budget(max_params=600_000, min_params=540_000)
    subsets = {"any": {(1, 3), (0, 1, 3), (0, 1, 2, 3)}, "keep_ends": {(0, 3), (0, 1, 3), (0, 1, 2, 3)}}
    subsets["even"] = {(0, 3), (0, 2, 3), (0, 1, 2, 3)}
    for policy, expected in subsets.items():
        space = SearchSpace.from_dict(values | {"depth": {"choices": [2, 3, 4], "policy": policy}})
        found = beginnings(space, budget, scores)
        assert all(space.contains(arch) and budget.admits(space.base, arch) for arch in found)
        kept = {tuple(i for i, _ in arch.kept) for arch in beginnings(space, Budget(), scores)}
        assert kept == expected
        for arch in found:  # the widest feed-forward that the budget admits
            (size,) = {spec.ffn_size for _, spec in arch.kept}
            for wider in (f for f in space.ffn_size.choices if f > size):
                layers = tuple(spec and replace(spec, ffn_size=wider) for spec in arch.layers)
                assert not budget.admits(space.base, Architecture(arch.hidden_size, layers))
    mixture = SearchSpace.from_dict(values | {"experts": [1, 2], "ffn_size": [172, 344]})
    assert all(mixture.contains(arch) for arch in beginnings(mixture, Budget(), scores))


def test_recipes_cut_what_they_say(folder):
    space = SearchSpace.from_dict(space_values(folder, per_layer=False))
    last = pruned("last_layers", space, 700_000, [])
    assert [i for i, _ in last.kept] == [0, 1, 2]
    important = pruned("depth", space, 700_000, [0.1, 0.4, 0.0, 0.3])
    assert [i for i, _ in important.kept] == [0, 1, 3]
    width = pruned("width", space, 700_000, [])
    total = count_params(width, space.base).total
    assert 0.95 * 700_000 < total <= 700_000
    assert {spec.ffn_size for _, spec in width.kept} == {round(341 * width.hidden_size / 128)}
    assert width.depth == 4
    assert torch.tensor(width.hidden_size) % 8 == 0
    mixed = space.model_copy(update={"experts": space.dimension("experts").model_copy(update={"choices": (1, 4)})})
    assert all(spec.ffn_size % 8 == 0 for _, spec in pruned("width", mixed, 1_000_000, []).kept)  # grouped_mm
