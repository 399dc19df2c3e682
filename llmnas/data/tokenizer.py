"""Byte-level BPE: any text in, the same text out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from llmnas.data.duplicates import digest
from llmnas.data.tokenizer_training import trained
from llmnas.errors import UserError
from llmnas.files import Seal, write_text
from llmnas.files.tokenizer_files import open_tokenizer

END_OF_TEXT = "<|endoftext|>"
EOS_ID = 0
SMALLEST = 257  # the 256 bytes and the end of text
LONGEST_WORD = 128
"""Characters of a pre-token, a space before it not counted: learning merges is quadratic in it, and text without spaces
would be one without end."""
SAMPLE_BYTES = 1 << 28
"""Text that a tokenizer learns from; of a larger corpus a random sample of that size is taken."""
_CHUNK = 1 << 20  # characters encoded at once: enough for every core, bounded memory
_PIECE = 1 << 16  # characters that a sample takes or leaves together
_WORD = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}{1,%(most)d}| ?\p{N}{1,%(most)d}| ?[^\s\p{L}\p{N}]{1,%(most)d}"
    r"|\s{1,%(most)d}(?!\S)|\s{1,%(most)d}"
)
WORDS = _WORD % {"most": LONGEST_WORD}
"""GPT-2's splitting, except that no piece is longer than `LONGEST_WORD`; the form is that of Llama 3's tokenizer."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) of exactly `vocab_size` entries.

    Entry 0 is the end of text, then come the 256 bytes, then the merges. The same texts give the same
    tokenizer. Time is linear in the text, also where it has no spaces (Chinese, DNA): words are at most
    `LONGEST_WORD` characters, in training as in the tokenizer that comes out.

    Raises:
        UserError: fewer than 257 entries asked for, or more than the texts have merges for.
        RunError: the child process in which it learns ended.
    """
    if vocab_size < SMALLEST:
        raise UserError(f"vocabulary of {vocab_size}: a byte-level tokenizer needs at least {SMALLEST} entries")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": vocab_size, "special_tokens": [END_OF_TEXT], "initial_alphabet": alphabet}
    tokenizer = trained(tokenizer, texts, options)
    reached = tokenizer.get_vocab_size()
    if reached != vocab_size:
        raise UserError(
            f"vocabulary of {vocab_size}: the corpus is too small for that, it yields {reached} entries; "
            f"ask for at most {reached}, or give more text"
        )
    return _literal(tokenizer)


def sample_texts(texts: Iterable[str], size: int, wanted: int) -> Iterator[str]:
    """About `wanted` of the `size` bytes of some texts, all of them where there are no more.

    Pieces of long texts are taken or left, not whole texts, so that a few long ones give a sample too. Which ones is a
    function of the texts alone.
    """
    share = max(1, -(-size // wanted))
    for text in texts:
        yield from sample_pieces(text, share)


def sample_pieces(text: str, share: int) -> Iterator[str]:
    """One of `share` pieces of a text, of a short one all or nothing; the text itself where `share` is 1."""
    if share == 1:
        yield text
        return
    for number in range(digest(text) % share, -(-len(text) // _PIECE), share):
        yield text[number * _PIECE : (number + 1) * _PIECE]


def save_tokenizer(tokenizer: Tokenizer, path: Path, seal: Seal | None = None) -> None:
    """Write `tokenizer.json` (the format of Hugging Face tokenizers), whole or not at all."""
    write_text(path, tokenizer.to_str(pretty=True) + "\n", seal)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        UserError: no such file, damaged, or one whose entry 0 is not the end of text.
    """
    tokenizer = open_tokenizer(path)
    if tokenizer.token_to_id(END_OF_TEXT) != EOS_ID:
        raise UserError(f"{path}: entry {EOS_ID} must be {END_OF_TEXT}, found {tokenizer.id_to_token(EOS_ID)!r}")
    return _literal(tokenizer)


def check_vocab(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a model whose vocabulary is not the tokenizer's.

    Raises:
        UserError: the sizes differ.
    """
    size = tokenizer.get_vocab_size()
    if size != vocab_size:
        raise UserError(
            f"the tokenizer has {size} entries but the model's vocab_size is {vocab_size}; set it to {size}"
        )


def encode_texts(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
    """Token ids of each text, without end of text; many texts at once, on all cores, in bounded memory."""
    for chunk in _chunks(texts):
        for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
            yield encoding.ids


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _literal(tokenizer: Tokenizer) -> Tokenizer:
    """Read "<|endoftext|>" in a text as those 13 characters: a corpus cannot forge a document's end.

    Not kept in `tokenizer.json`, hence set after training and after loading.
    """
    tokenizer.encode_special_tokens = True
    return tokenizer
