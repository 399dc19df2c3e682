"""Text to tokens: split by whole documents, train the tokenizer, write memory-mapped ids.

The corpus is read three times, a document at a time, so its size does not matter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack

from llmnas.data import (
    EOS_ID,
    SIDES,
    BadRows,
    Corpus,
    Document,
    Encoder,
    Side,
    Split,
    copy_tokenizer,
    require_lossless,
    sample_texts,
    save_tokenizer,
    split_documents,
    token_writer,
    train_tokenizer,
)
from llmnas.data.plan import Settings
from llmnas.data.store import FILE, StoreInfo
from llmnas.data.tokenizer import SAMPLE_BYTES
from llmnas.errors import RunError, UserError
from llmnas.files import sha256, write_json
from llmnas.pipeline.context import Context
from llmnas.pipeline.run_stores import bind_stores
from llmnas.pipeline.shared_data import corpus_of, key_of, take_shared, tell_new_text


def prepare(context: Context) -> None:
    """Write `data/`; what is there already is kept, and what a run beside this one made of the same text is taken.

    Raises:
        UserError: no such text or store, or less of it than a sequence, or than the config's validation windows.
    """
    config, run = context.config, context.run
    # what describes a token file is written after it: with both, nothing was cut off
    whole = run.tokenizer.exists() and (run.stores.exists() or all(run.has_tokens(side) for side in SIDES))
    if whole:
        tell_new_text(context)
    elif config.data.tokens:
        facts = bind_stores(config, run, context.own_tokenizer())
        run.record("prepare", tokenizer_sha256=sha256(run.tokenizer), **facts)
    else:
        corpus = corpus_of(context)
        key = key_of(context, corpus)
        if not take_shared(context, key):
            _prepare(context, corpus, key)
    _require_sequences(context)
    context.require_windows()


def _require_sequences(context: Context) -> None:
    """`UserError` where a side is shorter than one sequence."""
    data, seq_len = context.config.data, context.config.train.seq_len
    source = f"data.tokens {data.tokens[0].path}" if data.tokens else f"data.source {data.source}"
    for side in SIDES:
        tokens = context.tokens(side).info.tokens
        if tokens <= seq_len:
            raise UserError(
                f"{source}: its {side} part has {tokens:,} tokens, fewer than one sequence of train.seq_len + 1 = "
                f"{seq_len + 1}; give more text or shorter sequences"
            )


def _prepare(context: Context, corpus: Corpus, key: str) -> None:
    config, run = context.config, context.run
    model, data = context.own_tokenizer(), config.data
    bad = BadRows(data.bad_rows)
    split = split_documents(corpus.documents(bad), data.share, config.seed, data.duplicates)
    vocab_size = config.space.base.vocab_size
    count = sum(split.documents.values())
    if model is None:
        note = f"{count:,} documents, a vocabulary of {vocab_size}"
        tokenizer, eos_id = train_tokenizer(_training_texts(context, corpus, split, note), vocab_size), EOS_ID
        save_tokenizer(tokenizer, run.tokenizer, run.seal)
        context.tracker.progress("tokenizer", 1, 1, note)
    else:
        if not config.data.lossy_tokenizer:
            require_lossless(model, ((document.id, document.text) for document in corpus))
        context.tracker.progress("tokenizer", 1, 1, f"{count:,} documents, tokenizer {model.path}")
        tokenizer, eos_id = model.tokenizer, model.eos_id
        copy_tokenizer(model, run.tokenizer.parent)
    tokens = _write(context, corpus, split, Encoder(tokenizer, model, config.data.loss_on == "completions"), eos_id)
    facts = {f"{side}_documents": split.documents[side] for side in SIDES}
    facts |= {f"{side}_tokens": tokens[side] for side in SIDES} | {f"{s}_bytes": split.text_bytes[s] for s in SIDES}
    left = {"duplicates": split.dropped, "bad_rows": bad.count}
    facts |= {name: count for name, count in left.items() if count}
    run.record("prepare", tokenizer_sha256=sha256(run.tokenizer), **facts)
    _describe(context, corpus, split, bad, tokens, eos_id, key)


def _describe(
    context: Context, corpus: Corpus, split: Split, bad: BadRows, tokens: dict[Side, int], eos_id: int, key: str
) -> None:
    """Say in `store.json` what was made, so that other runs can name it or take it; and what was left out."""
    run, data = context.run, context.config.data
    vocab_size = context.config.space.base.vocab_size
    settings = Settings(
        text_field=data.text_field,
        bad_rows=data.bad_rows,
        duplicates=data.duplicates,
        validation=data.share,
        vocab_size=vocab_size,
        tokenizer=data.tokenizer,
    )
    info = StoreInfo(
        source=data.source,
        settings=settings,
        tokenizer_sha256=sha256(run.tokenizer),
        vocab_size=vocab_size,
        eos_id=eos_id,
        files=len(corpus.files),
        documents=split.documents,
        tokens=tokens,
        bad=bad.count,
        blank=0,
        repeated=split.dropped,
        passed_over=corpus.passed_over,
        listed=tuple(bad.listed),
        key=key,
    )
    write_json(run.tokenizer.with_name(FILE), info.model_dump(mode="json"))


def _training_texts(context: Context, corpus: Corpus, split: Split, note: str) -> Iterator[str]:
    """What a tokenizer learns from: the train side, or a sample of it; tells how much of it has been read."""
    size, read = split.text_bytes["train"], 0
    total = min(size, SAMPLE_BYTES)
    texts = (document.text for side, document in split.sides(corpus) if side == "train")
    for text in sample_texts(texts, size, SAMPLE_BYTES):
        context.tracker.progress("tokenizer", min(read, total - 1), total, note)
        yield text
        read += len(text.encode())
    context.tracker.progress("tokenizer", total - 1, total, f"{note}; all read, learning merges")


def _write(context: Context, corpus: Corpus, split: Split, encoder: Encoder, eos_id: int) -> dict[Side, int]:
    """Both token files in one pass over the corpus; returns their tokens."""
    config, run = context.config, context.run
    vocab_size = config.space.base.vocab_size
    sides: deque[Side] = deque()  # of the documents that are being encoded

    def documents() -> Iterator[Document]:
        for side, document in split.sides(corpus):
            sides.append(side)
            yield document

    total = sum(split.documents.values())
    with ExitStack() as stack:
        writers = {
            side: stack.enter_context(
                token_writer(run.tokens(side), vocab_size, eos_id, split.text_bytes[side], seal=run.seal)
            )
            for side in SIDES
        }
        learned = {
            side: stack.enter_context(token_writer(run.learned(side), 2, 1, 0))
            for side in SIDES if encoder.completions
        }  # fmt: skip
        for done, encoded in enumerate(encoder.encode(documents()), start=1):
            side = sides.popleft()
            writers[side].add(encoded.ids)
            if learned:  # the end of a document is learned
                learned[side].add([int(flag) for flag in encoded.learned])
            if done < total:
                context.tracker.progress("prepare", done, total, f"{sum(w.tokens for w in writers.values()):,} tokens")
        for side, writer in writers.items():
            if writer.documents != split.documents[side]:
                raise RunError(f"data.source {config.data.source}: changed while it was read; run prepare again")
    context.tracker.progress("prepare", total, total, f"{sum(w.tokens for w in writers.values()):,} tokens")
    return {side: writer.tokens for side, writer in writers.items()}
