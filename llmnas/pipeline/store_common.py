"""What all shards of a token store depend on: which documents are repeated, and the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel as Model
from pydantic import ConfigDict

from llmnas.data.corpus import Corpus
from llmnas.data.duplicates import Duplicates, mark_repeated
from llmnas.data.plan import GROUP_BYTES
from llmnas.data.pretrained import ModelTokenizer, copy_tokenizer, read_model_tokenizer, require_lossless
from llmnas.data.reading import TEXT
from llmnas.data.shards import Piece, sampled
from llmnas.data.tokenizer import EOS_ID, load_tokenizer, save_tokenizer, train_tokenizer
from llmnas.distributed.lock import locked
from llmnas.errors import UserError
from llmnas.files import read_as, read_object, sha256, write_json

Progress = Callable[[str, int, int, str], None]
"""Stage, how much of how much is done, and a note."""
Own = tuple[ModelTokenizer | Path, int]
"""A tokenizer that is not trained: a pretrained model's, or the file of one of ours; and its vocabulary."""


@dataclass(frozen=True)
class Request:
    """What store is asked for.

    Attributes:
        source: as of `open_corpus`.
        out: folder of the store.
        text_field, bad_rows, follow_links: how the text is read; as in `Reading`.
        duplicates: which texts are left out.
        validation: share of documents held out.
        vocab_size: of the tokenizer that is trained.
        tokenizer: a folder or file whose tokenizer is used instead.
        workers: processes; one a processor where nothing is said.
        task: (number, how many): do only this task's groups.
        group_bytes: input bytes that make a shard.
    """

    source: str
    out: Path
    text_field: str = TEXT
    bad_rows: int = 0
    follow_links: bool = False
    duplicates: Duplicates = "normalised"
    validation: float = 0.01
    vocab_size: int = 32_768
    tokenizer: Path | None = None
    workers: int | None = None
    task: tuple[int, int] | None = None
    group_bytes: int = GROUP_BYTES


class Common(Model):
    """What all shards depend on; made when every group is scanned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[str, ...]  # of the groups
    tokenizer_sha256: str
    vocab_size: int
    eos_id: int
    prefix: tuple[int, ...]
    model: bool
    repeated: int


def own_tokenizer(request: Request) -> Own | None:
    """The tokenizer that is asked for (a pretrained model's, or the file of one of ours), and the vocabulary."""
    if request.tokenizer is None:
        return None
    folder = request.tokenizer.parent if request.tokenizer.is_file() else request.tokenizer
    if not (folder / "config.json").is_file():
        path = folder / "tokenizer.json" if request.tokenizer.is_dir() else request.tokenizer
        return path, load_tokenizer(path).get_vocab_size()
    rows = read_object(folder / "config.json").get("vocab_size")
    if type(rows) is not int or rows < 1:
        raise UserError(f"{folder / 'config.json'}: vocab_size = {rows!r} is no number of entries")
    return read_model_tokenizer(folder, rows), rows


class BusyError(Exception):
    """Another task does what only one has to do."""


def settle(
    request: Request,
    pieces: Sequence[Piece],
    corpus: Corpus,
    own: Own | None,
    progress: Progress,
) -> Common:
    """Find duplicates and put the tokenizer there, unless that is done.

    Raises:
        UserError: a vocabulary that the text is too small for, a tokenizer that loses text, or one that changed.
        BusyError: another task is at it.
    """
    keys = tuple(piece.group.key(piece.settings) for piece in pieces)
    with ExitStack() as stack:
        known = known_common(request)
        if request.task and (known is None or known.keys != keys):
            try:
                stack.enter_context(locked(request.out / "work" / "common"))
            except UserError:
                raise BusyError from None
            known = known_common(request)  # another task may have settled it before this one had the lock
        if known is not None and known.keys == keys:
            return known
        return _settle_alone(request, pieces, corpus, own, known, progress)


def known_common(request: Request) -> Common | None:
    """What was settled, of this text or an earlier one; None where that is not done, or the tokenizer is gone.

    Raises:
        UserError: the tokenizer is another one.
    """
    path, tokenizer = _path(request), request.out / "tokenizer.json"
    if not path.exists() or not tokenizer.exists():
        return None
    known = read_as(path, Common)
    if sha256(tokenizer) != known.tokenizer_sha256:
        raise UserError(f"{tokenizer}: damaged: not the tokenizer of this store (SHA-256 differs); use another --out")
    return known


def _path(request: Request) -> Path:
    return request.out / "work" / "common.json"


def _settle_alone(
    request: Request,
    pieces: Sequence[Piece],
    corpus: Corpus,
    own: Own | None,
    known: Common | None,
    progress: Progress,
) -> Common:
    settings, repeated = pieces[0].settings, 0
    if known is not None:  # the marks are about to change: until all have, nothing is settled
        write_json(_path(request), known.model_copy(update={"keys": ()}).model_dump(mode="json"))
    if settings.duplicates != "keep":
        kind = "exact" if settings.duplicates == "exact" else "digests"
        progress("duplicates", 0, 1, "")
        repeated = mark_repeated([p.files[kind] for p in pieces], [p.files["repeated"] for p in pieces])
        progress("duplicates", 1, 1, f"{repeated:,} found")
    if known is None:
        model = _put_tokenizer(request, pieces, corpus, own, progress)
        eos, prefix = (model.eos_id, model.prefix) if model else (EOS_ID, ())
        known = Common(
            keys=(), tokenizer_sha256=sha256(request.out / "tokenizer.json"), vocab_size=settings.vocab_size,
            eos_id=eos, prefix=prefix, model=model is not None, repeated=0,
        )  # fmt: skip
    keys = tuple(piece.group.key(settings) for piece in pieces)
    common = known.model_copy(update={"keys": keys, "repeated": repeated})
    write_json(_path(request), common.model_dump(mode="json"))
    for piece in pieces:
        piece.files["sample"].unlink(missing_ok=True)
    return common


def _put_tokenizer(
    request: Request,
    pieces: Sequence[Piece],
    corpus: Corpus,
    own: Own | None,
    progress: Progress,
) -> ModelTokenizer | None:
    """Train the store's tokenizer, or copy the one that was asked for; returns it where it is a pretrained model's."""
    path = request.out / "tokenizer.json"
    if own is None:
        total = sum(piece.files["sample"].stat().st_size for piece in pieces)
        save_tokenizer(train_tokenizer(_followed(pieces, total, progress), request.vocab_size), path)
        progress("tokenizer", total, total, f"a vocabulary of {request.vocab_size:,}")
        return None
    if isinstance(own[0], Path):
        save_tokenizer(load_tokenizer(own[0]), path)
        return None
    require_lossless(own[0], ((document.id, document.text) for document in corpus))
    copy_tokenizer(own[0], request.out)
    return own[0]


def _followed(pieces: Sequence[Piece], total: int, progress: Progress) -> Iterator[str]:
    read = 0
    for piece in pieces:
        yield from sampled(piece)
        read += piece.files["sample"].stat().st_size
        progress("tokenizer", min(read, total - 1), total, "bytes of sampled text read")
    progress("tokenizer", total - 1, total, "all read, learning merges")
