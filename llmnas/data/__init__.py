"""Text to tokens: corpora, the tokenizer, and token files read through a memory map."""

from llmnas.data.corpus import Document, Split, read_corpus, split_documents
from llmnas.data.tokenizer import (
    END_OF_TEXT,
    EOS_ID,
    check_vocab,
    encode_texts,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from llmnas.data.tokens import Sequences, TokenFile, TokenInfo, write_tokens

__all__ = [
    "END_OF_TEXT",
    "EOS_ID",
    "Document",
    "Sequences",
    "Split",
    "TokenFile",
    "TokenInfo",
    "check_vocab",
    "encode_texts",
    "load_tokenizer",
    "read_corpus",
    "save_tokenizer",
    "split_documents",
    "train_tokenizer",
    "write_tokens",
]
