"""From a pretrained folder to a trained supernet by the verb: equal at the start, resumed, refused in one line."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import yaml
from real_models import write_glass
from tokenizers import Tokenizer

from llmnas.config import load_config
from llmnas.data import TokenFile
from llmnas.runs import RunFolder
from llmnas.supernet import Transformer, extract, load_weights

SPACE = {
    "base": {
        "vocab_size": 1024, "tied": True, "norm_eps": 1e-6, "max_seq": 128, "rope_dim": 32,
    },
    "layers": 4,
    "hidden_size": [96, 128],
    "depth": {"choices": [3, 4], "policy": "keep_ends"},
    "kv_heads": [1, 2],
    "queries_per_group": [1, 2],
    "head_dim": 32,
    "ffn_size": [170, 341],
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder and the stock model of it."""
    folder = tmp_path_factory.mktemp("glass")
    return folder, write_glass(folder)


def config_of(folder, **changes):
    config = tiny.write_config(folder, tiny.write_corpus(folder / "text"), **{"space": SPACE, **changes})
    values = yaml.safe_load(config.read_text())
    values["budget"] = {}
    config.write_text(yaml.safe_dump(values))
    return config


def test_train_starts_from_the_model_and_resumes(llmnas, model, tmp_path):
    folder, stock = model
    config, run = config_of(tmp_path), RunFolder(tmp_path / "run")
    arguments = ("train", config, "--init-from", folder, "--run-dir", run.path, "--prepare", "--set", "train.lr=0.0001")
    done = llmnas(*arguments)
    assert done.code == 0, done.err
    space = load_config(config, []).space
    initial = load_weights(Transformer(space), run.initial)
    tokens = torch.arange(3, 103)[None]
    with torch.no_grad():
        expected = stock(tokens).logits
        torch.testing.assert_close(initial(tokens), expected, rtol=1e-4, atol=1e-4)
    record = run.recorded("warm_start")
    assert record["difference"] <= 1e-4
    assert json.loads(run.tokens("train").with_suffix(".json").read_text())["eos_id"] == 3
    trained = load_weights(Transformer(space), run.supernet)
    moved = (trained.embedding.weight - initial.embedding.weight).abs().max()
    assert 0 < moved < 0.01, "a few small steps away from where it started"
    # the rest of the run again, from the last checkpoint but one
    before = run.supernet.read_bytes()
    run.supernet.unlink()
    newest = sorted(run.checkpoints.glob("step-*"))[-1]
    shutil.rmtree(newest)
    assert llmnas(*arguments).code == 2
    assert llmnas(*arguments, "--resume").code == 0
    assert run.supernet.read_bytes() == before


MIXTURE = {
    **SPACE, "base": {**SPACE["base"], "norm_top_k": True}, "ffn_size": [172, 344], "experts": [1, 4], "top_k": [1, 2],
    "shared_experts": [0, 1],
}  # fmt: skip


def test_a_dense_model_becomes_a_mixture_that_computes_the_same(llmnas, model, tmp_path):
    """Every number of experts and every k gives what the folder's model gives; then the supernet of them is trained."""
    folder, stock = model
    config, run = config_of(tmp_path, space=MIXTURE), RunFolder(tmp_path / "run")
    done = llmnas("train", config, "--init-from", folder, "--run-dir", run.path, "--prepare")
    assert done.code == 0, done.err
    space = load_config(config, []).space
    initial = load_weights(Transformer(space), run.initial)
    (_, spec), *_ = space.largest().kept
    assert (spec.experts, spec.top_k, spec.shared_experts, spec.ffn_size) == (4, 2, 1, 344)
    tokens = torch.arange(3, 103)[None]
    with torch.no_grad():
        expected = stock(tokens).logits
        for changes in ({}, {"top_k": 1}, {"shared_experts": 0}, {"experts": 1}):
            arch = space.build(128, dict.fromkeys(range(4), replace(spec, **changes)))
            torch.testing.assert_close(initial(tokens, space.require(arch)), expected, rtol=1e-4, atol=1e-3)
    trained = load_weights(Transformer(space), run.supernet)
    before, after = (m.layers[0].ffn.gate.weight.detach()[:, :341] for m in (initial, trained))
    assert all(torch.equal(before[0], before[e]) for e in (1, 2, 3))
    assert all(not torch.equal(after[0], after[e]) for e in (1, 2, 3))
    record = json.loads(run.manifest.read_text())["stages"]["warm_start"]
    assert record["difference"] <= 1e-4


def test_experts_are_sorted_before_they_are_copied(model):
    """Half of the channels of an expert that no calibration token reached are the better half, as of all others."""
    from llmnas.pipeline.warm import start_from
    from llmnas.space import SearchSpace
    from llmnas.train.warmstart import read_pretrained

    mixture = Transformer(SearchSpace.from_dict({**MIXTURE, "experts": [1, 64], "top_k": 1, "shared_experts": 0}))
    start_from(mixture, read_pretrained(model[0]), [torch.arange(3, 35)[None]])
    gate = mixture.layers[0].ffn.gate.weight.detach()[:, :341]
    assert all(torch.equal(gate[0], other) for other in gate[1:])
    assert not torch.equal(gate[0], read_pretrained(model[0]).weights["layers.0.ffn.gate.weight"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("space.base.norm_top_k=false", "upcycling: space.base.norm_top_k must be true"),
        (
            "space.ffn_size=[172, 340]",
            "layer 0: the largest ffn_size of the space is 340, less than the dense model's 341",
        ),
        ("space.layers=5", "the space has 5 layers, the dense model 4"),
        ("space.ffn_size=[172, 341]", "every hidden_size and ffn_size must be a multiple of 4"),
        ("space.top_k=[1, 5]", "top_k.choices must be at most the least number of experts above 1"),
    ],
)
def test_a_mixture_that_cannot_be_is_one_line(llmnas, model, tmp_path, change, complaint):
    config = config_of(tmp_path, space=MIXTURE)
    done = llmnas("train", config, "--init-from", model[0], "--run-dir", tmp_path / "run", "--prepare", "--set", change)
    assert done.code == 2
    assert complaint in done.complaint


def test_what_does_not_fit_is_one_line(llmnas, model, tmp_path):
    folder, _ = model
    config, run = config_of(tmp_path), tmp_path / "run"

    def complaint(*arguments):
        done = llmnas("train", config, "--run-dir", run, "--prepare", *arguments)
        shutil.rmtree(run, ignore_errors=True)
        assert done.code == 2
        return done.complaint

    other = shutil.copytree(folder, tmp_path / "other")
    stored = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(stored | {"num_attention_heads": stored["num_attention_heads"] - 1}))
    for wrong, words in (
        (tmp_path / "absent", "absent: no such folder"),
        ("2024", " 2024: no such folder"),
        ("a: b 😀", " a: b 😀: no such folder"),
        (other, "not the config of a llama model"),
    ):
        done = llmnas("train", config, "--run-dir", run, "--prepare", "--init-from", wrong)
        assert words in done.complaint
        assert not (run / "config.yaml").exists()  # the right folder may follow
    (other / "config.json").write_text(json.dumps(stored))
    small = complaint("--init-from", folder, "--set", "space.hidden_size=[96]")
    assert "the largest network of the space must be the pretrained model: 128 wide" in small
    assert "base.rope_theta must be 10000.0" in complaint("--init-from", folder, "--set", "space.base.rope_theta=5000")
    assert "has 1,024 entries, space.base.vocab_size is 1,000" in complaint(
        "--init-from", folder, "--set", "space.base.vocab_size=1000"
    )
    assert "set data.tokenizer to" in complaint("--set", f"train.init_from={folder}")
    assert "calibration does nothing without init_from" in complaint("--set", "train.calibration=3")
    assert "correction does nothing without init_from" in complaint("--set", "train.correction=3")
    stored = json.loads((other / "tokenizer.json").read_text())
    stored["model"]["vocab"] = {t: i ^ 1 if i >= 500 else i for t, i in stored["model"]["vocab"].items()}
    (other / "tokenizer.json").write_text(json.dumps(stored))
    assert "is not the tokenizer of train.init_from" in complaint(
        "--init-from", folder, "--set", f"data.tokenizer={other}"
    )


def test_another_space_cannot_go_on_with_the_weights(llmnas, model, tmp_path):
    folder, _ = model
    config, run = config_of(tmp_path), RunFolder(tmp_path / "run")
    common = ("--run-dir", run.path, "--set", "train.steps=1")
    assert llmnas("train", config, "--init-from", folder, "--prepare", *common).code == 0
    done = llmnas(
        "train", config, "--init-from", folder, "--resume", *common, "--set", "space.hidden_size=[64, 96, 128]"
    )
    assert done.code == 2
    assert "made with another config: space.hidden_size" in done.complaint


def test_a_model_is_trained_on_the_text_before_it_is_cut_and_teaches(llmnas, model, tmp_path):
    """Correction lowers the model's own loss and sorts it again; the supernet starts from what it became."""
    from llmnas.data import Sequences, TokenFile
    from llmnas.evaluate.quality import window_losses
    from llmnas.supernet.importance import importance

    folder, _ = model
    config, run = config_of(tmp_path), RunFolder(tmp_path / "run")
    assert llmnas("train", config, "--init-from", folder, "--prepare", "--run-dir", run.path, "--set", "train.steps=1",
                  "--set", "train.correction=12", "--set", "train.lr=0.001").code == 0  # fmt: skip
    space = load_config(config, []).space
    first, taught, supernet = (
        load_weights(Transformer(space), path) for path in (run.pretrained, run.initial, run.supernet)
    )
    windows = Sequences(TokenFile.open(run.tokens("validation")).tokens, 64, 0).fixed(16)
    losses = [window_losses(m, None, windows).mean() for m in (first, taught)]
    assert losses[1] < losses[0] - 0.3
    assert (
        (supernet.embedding.weight - taught.embedding.weight).abs().max()
        < 0.002
        < (taught.embedding.weight - first.embedding.weight).abs().max()
    )
    assert run.recorded("correction")["steps"] == 12
    # the leading channels are the important ones of what it became
    tokens = Sequences(TokenFile.open(run.tokens("train")).tokens, 64, 0).fixed(16)[:, :-1]
    scores = importance(taught, [torch.from_numpy(tokens)]).channels["layers.0.ffn"]
    assert scores[:170].mean() > 2 * scores[170:].mean()


def test_reordered_slices_are_better_than_those_of_the_folder(llmnas, model, tmp_path):
    """Half of the FFN channels: leading ones after sorting against leading ones as they were stored."""
    from llmnas.data import Sequences, TokenFile
    from llmnas.evaluate.quality import window_losses
    from llmnas.train.warmstart import read_pretrained, warm_start

    folder, _ = model
    config, run = config_of(tmp_path), RunFolder(tmp_path / "run")
    assert llmnas("train", config, "--init-from", folder, "--prepare", "--run-dir", run.path,
                  "--set", "train.steps=1").code == 0  # fmt: skip
    space = load_config(config, []).space
    stored = Transformer(space)
    warm_start(stored, read_pretrained(folder))
    windows = Sequences(TokenFile.open(run.tokens("validation")).tokens, 64, 0).fixed(16)
    half = space.build(128, dict.fromkeys(range(4), space.largest().kept[0][1].__class__(2, 2, 32, 170)))
    initial = load_weights(Transformer(space), run.initial)
    ordered, plain = (window_losses(m, half, windows).mean() for m in (initial, stored))
    assert ordered < plain - 0.1
    assert extract(initial, half).envelope.kept[0][1].ffn_size == 170


def test_a_chat_model_learns_from_answers_alone(llmnas, model, tmp_path):
    """Conversations by its own template, special tokens as ids, BOS before plain texts; the validation too."""
    folder = shutil.copytree(model[0], tmp_path / "chat")
    template = "{% for m in messages %}<bos>{{ m['role'] }}: {{ m['content'] }}<eos>{% endfor %}"
    template += "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"chat_template": template, "add_bos_token": True})
    )
    words = ["the people of the united states", "the state of the union", "a strong and free country", "we the senate"]
    talks = [
        {"messages": [{"role": "user", "content": f"{i} {a}"}, {"role": "assistant", "content": f"{b} {i}"}]}
        for i, (a, b) in enumerate([(a, b) for a in words for b in words] * 8)
    ]
    lines = [*talks, *({"text": f"plain {i} {word}"} for i, word in enumerate(words * 3))]
    corpus = tmp_path / "talks.jsonl"
    corpus.write_text("\n".join(map(json.dumps, lines)))
    config, run = config_of(tmp_path), RunFolder(tmp_path / "run")
    few = ["train.steps=2", "train.correction=2", "search.windows=4", "search.sample=4", "train.eval_sequences=2"]
    few += [f"data.source={corpus}", "data.loss_on=completions", "data.validation=0.2"]
    sets = [argument for text in few for argument in ("--set", text)]
    done = llmnas("train", config, "--init-from", folder, "--run-dir", run.path, "--prepare", *sets)
    assert done.code == 0, done.err
    stored = TokenFile.open(run.tokens("train")), TokenFile.open(run.learned("train"))
    ids, learned = (np.asarray(file.tokens[np.arange(file.info.tokens)]) for file in stored)
    assert stored[0].info.documents == stored[1].info.documents
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    documents = tokenizer.decode(ids.tolist(), skip_special_tokens=False).split("<eos><eos>")
    assert any(text.startswith("<bos>user: ") and "<eos><bos>assistant: " in text for text in documents)
    assert any(text.startswith("<bos>plain ") for text in documents)
    answers = tokenizer.decode(ids[learned == 1].tolist(), skip_special_tokens=False)
    assert "assistant" not in answers
    assert "user" not in answers
    assert set(answers.replace("<eos>", " ").replace("<bos>", " ").split()) <= {
        *" ".join(words).split(), "plain", *map(str, range(128)),
    }  # fmt: skip
