"""Conversations to tokens: through the model's own chat template, special tokens as ids, answers told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmnas.data.rows import Document
from llmnas.errors import UserError
from llmnas.files.tokenizer_files import open_tokenizer


@dataclass(frozen=True)
class Encoded:
    """Token ids of a document, and of each whether it is to be learned from (empty where nobody asks)."""

    ids: list[int]
    learned: list[bool]


class ChatFormat:
    """How one model writes conversations down.

    Args:
        folder: of the model, with its tokenizer and template.

    Raises:
        UserError: no template, or a tokenizer that transformers does not load.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer  # takes seconds, and few corpora hold conversations

        loaded = open_tokenizer(folder / "tokenizer.json")  # before transformers loads it in this process
        try:
            self._stock: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # noqa: BLE001 (loading raises errors of every kind)
            raise UserError(f"{folder}: no tokenizer that loads ({' '.join(str(error).split())})") from None
        if not self._stock.chat_template:
            raise UserError(
                f"{folder}: has no chat template, and the corpus holds conversations; take the instruct version of the "
                'model, put a chat_template.jinja into its folder, or give the texts as {"text": ...}'
            )
        self._folder = folder
        self._tokenizer = loaded
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, document: Document, *, completions: bool) -> Encoded:
        """The ids that `apply_chat_template` gives, in which the template's special tokens are special.

        Args:
            document: a conversation.
            completions: only the answers are to be learned from, with what ends them.

        Raises:
            UserError: the template refuses the conversation, or answers cannot be told apart in what it writes.
        """
        text = self._render(document, document.messages)
        found = self._tokenizer.encode(text, add_special_tokens=False)
        if not completions:
            return Encoded(found.ids, [])
        spans = [self._answer(document, text, number) for number in document.answers]
        inside = [any(begin <= left and right <= end for begin, end in spans) for left, right in found.offsets]
        return Encoded(found.ids, inside)

    def _answer(self, document: Document, text: str, number: int) -> tuple[int, int]:
        """Where a message's words and what ends it stand in the whole text."""
        before = self._render(document, document.messages[:number], begin_answer=True)
        after = self._render(document, document.messages[: number + 1])
        if not (text.startswith(before) and text.startswith(after) and len(before) < len(after)):
            raise UserError(
                f"{document.id}: data.loss_on: completions: the chat template of {self._folder} writes messages "
                "in another way when later ones follow, so answers cannot be told apart; use data.loss_on: all"
            )
        return len(before), len(after)

    def _render(self, document: Document, messages: Sequence[Mapping[str, Any]], *, begin_answer: bool = False) -> str:
        try:
            text = self._stock.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=begin_answer
            )
        except Exception as error:  # noqa: BLE001 (a template raises what it wants)
            reason = " ".join(str(error).split())
            raise UserError(f"{document.id}: the model's chat template does not take it ({reason})") from None
        return str(text)
