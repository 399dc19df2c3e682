"""Folders of strangers hold code, pickles and names of kernels; none of that is run, opened or asked about."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from strategies import scrambled
from test_elastic import CARD, SPACE, TABLE

from llmnas.errors import RunError, UserError
from llmnas.export import export_hf
from llmnas.export.elastic import export_elastic
from llmnas.export.generate import generate
from llmnas.export.hf import write_checkpoint
from llmnas.export.loading import open_model
from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.export.verify import check_model
from llmnas.files import read_json, write_json
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec
from llmnas.supernet import Transformer
from llmnas.train.warmstart import read_pretrained

DENSE = FixedShape(BaseModel(300, rope_dim=8, max_seq=32), Architecture(16, (LayerSpec(2, 1, 8, 8),) * 2))
OWN = FixedShape(BaseModel(300, rope_dim=8, max_seq=32), Architecture(16, (LayerSpec(2, 1, 8, 8, mixer="mlgru"),) * 2))


@pytest.fixture
def trap(tmp_path):
    """A module that says when it runs, and the file that it then writes."""
    ran = tmp_path / "ran"
    return f"open({str(ran)!r}, 'w').close()\nfrom transformers import PreTrainedTokenizerFast as Evil\n", ran


def stranger(folder, tokenizer_path, code):
    """The folder of a pretrained model whose tokenizer asks for a module beside it."""
    folder.mkdir()
    shutil.copy(tokenizer_path, folder / "tokenizer.json")
    (folder / "evil.py").write_text(code)
    settings = {
        "auto_map": {"AutoTokenizer": [None, f"{folder}--evil.Evil"]},
        "tokenizer_class": "Evil",
        "model_max_length": 32,
        "eos_token": "<|endoftext|>",
        "chat_template": "{{ messages }}",
        "name_or_path": "stranger/model",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "auto_map": {}}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder / "tokenizer.json"


def test_the_code_that_a_tokenizer_asks_for_never_runs_and_is_not_handed_on(tokenizer_path, tmp_path, trap):
    code, ran = trap
    source = stranger(tmp_path / "model", tokenizer_path, code)
    export_elastic(
        scrambled(SPACE).eval(), TABLE, tmp_path / "elastic", tokenizer_path=source, card=CARD, context=8, seconds=0
    )
    export_hf(scrambled(OWN), tmp_path / "own", tokenizer_path=source, card=CARD)
    assert not ran.exists()
    for folder in (tmp_path / "elastic", tmp_path / "own"):
        settings = read_json(folder / "tokenizer_config.json")
        assert "auto_map" not in settings
        assert "name_or_path" not in settings
        assert settings["chat_template"] == "{{ messages }}"
        assert settings["eos_token"] == "<|endoftext|>"
        assert not (folder / "special_tokens_map.json").exists()
        assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"
        generate(folder, "the state", tokens=2, temperature=0, seed=0)
    assert not ran.exists()


@pytest.fixture(scope="module")
def written(tokenizer_path, tmp_path_factory):
    """A stock export and one of our own class."""
    root = tmp_path_factory.mktemp("written")
    for name, shape in (("stock", DENSE), ("own", OWN)):
        (root / name).mkdir()
        write_checkpoint(scrambled(shape).eval(), root / name, tokenizer_path, CARD)
    return root


def foreign(folder, trap, name, **changes):
    """An export whose files ask for a module beside them."""
    (folder / "evil.py").write_text(trap[0])
    write_json(folder / name, read_json(folder / name) | changes)
    return folder


CODE = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}


@pytest.mark.parametrize("kind", ["stock", "own"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_generate_refuses_an_auto_map_that_is_not_ours_without_a_question(written, tmp_path, trap, kind, name, llmnas):
    folder = foreign(shutil.copytree(written / kind, tmp_path / "export"), trap, name, auto_map=CODE)
    done = llmnas("generate", folder, "--prompt", "the state")
    assert done.code == 2
    assert done.complaint.startswith(f"llmnas: {folder / name}: auto_map names code")
    assert "[y/N]" not in done.out + done.err
    assert not trap[1].exists()


def test_an_auto_map_of_ours_never_runs_what_lies_in_the_folder(written, tmp_path, trap):
    folder = shutil.copytree(written / "own", tmp_path / "export")
    for file in folder.glob("*.py"):
        file.write_text(trap[0])
    model = open_model(folder)
    assert type(model) is LlmnasForCausalLM
    tokens = torch.arange(6).view(1, 6)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, open_model(written / "own")(tokens).logits)
    assert not trap[1].exists()


def test_the_verifier_runs_no_code_of_a_folder_and_says_which_file_is_not_ours(written, tmp_path, trap):
    tokens = torch.arange(6).view(1, 6)
    with torch.no_grad():
        logits = open_model(written / "own")(tokens).logits
    assert check_model(written / "own", tokens, logits) == 0
    folder = shutil.copytree(written / "own", tmp_path / "export")
    (folder / "block.py").write_text(trap[0])
    with pytest.raises(RunError, match=r"^block.py: is not the code that belongs to LlmnasForCausalLM"):
        check_model(folder, tokens, logits)
    stock = foreign(shutil.copytree(written / "stock", tmp_path / "stock"), trap, "config.json", auto_map=CODE)
    with pytest.raises(RunError, match="auto_map names code"):
        check_model(stock, tokens, logits)
    assert not trap[1].exists()


def test_pickles_are_not_opened(written, tmp_path):
    folder = shutil.copytree(written / "stock", tmp_path / "export")
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    torch.save(weights, folder / "adapter_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        open_model(folder)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"transformers_weights": "adapter_model.bin"})
    with pytest.raises(UserError, match=r"model\.safetensors"):
        open_model(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds adapter_config.json.*merge the adapter first"):
        open_model(folder)


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
def test_the_implementation_of_attention_is_ours_to_choose(written, tmp_path, key):
    folder = shutil.copytree(written / "stock", tmp_path / "export")
    changes = {key: "someone/kernel", "experts_implementation": "someone/kernel", "fusion_config": {"a": True}}
    write_json(folder / "config.json", read_json(folder / "config.json") | changes)
    model = open_model(folder)
    assert model.config._attn_implementation == "sdpa"
    assert not hasattr(model.config, "fusion_config")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert' and architectures .* are not LlamaForCausalLM"),
        ({"model_type": ["llama"]}, "are not LlamaForCausalLM"),
        ({"architectures": ["MambaForCausalLM"]}, "are not LlamaForCausalLM"),
        ({"hidden_size": "wide"}, "damaged: "),
        ({"quantization_config": {"quant_method": "gptq"}}, None),
    ],
)
def test_a_config_of_another_kind_ends_in_one_line(written, tmp_path, changes, message):
    folder = shutil.copytree(written / "stock", tmp_path / "export")
    write_json(folder / "config.json", read_json(folder / "config.json") | changes)
    if message is None:  # not a key of the class: it decides nothing
        assert not hasattr(open_model(folder).config, "quantization_config")
        return
    with pytest.raises(UserError, match=message) as refused:
        open_model(folder)
    assert "\n" not in str(refused.value)


def test_a_class_that_llmnas_does_not_write_is_refused(written, tmp_path):
    folder = shutil.copytree(written / "stock", tmp_path / "export")
    write_json(folder / "llmnas.json", {"export": {"class": "MambaForCausalLM"}})
    with pytest.raises(UserError, match=r"export.class = 'MambaForCausalLM', must be one of"):
        open_model(folder)


def test_a_model_that_comes_with_code_is_read_by_its_type_or_refused(written, tmp_path, trap):
    folder = foreign(shutil.copytree(written / "stock", tmp_path / "model"), trap, "config.json", auto_map=CODE)
    tokens = torch.arange(6).view(1, 6)
    pretrained = read_pretrained(folder)
    model = Transformer(FixedShape(pretrained.base, pretrained.arch))
    model.load_state_dict(pretrained.weights)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), open_model(written / "stock")(tokens).logits, rtol=1e-4, atol=1e-4)
    foreign(folder, trap, "config.json", model_type="evil")
    with pytest.raises(UserError, match="evil"):
        read_pretrained(folder)
    assert not trap[1].exists()
