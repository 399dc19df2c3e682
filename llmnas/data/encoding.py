"""Documents to token ids: plain texts many at once, conversations through the model's chat template."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer

from llmnas.data.chat import ChatFormat, Encoded
from llmnas.data.pretrained import ModelTokenizer
from llmnas.data.rows import Document
from llmnas.data.tokenizer import encode_texts
from llmnas.errors import UserError


class Encoder:
    """What turns the documents of a run into tokens.

    Args:
        tokenizer: reads special tokens in a text as plain characters.
        model: where it came with a pretrained model.
        completions: of conversations only the answers are to be learned from.
    """

    def __init__(self, tokenizer: Tokenizer, model: ModelTokenizer | None, completions: bool) -> None:
        self.completions = completions
        self._tokenizer, self._model = tokenizer, model
        self._format: ChatFormat | None = None

    def encode(self, documents: Iterable[Document]) -> Iterator[Encoded]:
        """Ids of every document in their order, without the end of text; memory is bounded.

        Raises:
            UserError: a conversation without a model whose template says how to write it down, or that it refuses.
        """
        for talks, group in itertools.groupby(documents, key=lambda document: bool(document.messages)):
            if talks:
                yield from map(self._conversation, group)
            else:
                yield from self._texts(group)

    def _texts(self, documents: Iterable[Document]) -> Iterator[Encoded]:
        prefix = self._model.prefix if self._model else ()
        for ids in encode_texts(self._tokenizer, (document.text for document in documents)):
            whole = [*prefix, *ids]
            yield Encoded(whole, [True] * len(whole) if self.completions else [])

    def _conversation(self, document: Document) -> Encoded:
        if self._model is None:
            raise UserError(
                f"{document.id}: a conversation is written down by a model's chat template; set data.tokenizer to the "
                'folder of an instruct model, or give the texts as {"text": ...}'
            )
        if self._format is None:
            self._format = ChatFormat(self._model.path.parent)
        return self._format.encode(document, completions=self.completions)
