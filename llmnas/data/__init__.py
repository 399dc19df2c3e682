"""Text to tokens: corpora, the tokenizer, and token files read through a memory map."""

from llmnas.data.corpus import Corpus, Reading, open_corpus, read_corpus
from llmnas.data.encoding import Encoder
from llmnas.data.mixture import Mixture
from llmnas.data.pretrained import (
    ModelTokenizer,
    copy_tokenizer,
    read_model_tokenizer,
    require_lossless,
    require_same_tokenizer,
)
from llmnas.data.rows import BadRows, Document
from llmnas.data.sequences import Sequences
from llmnas.data.split import SIDES, Side, Split, split_documents
from llmnas.data.store import Store
from llmnas.data.tokenizer import (
    END_OF_TEXT,
    EOS_ID,
    check_vocab,
    encode_texts,
    load_tokenizer,
    sample_texts,
    save_tokenizer,
    train_tokenizer,
)
from llmnas.data.tokens import TokenFile, TokenInfo, Tokens, TokenWriter, token_writer, write_tokens

__all__ = [
    "END_OF_TEXT",
    "EOS_ID",
    "SIDES",
    "BadRows",
    "Corpus",
    "Document",
    "Encoder",
    "Mixture",
    "ModelTokenizer",
    "Reading",
    "Sequences",
    "Side",
    "Split",
    "Store",
    "TokenFile",
    "TokenInfo",
    "TokenWriter",
    "Tokens",
    "check_vocab",
    "copy_tokenizer",
    "encode_texts",
    "load_tokenizer",
    "open_corpus",
    "read_corpus",
    "read_model_tokenizer",
    "require_lossless",
    "require_same_tokenizer",
    "sample_texts",
    "save_tokenizer",
    "split_documents",
    "token_writer",
    "train_tokenizer",
    "write_tokens",
]
