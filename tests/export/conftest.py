"""What the tests of exports share."""

import pytest

from llmnas.data.tokenizer import save_tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    text = "fellow citizens of the senate and of the house of representatives: the state of the union is strong. "
    save_tokenizer(train_tokenizer([text * 3], 300), path)
    return path
