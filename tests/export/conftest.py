"""What the tests of exports share."""

import pytest
from safetensors.torch import load_file

from llmnas.data.tokenizer import save_tokenizer, train_tokenizer
from llmnas.export.verify import check_model


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    text = "fellow citizens of the senate and of the house of representatives: the state of the union is strong. "
    save_tokenizer(train_tokenizer([text * 3], 300), path)
    return path


@pytest.fixture
def in_this_process(monkeypatch):
    """Let a module verify its exports without the seconds of a fresh process, which other tests start."""

    def verify(checkpoint, expected, folder):
        reference = load_file(expected)
        return check_model(checkpoint, reference["tokens"], reference["logits"])

    return lambda module: monkeypatch.setattr(module, "verify_fresh", verify)
