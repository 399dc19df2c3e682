"""Text to a token store: scan every group of input files, settle what all depend on, encode every group, describe it.

Each group's results are files of their own, written whole or not at all, so that a start after kill -9 goes on from
them, and tasks of a batch system can share the groups. Nothing is waited for: a task ends when what it can do is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from llmnas.cost.device import available_cores
from llmnas.data.corpus import Corpus, Reading, open_corpus
from llmnas.data.plan import (
    Group,
    Plan,
    Settings,
    changed_groups,
    grouped,
    read_plan,
    short_hash,
    sources_of,
    write_plan,
)
from llmnas.data.rows import LISTED
from llmnas.data.shards import Piece, Scan, ShardInfo, encode, scan
from llmnas.data.split import SIDES
from llmnas.data.store import FILE, Store, StoreInfo, joined, write_store
from llmnas.data.tokenizer import SAMPLE_BYTES
from llmnas.distributed.lock import locked
from llmnas.distributed.workers import run_jobs
from llmnas.errors import UserError
from llmnas.files import PACKED, read_as, sha256
from llmnas.pipeline.store_common import BusyError, Common, Progress, Request, known_common, own_tokenizer, settle

_UNPACKS = 5
"""How many times its size packed text is taken to have, where a sample of it is drawn."""


@dataclass(frozen=True)
class Outcome:
    """What became of a request: the store, or None where other tasks have something left to do; lines for a person."""

    store: Store | None
    lines: tuple[str, ...]


def make_store(request: Request, progress: Progress) -> Outcome:
    """Make a store, go on with one, or bring one up to date with its text.

    Raises:
        UserError: no such text, more bad rows than may be passed over, a folder with something else in it, or one
            made with other settings.
        RunError: a worker was killed, or a file changed meanwhile.
    """
    own, workers = own_tokenizer(request), request.workers or available_cores()
    corpus = open_corpus(request.source, Reading(request.text_field, request.bad_rows, request.follow_links))
    settings = Settings(
        text_field=request.text_field,
        bad_rows=request.bad_rows,
        duplicates=request.duplicates,
        validation=request.validation,
        vocab_size=own[1] if own else request.vocab_size,
        tokenizer=str(request.tokenizer) if request.tokenizer else None,
        given_sha256=sha256(own[0] if isinstance(own[0], Path) else own[0].path) if own else None,
    )
    _require_apart(request)
    with locked(request.out) if request.task is None else nullcontext():
        plan, lines = _plan(request, corpus, settings)
        pieces = _pieces(request, corpus, plan, trains=own is None)
        mine = [piece for place, piece in enumerate(pieces) if _is_mine(place, request.task)]
        _scan(mine, workers, progress)
        if missing := [piece for piece in pieces if not _is_scanned(piece)]:
            return Outcome(None, (*lines, _left(request, "scanned", len(pieces), len(missing))))
        scans = [read_as(piece.files["json"], Scan) for piece in pieces]
        _require_text(corpus, settings, scans)
        try:
            common = settle(request, pieces, corpus, own, progress)
        except BusyError:
            return Outcome(None, (*lines, "another task learns the tokenizer; when it has ended, start this one again"))
        pieces = _named(pieces, common)
        mine = [piece for place, piece in enumerate(pieces) if _is_mine(place, request.task)]
        _encode(mine, workers, progress)
        if missing := [piece for piece in pieces if not _is_encoded(piece)]:
            return Outcome(None, (*lines, _left(request, "encoded", len(pieces), len(missing))))
        store = _describe(request, corpus, plan, pieces, scans, common)
    return Outcome(store, (*lines, *_told(store)))


def _plan(request: Request, corpus: Corpus, settings: Settings) -> tuple[Plan, list[str]]:
    """The groups of the store with the text as it is now; lines that say what changed since it was made."""
    path, source = request.out / "work" / "plan.json", _absolute(request.source)
    if not path.exists():
        if (request.out / FILE).exists():
            raise UserError(f"{request.out}: a run made this store, which is not added to; choose another --out")
        strangers = sorted(entry.name for entry in request.out.glob("*") if entry.name not in {"work", "lock.json"})
        if strangers:
            raise UserError(f"{request.out}: holds {strangers[0]} and is no token store; choose another --out")
        plan = Plan(source=source, settings=settings, groups=grouped((), sources_of(corpus), request.group_bytes))
        write_plan(path, plan)
        return plan, []
    before = read_plan(path)
    old, new = before.settings.model_dump() | {"SOURCE": before.source}, settings.model_dump() | {"SOURCE": source}
    if old["given_sha256"] is None and old["tokenizer"] is not None:  # a store made before it was noted
        del new["given_sha256"]
    changed = [f"{name}: {old[name]} -> {new[name]}" for name in new if old[name] != new[name]]
    if changed:
        raise UserError(f"{request.out}: made with other settings: {'; '.join(changed[:3])}; choose another --out")
    groups = grouped(before.groups, sources_of(corpus), request.group_bytes)
    plan = before.model_copy(update={"groups": groups})
    if groups == before.groups:
        return plan, []
    write_plan(path, plan)
    fresh, redone = changed_groups(before.groups, groups)
    said = f"{fresh:,} new shard(s) for new text; of {redone:,} a file changed or is gone, they are made again"
    kept = len(set(before.groups).intersection(groups))
    return plan, [f"{said}; {kept:,} are read no more; the tokenizer stays"]


def _require_apart(request: Request) -> None:
    """`UserError` where the store would lie in its own text, and a later start would read it."""
    source, out = Path(_absolute(request.source)), request.out.resolve()
    if source.is_dir() and out.is_relative_to(source):
        raise UserError(f"--out {request.out}: lies in SOURCE {request.source}; choose a folder outside of it")


def _absolute(source: str) -> str:
    return source if source in {"sotu", "stdlib"} else str(Path(source).expanduser().resolve())


def _pieces(request: Request, corpus: Corpus, plan: Plan, *, trains: bool) -> list[Piece]:
    name, path = corpus.files[0]
    root = path.parents[len(Path(name).parts) - 1]
    share = 0
    if trains and known_common(request) is None:
        size = sum(_unpacked(group) for group in plan.groups)
        share = max(1, -(-size // SAMPLE_BYTES))
    return [Piece(request.out, root, group, plan.settings, share=share) for group in plan.groups]


def _unpacked(group: Group) -> int:
    """About how many bytes of text a group holds."""
    return sum(
        file.bytes * (_UNPACKS if file.name.lower().endswith((*PACKED, ".parquet")) else 1) for file in group.files
    )


def _is_mine(place: int, task: tuple[int, int] | None) -> bool:
    return task is None or place % task[1] == task[0]


def _scan(pieces: Sequence[Piece], workers: int, progress: Progress) -> None:
    _run(scan, [piece for piece in pieces if not _is_scanned(piece)], workers, progress, "scan")


def _encode(pieces: Sequence[Piece], workers: int, progress: Progress) -> None:
    _run(encode, [piece for piece in pieces if not _is_encoded(piece)], workers, progress, "encode")


def _run(
    function: Callable[[Piece], object], pieces: Sequence[Piece], workers: int, progress: Progress, stage: str
) -> None:
    total, done = sum(piece.group.bytes for piece in pieces), 0
    for number, (piece, _) in enumerate(run_jobs(function, pieces, min(workers, len(pieces))), start=1):
        done += piece.group.bytes
        progress(stage, done, total, f"{number} of {len(pieces)} shards")


def _is_scanned(piece: Piece) -> bool:
    """Whether a group's scan is there, with the text that a tokenizer is to learn from."""
    return piece.files["json"].exists() and (not piece.share or piece.files["sample"].exists())


def _is_encoded(piece: Piece) -> bool:
    """Whether a group's tokens are all there."""
    if not piece.described.exists():
        return False
    shards = [(piece.shard, read_as(piece.described, ShardInfo))]
    sides = [info for side in SIDES if (info := joined(shards, side)) is not None]
    return all((piece.store / str(shard.name)).exists() for info in sides for shard in info.shards)


def _left(request: Request, what: str, groups: int, missing: int) -> str:
    number, tasks = request.task or (0, 1)
    return (
        f"task {number} of {tasks} has {what} its share; {missing} of {groups} shards of other tasks are not yet: "
        "when all tasks have ended, start them again"
    )


def _require_text(corpus: Corpus, settings: Settings, scans: Sequence[Scan]) -> None:
    bad = sum(found.bad for found in scans)
    if bad > settings.bad_rows:
        first = next(line for found in scans for line in found.listed)
        raise UserError(
            f"{corpus.source}: {bad:,} bad rows, at most {settings.bad_rows:,} may be passed over (--bad-rows); {first}"
        )
    if not any(found.documents for found in scans):
        raise UserError(f"{corpus.source}: an empty corpus ({len(corpus.files)} file(s) read, no text in any)")


def _named(pieces: Sequence[Piece], common: Common) -> list[Piece]:
    """The pieces with the tokenizer and the names of their tokens, which say all that these depend on."""
    found = []
    for piece in pieces:
        marks = piece.files["repeated"]
        values = [common.tokenizer_sha256, piece.settings.validation]
        if piece.settings.duplicates != "keep":
            values.append(sha256(marks))
        shard = f"{piece.group.key(piece.settings)}-{short_hash(values)}"
        eos, prefix, model = common.eos_id, common.prefix, common.model
        found.append(replace(piece, shard=shard, eos_id=eos, prefix=prefix, model=model))
    return found


def _describe(
    request: Request, corpus: Corpus, plan: Plan, pieces: Sequence[Piece], scans: Sequence[Scan], common: Common
) -> Store:
    shards = [(piece.shard, read_as(piece.described, ShardInfo)) for piece in pieces]
    found = {side: joined(shards, side) for side in SIDES}
    sides = {side: info for side, info in found.items() if info is not None}
    for side, least in (("train", 1 - request.validation), ("validation", request.validation)):
        if least and side not in sides:
            raise UserError(
                f"{request.source}: its {side} part has no document; give more text, or another --validation"
            )
    info = StoreInfo(
        source=plan.source,
        settings=plan.settings,
        tokenizer_sha256=common.tokenizer_sha256,
        vocab_size=common.vocab_size,
        eos_id=common.eos_id,
        files=len(corpus.files),
        documents={side: sides[side].documents for side in sides},
        tokens={side: sides[side].tokens for side in sides},
        bad=sum(found.bad for found in scans),
        blank=sum(found.blank for found in scans),
        repeated=common.repeated,
        passed_over=corpus.passed_over,
        listed=tuple([line for found in scans for line in found.listed][:LISTED]),
    )
    write_store(request.out, info, sides)
    _clean(request.out / "work", pieces)
    return Store.open(request.out)


def _clean(work: Path, pieces: Sequence[Piece]) -> None:
    """Delete what earlier states of the text have left."""
    used = {path.name for piece in pieces for path in (*piece.files.values(), piece.described)}
    for path in work.iterdir():
        if path.is_file() and path.name not in {*used, "plan.json", "common.json"}:
            path.unlink(missing_ok=True)


def _told(store: Store) -> list[str]:
    info = store.info
    lines = [f"{side}: {info.tokens[side]:,} tokens of {info.documents[side]:,} documents" for side in info.tokens]
    left = {"duplicate": info.repeated, "bad": info.bad, "blank": info.blank}
    if any(left.values()):
        lines.append(f"left out: {', '.join(f'{count:,} {name}' for name, count in left.items() if count)} row(s)")
    if info.passed_over:
        lines.append(f"passed over: {len(info.passed_over):,} file(s) of other kinds, such as {info.passed_over[0]}")
    return lines
