"""`init` writes a config that is valid, meets its own rules, and whose budget is in the middle of its space."""

import pytest
import tiny
import yaml

from llmnas.config import load_config
from llmnas.cost import BudgetSampler, count_params
from llmnas.errors import UserError
from llmnas.pipeline.init import _quoted, choose_vocabulary, parse_count, space_values, write_config
from llmnas.rng import generator
from llmnas.space import SearchSpace


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("init") / "my texts, it's", 10)


@pytest.mark.parametrize(
    ("text", "count"), [("800000", 800_000), ("800k", 800_000), ("1.5M", 1_500_000), ("2B", 2 * 10**9), ("1,000", 1000)]
)
def test_counts(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "many", "-5", "0", "1T", "1.5.2M", "M", "9" * 400, "1e3", "0.3"])
def test_what_is_no_count(text):
    with pytest.raises(UserError, match=r"--max-params .*1\.5M"):
        parse_count(text)


@pytest.mark.parametrize("budget", [100_000, 1_500_000, 30_000_000, 1_000_000_000])
def test_the_budget_is_in_the_middle(tmp_path, corpus, budget):
    path = tmp_path / "my config.yaml"
    write_config(path, str(corpus), budget, force=False)
    config = load_config(path, [])
    assert config.name == "my-config"
    assert config.data.source == str(corpus)
    space = config.space
    least, middle, most = (
        count_params(a, space.base).total for a in (space.smallest(), space.middle(), space.largest())
    )
    assert 2 * least < budget < most / 1.5
    assert 0.6 * budget < middle <= budget
    rng = generator(0, "test")
    inside = [count_params(space.sample(rng), space.base).total <= budget for _ in range(200)]
    assert 0.2 < sum(inside) / 200 < 0.9
    assert config.budget.admits(space.base, BudgetSampler(space, config.budget).sample(rng))


def test_the_greatest_width_that_fits_is_taken():
    vocab_size, width, _ = choose_vocabulary(12_000_000, 1_500_000, 256)
    wider = SearchSpace.from_dict(space_values(width + 16, vocab_size, 256))
    assert count_params(wider.middle(), wider.base).total > 1_500_000
    assert vocab_size * width <= 0.3 * 1_500_000
    assert vocab_size * 1000 <= 12_000_000


def test_a_small_corpus_gets_few_steps_and_a_small_vocabulary(tmp_path, corpus):
    path = tmp_path / "c.yaml"
    write_config(path, str(corpus), 30_000_000, force=False)
    values = yaml.safe_load(path.read_text())
    assert values["space"]["base"]["vocab_size"] == 512
    size = sum(file.stat().st_size for file in corpus.iterdir())
    tokens = values["train"]["steps"] * 8 * 128
    assert tokens <= max(4 * size / 4, 200 * 8 * 128)


@pytest.mark.parametrize("stem", ["été", "-my", "(a)", ".hidden", "_own"])
def test_any_file_name_gives_a_run_a_name(stem, tmp_path, corpus):
    path = tmp_path / f"{stem}.yaml"
    write_config(path, str(corpus), 200_000, force=False)
    assert load_config(path, []).name


@pytest.mark.parametrize("text", ["no", "on", "null", "true", "1e3", "a: b", "it's"])
def test_a_folder_called_like_a_yaml_word_stays_text(text):
    assert yaml.safe_load(f"source: {_quoted(text)}") == {"source": text}


def test_a_file_is_replaced_only_when_forced(tmp_path, corpus):
    path = tmp_path / "c.yaml"
    write_config(path, str(corpus), 200_000, force=False)
    before = path.read_bytes()
    with pytest.raises(UserError, match="--force"):
        write_config(path, str(corpus), 400_000, force=False)
    assert path.read_bytes() == before
    write_config(path, str(corpus), 400_000, force=True)
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("options", "objective", "constraints", "device"),
    [
        ([], "params", {}, "this"),
        (["--device", "this"], "decode_latency_ms", {}, "this"),
        (["--latency-ms", "2.5"], "decode_latency_ms", {"decode_latency_ms": 2.5}, "this"),
        (["--device", "h100", "--latency-ms", "3"], "decode_latency_ms", {"decode_latency_ms": 3}, "h100"),
    ],
)
def test_a_device_and_a_latency_are_searched_for(options, objective, constraints, device, tmp_path, corpus, llmnas):
    done = llmnas("init", tmp_path / "c.yaml", "--corpus", corpus, "--max-params", "200k", *options)
    assert done.code == 0, done.err
    config = load_config(tmp_path / "c.yaml", [])
    assert config.search.objectives == {"val_loss": "min", objective: "min"}
    assert config.search.constraints == constraints
    assert (config.hardware.device if config.hardware else "this") == device
    assert config.budget.max_params == 200_000


def test_a_device_that_nobody_knows_is_one_line(tmp_path, corpus, llmnas):
    done = llmnas("init", tmp_path / "c.yaml", "--corpus", corpus, "--max-params", "200k", "--device", "abacus")
    assert done.code == 2
    assert "abacus" in done.complaint
    assert not (tmp_path / "c.yaml").exists()


def test_too_little_text(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(UserError, match="9 bytes of text"):
        write_config(tmp_path / "c.yaml", str(tmp_path), 200_000, force=False)
    assert not (tmp_path / "c.yaml").exists()


def test_a_single_document_is_refused_as_the_run_would(tmp_path):
    for name in ("a.txt", "the same.txt"):
        (tmp_path / name).write_text("word " * 20_000)
    with pytest.raises(UserError, match=r"1 different document\(s\) cannot be split"):
        write_config(tmp_path / "c.yaml", str(tmp_path), 200_000, force=False)
    assert not (tmp_path / "c.yaml").exists()
