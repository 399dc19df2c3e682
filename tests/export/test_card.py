"""The model card: what a token costs, by the kind of weights that it meets."""

from dataclasses import replace

from llmnas.export.card import Card, Stored, render
from llmnas.space import Architecture, BaseModel, LayerSpec

BASE = BaseModel(vocab_size=10, max_seq=4)
DENSE = LayerSpec(1, 1, 8, 16)


def card(*layers):
    return render(Card("tiny", {}, "none", 0, 0), Architecture(8, layers), BASE, Stored("Ours", None, 1, 1, False))


def test_operations_of_a_token_by_kind():
    """Counted by hand: four projections of 8 x 8 and three of 8 x FFN in a layer; 10 x 8 in the head, and 2 x 8 x 4 of
    attention to four positions."""
    found = card(replace(DENSE, weights="ternary"), replace(DENSE, ffn_size=24, weights="binary", mixer="mlgru"))
    assert "What the last of 4 tokens needs" in found
    assert "| dense | multiply-adds of floats, those of attention and the head among them | 144 |" in found
    assert "| ternary | int8 values added, taken away or left out | 640 |" in found
    assert "| binary | signs compared and counted, or int8 values added or taken away behind a gate | 832 |" in found


def test_a_dense_network_has_no_such_table():
    assert "added" not in card(DENSE, DENSE)
