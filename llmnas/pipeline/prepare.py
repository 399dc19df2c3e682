"""Text to tokens: split by whole documents, train the tokenizer, write memory-mapped ids."""

from __future__ import annotations

from llmnas.data import (
    EOS_ID,
    encode_texts,
    read_corpus,
    save_tokenizer,
    split_documents,
    train_tokenizer,
    write_tokens,
)
from llmnas.errors import UserError
from llmnas.files import sha256
from llmnas.pipeline.context import Context

_SPLITS = ("train", "validation")


def prepare(context: Context) -> None:
    """Write `data/`; what is there already is kept."""
    config, run = context.config, context.run
    # what describes a token file is written after it: with both, nothing was cut off
    if run.tokenizer.exists() and all(run.tokens(split).with_suffix(".json").exists() for split in _SPLITS):
        return
    documents = read_corpus(config.data.source)
    split = split_documents(documents, config.data.validation, config.seed)
    vocab_size = config.space.base.vocab_size
    context.tracker.progress("prepare", 1, 3, f"{len(documents)} documents, training a tokenizer of {vocab_size}")
    tokenizer = train_tokenizer((document.text for document in split.train), vocab_size)
    save_tokenizer(tokenizer, run.tokenizer)
    facts: dict[str, int] = {}
    for i, (name, part) in enumerate(zip(_SPLITS, (split.train, split.validation), strict=True)):
        texts = [document.text for document in part]
        size = sum(len(text.encode()) for text in texts)
        file = write_tokens(run.tokens(name), encode_texts(tokenizer, texts), vocab_size, EOS_ID, size)
        if file.info.tokens <= config.train.seq_len:
            raise UserError(
                f"data.source {config.data.source}: its {name} part has {file.info.tokens:,} tokens, fewer than one "
                f"sequence of train.seq_len + 1 = {config.train.seq_len + 1}; give more text or shorter sequences"
            )
        facts |= {f"{name}_documents": len(part), f"{name}_tokens": file.info.tokens, f"{name}_bytes": size}
        context.tracker.progress("prepare", i + 2, 3, f"{file.info.tokens:,} {name} tokens")
    run.record("prepare", tokenizer_sha256=sha256(run.tokenizer), **facts)
