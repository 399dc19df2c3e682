"""What the documentation tells a reader to type works: its bash blocks verb by verb, its Python as it stands."""

import re
import shlex

import pytest
import tiny

QUICK = (
    "train.steps=2", "train.eval_every=2", "train.eval_sequences=2", "retrain.train={steps: 1}", "retrain.seeds=1",
    "search.evaluations=4", "search.windows=4", "search.sample=3", "tracking.wandb=off", "train.batch_size=2",
)  # fmt: skip


def blocks(name, language):
    text = (tiny.ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def verbs(name):
    """Every `llmnas ...` line of the bash blocks, split as a shell does."""
    lines = [line for block in blocks(name, "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("llmnas ")]


def test_quickstart_commands(llmnas, tmp_path, monkeypatch):
    """On a tiny config in the place of the quickstart's, in the order of the page."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search_configs").mkdir()
    config = tiny.write_config(
        tmp_path, tiny.write_corpus(tmp_path / "text"), name="quickstart", correlate={"seeds": 1}
    )
    config.rename(tmp_path / "search_configs" / "quickstart.yaml")
    commands = verbs("docs/quickstart.md")
    assert len(commands) >= 9
    for command in commands:
        done = llmnas(*command)
        assert done.code == 0, (command, done.err)


def test_corpus_commands(llmnas, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_corpus(tmp_path / "my_texts", 12)
    for command in verbs("docs/corpus.md"):
        done = llmnas(*command)
        assert done.code == 0, (command, done.err)
    assert (tmp_path / "runs" / "my" / "data" / "train.bin").exists()


def test_cluster_commands(llmnas, monkeypatch):
    """The plan is made; the scripts that the page names are those that tests/launch runs."""
    monkeypatch.chdir(tiny.ROOT)
    (plan,) = verbs("docs/deepspeed.md")
    done = llmnas(*plan)
    assert done.code == 0, done.err
    named = re.findall(r"^(?:bash|sbatch) (launch/\S+\.sh) ", (tiny.ROOT / "docs" / "deepspeed.md").read_text(), re.M)
    assert sorted(named) == sorted(f"launch/{script.name}" for script in (tiny.ROOT / "launch").glob("*.sh"))


def test_warm_start_commands_and_python(llmnas, tmp_path, monkeypatch):
    """With the English model of glassllm as the folder."""
    import yaml
    from real_models import write_glass

    monkeypatch.chdir(tmp_path)
    write_glass(tmp_path / "my-llama")
    config = tiny.write_config(tmp_path, tiny.write_corpus(tmp_path / "text"))
    values = yaml.safe_load(config.read_text()) | {"budget": {}, "space": {
        "base": {"vocab_size": 1024, "tied": True, "norm_eps": 1e-6, "max_seq": 128, "rope_dim": 32}, "layers": 4,
        "hidden_size": [96, 128], "depth": [3, 4], "kv_heads": [1, 2], "queries_per_group": [1, 2], "head_dim": 32,
        "ffn_size": [170, 341],
    }}  # fmt: skip
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(values))
    (train,) = verbs("docs/warm_start.md")
    done = llmnas(*train)
    assert done.code == 0, done.err
    (block,) = blocks("docs/warm_start.md", "python")
    names = {}
    exec(compile(block, "docs/warm_start.md", "exec"), names)
    assert sum(weight.numel() for weight in names["supernet"].parameters()) == 852_608


@pytest.mark.full
def test_export_commands(llmnas, copied):
    """On the tiny run, which holds one export already."""
    commands = verbs("docs/export.md")
    assert len(commands) == 4
    for number, command in enumerate(commands):
        instead = [copied.config if word == "my.yaml" else word for word in command]
        done = llmnas(*instead, "--run-dir", copied.folder, *(["--force"] if number == 0 else []))
        assert done.code == 0, (command, done.err)


def test_adaptive_commands(llmnas, tmp_path, monkeypatch):
    """On a tiny config in the place of the page's, which takes half an hour."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search_configs").mkdir()
    small = {"train": {"steps": 1}, "evaluations": 4}
    config = tiny.write_config(tmp_path, tiny.write_corpus(tmp_path / "text"), name="ladder_cpu", ladder=small)
    config.rename(tmp_path / "search_configs" / "ladder_cpu.yaml")
    sets = ("--set", "speculate={evaluations: 4, prompts: 2, prompt_tokens: 8, new_tokens: 8, longest: 2}")
    for command in verbs("docs/adaptive.md"):
        done = llmnas(*command, *(sets if command[0] == "speculate" else ()))
        assert done.code == 0, (command, done.err)


def test_darts_commands_and_settings(llmnas, tmp_path, monkeypatch):
    """On a tiny config in the place of the shipped one; every key that the page shows is one."""
    import yaml

    from llmnas.train.darts_settings import DartsSettings

    monkeypatch.chdir(tmp_path)
    (tmp_path / "search_configs").mkdir()
    config = tiny.write_config(tmp_path, tiny.write_corpus(tmp_path / "text"), name="darts")
    with config.open("a") as stream:
        stream.write("darts: {trace_every: 3, early_stop: true, window: 1}\n")
    config.rename(tmp_path / "search_configs" / "darts.yaml")
    commands = verbs("docs/darts.md")
    assert [command[0] for command in commands] == ["train", "search", "report"]
    for command in commands:
        done = llmnas(*command)
        assert done.code == 0, (command, done.err)
    (block,) = blocks("docs/darts.md", "yaml")
    assert set(yaml.safe_load(block)["darts"]) == set(DartsSettings.model_fields) - {"trace_sequences"}
    DartsSettings.model_validate(yaml.safe_load(block)["darts"])


@pytest.mark.full
def test_readme_commands(llmnas, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_corpus(tmp_path / "my_texts", 12)
    for command in verbs("README.md"):
        quick = [option for knob in QUICK for option in ("--set", knob)] if command[0] == "run" else []
        done = llmnas(*command, *quick)
        assert done.code == 0, (command, done.err)


def test_readme_python(monkeypatch, capsys):
    monkeypatch.chdir(tiny.ROOT)
    (block,) = blocks("README.md", "python")
    exec(compile(block, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2
    assert lines[0].endswith("architectures")


@pytest.mark.parametrize("name", ["docs/space.md", "docs/extending.md", "docs/entanglement.md", "docs/search.md"])
def test_python_of_a_page_runs(name, monkeypatch, capsys):
    monkeypatch.chdir(tiny.ROOT)
    for block in blocks(name, "python"):
        exec(compile(block, name, "exec"), {"__name__": name})
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", "docs/space.md"])
def test_the_space_of_a_page_is_a_space(name):
    import yaml

    from llmnas.space import SearchSpace

    (block,) = blocks(name, "yaml")
    assert SearchSpace.from_dict(yaml.safe_load(block)["space"]).size() > 1000


def test_the_sampler_keys_of_the_page_are_all_there_are():
    import yaml

    from llmnas.train.settings import SamplerSettings

    (block,) = blocks("docs/entanglement.md", "yaml")
    shown = yaml.safe_load(block)["train"]["sampler"]
    SamplerSettings.model_validate(shown)
    table = "\n".join(re.findall(r"^\| `(.*?)\|", (tiny.ROOT / "docs/entanglement.md").read_text(), re.M))
    assert set(SamplerSettings.model_fields) <= set(shown) | set(re.findall(r"\w+", table))


def test_every_verb_is_in_the_readme():
    from llmnas import cli

    table = {
        row.split()[1] for row in re.findall(r"^\| `(llmnas .*?)` \|", (tiny.ROOT / "README.md").read_text(), re.M)
    }
    assert {info.name or info.callback.__name__ for info in cli.app.registered_commands} <= table


PAGES = ["README.md", *(f"docs/{page.name}" for page in sorted((tiny.ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = tiny.ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_elastic_commands(llmnas, copied):
    """On the tiny run in the place of the quickstart's."""
    instead = {"search_configs/quickstart.yaml": copied.config, "runs/quickstart": copied.folder}
    commands = verbs("docs/elastic.md")
    assert [command[0] for command in commands] == ["export", "generate", "generate", "generate"]
    for command in commands:
        where = ["--run-dir", copied.folder] if command[0] == "export" else []
        done = llmnas(*(instead.get(word, word) for word in command), *where)
        assert done.code == 0, (command, done.err)
