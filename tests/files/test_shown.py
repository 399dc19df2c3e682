"""No name of a file can write a line of its own, or move the cursor."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmnas.files import one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Grüße 你好 🙂 a b", "Grüße 你好 🙂 a b"),
        ("x\nllmnas: all is well", r"x\nllmnas: all is well"),
        ("\x1b[2Jx\r\t\x07", r"\x1b[2Jx\r\t\x07"),
        ("\u2028\u202e\x85\x9b", r"\u2028\u202e\x85\x9b"),
        ("\udcff.txt", r"\udcff.txt"),
    ],
)
def test_what_is_no_glyph_is_an_escape(text, shown):
    assert one_line(text) == shown


@given(st.text(st.characters()))
def test_any_text_is_one_line_that_can_be_written(text):
    shown = one_line(text)
    assert shown.splitlines() == ([shown] if shown else [])
    shown.encode()
    assert one_line(shown) == shown
