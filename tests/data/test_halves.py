import numpy as np
import pytest

from llmnas.data.halves import halves
from llmnas.errors import UserError

TOKENS = np.arange(1003)
SEQ = 10


def starts(half, first, count):
    batch = half.batch(first, count)
    assert (np.diff(batch, axis=1) == 1).all()
    assert batch.shape == (count, SEQ + 1)
    return batch[:, 0].tolist()


def test_an_epoch_of_both_is_every_window_once():
    a, b = halves(TOKENS, SEQ, 7, 0.3)
    epoch = starts(a, 0, 70) + starts(b, 0, 30)
    assert sorted(epoch) == list(range(0, 1000, SEQ))
    assert starts(b, 0, 30) != sorted(starts(b, 0, 30))


def test_later_epochs_stay_within_their_part_in_another_order():
    a, _ = halves(TOKENS, SEQ, 7, 0.5)
    first, second = starts(a, 0, 50), starts(a, 50, 50)
    assert set(first) == set(second)
    assert first != second
    assert starts(a, 45, 10) == first[45:] + second[:5]


def test_the_seed_decides_who_gets_what():
    assert set(starts(halves(TOKENS, SEQ, 0, 0.5)[1], 0, 50)) != set(starts(halves(TOKENS, SEQ, 1, 0.5)[1], 0, 50))


def test_too_little_text_is_refused():
    with pytest.raises(UserError, match="too few"):
        halves(TOKENS[:12], SEQ, 0, 0.5)
