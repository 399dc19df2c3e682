"""What a search and its strategy have said to each other: asked, proposed, measured, told; and how that is replayed.

Every ask, and every time the strategy was told something, is an event in the archive's log, in order. A strategy
depends on nothing but its problem and these, so one that is asked and told the same is in the same state, whoever
measured and in whatever order the results came.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llmnas.archive import Archive
from llmnas.errors import UserError
from llmnas.pareto import Evaluation, Result
from llmnas.search.strategy import Strategy
from llmnas.space import Architecture

_BARREN_ASKS = 20


class Trial(NamedTuple):
    """An architecture that is to be measured.

    Attributes:
        id: its place among all that the search proposed, from 0; the same after the search was opened again.
    """

    id: int
    arch: Architecture


@dataclass
class _Ask:
    """What came of asking the strategy once.

    Attributes:
        untold: (place, architecture) in the strategy's order, repeated ones too, of what it was not told yet.
        waiting: the trials that are not evaluated, by id.
    """

    untold: list[tuple[int, Architecture]]
    waiting: dict[int, Trial]


class Dialogue:
    """A strategy, the archive of what it proposed, and the trials whose results are not there yet.

    Args:
        first: architectures that are measured before the strategy is asked. It is not told of them: its problem names
            them.
        batch: how many the strategy was asked for at once, of archives of an earlier layout that do not say it.

    Attributes:
        exhausted: the strategy proposes nothing new any more, and nothing is pending that could change that.

    Raises:
        UserError: the strategy proposes something else than it did when the archive was written.
    """

    def __init__(self, strategy: Strategy, archive: Archive, first: Sequence[Architecture], batch: int) -> None:
        self._strategy, self._archive, self._batch = strategy, archive, batch
        self._trials: dict[Architecture, Trial] = {}
        self._asks: list[_Ask] = []
        self._open: dict[int, int] = {}  # trial -> its ask
        self._events: list[str] = []  # not stored yet: nothing rests on them before the next result
        self.exhausted = False
        self._resume(list(dict.fromkeys(first)))

    @property
    def pending(self) -> list[Trial]:
        """The trials whose results are not there yet, in the order of their ids."""
        return [self._asks[self._open[number]].waiting[number] for number in sorted(self._open)]

    def find(self, number: int) -> Trial:
        """The pending trial with this id.

        Raises:
            UserError: there is none.
        """
        if number not in self._open:
            why = "was told already" if number < len(self._trials) else "was never asked for"
            raise UserError(f"trial {number} {why}; pending: {', '.join(map(str, sorted(self._open))) or 'none'}")
        return self._asks[self._open[number]].waiting[number]

    def oldest(self) -> list[Trial]:
        """The pending trials of one ask, the first that has any."""
        return list(self._asks[min(self._open.values())].waiting.values()) if self._open else []

    def propose(self, n: int) -> list[Trial]:
        """Ask the strategy until it proposes something new; `exhausted` where it does not and nothing is pending."""
        for _ in range(_BARREN_ASKS):
            ask, asked, fresh = self._ask(n)
            if fresh:
                return [self._trials[arch] for arch in fresh]
            if not asked:
                break
            if self._asks[ask].untold:
                self._hear(ask)
        self.exhausted = not self._open
        return []

    def _ask(self, n: int) -> tuple[int, list[Architecture], list[Architecture]]:
        """(number of the ask, what it proposed, what is new in that), noted for the log."""
        asked = self._strategy.ask(n)
        fresh = [a for a in dict.fromkeys(asked) if a not in self._trials and not self._is_proposed(a)]
        known = [i for i, arch in enumerate(asked) if self._archive.get(arch) is not None and arch not in fresh]
        event = {"ask": n, "new": [arch.id for arch in fresh], **({"known": known} if known else {})}
        self._events.append(json.dumps(event))
        return self._note(asked, fresh, known), asked, fresh

    def _note(self, asked: Sequence[Architecture], fresh: Sequence[Architecture], known: Iterable[int] = ()) -> int:
        """Number an ask and its trials; those of `asked` that are pending in an earlier ask are that one's to tell."""
        trials = {arch: Trial(len(self._trials) + i, arch) for i, arch in enumerate(fresh)}
        self._trials |= trials
        waiting = {t.id: t for t in trials.values() if self._archive.get(t.arch) is None}
        self._open |= dict.fromkeys(waiting, len(self._asks))
        own = {*known, *(i for i, arch in enumerate(asked) if arch in trials)}
        self._asks.append(_Ask([(i, arch) for i, arch in enumerate(asked) if i in own], waiting))
        return len(self._asks) - 1

    def store(self, trials: Sequence[Trial], results: Sequence[Result], *, complete: bool) -> list[Evaluation]:
        """Store results of pending trials of one ask, and tell the strategy: what there is, or `complete` asks only."""
        number, done = self._open[trials[0].id], {trial.id for trial in trials}
        ask = self._asks[number]
        waits = complete and ask.waiting.keys() - done
        told = [] if waits else self._ready(ask, {trial.arch for trial in trials})
        events = [*self._events, *([json.dumps({"tell": number, "of": [i for i, _ in told]})] if told else [])]
        found = self._archive.append([trial.arch for trial in trials], results, log=events)
        self._events.clear()
        for trial in trials:
            del ask.waiting[trial.id], self._open[trial.id]
        self._tell(ask, told)
        return found

    def _hear(self, number: int) -> None:
        """The strategy hears of an ask of which nothing is left to be evaluated."""
        told = self._ready(self._asks[number], set())
        self._events.append(json.dumps({"tell": number, "of": [i for i, _ in told]}))
        self._tell(self._asks[number], told)

    def _ready(self, ask: _Ask, now: set[Architecture]) -> list[tuple[int, Architecture]]:
        return [(i, arch) for i, arch in ask.untold if arch in now or self._archive.get(arch) is not None]

    def _tell(self, ask: _Ask, told: Sequence[tuple[int, Architecture]]) -> None:
        if told:
            places = {i for i, _ in told}
            ask.untold = [(i, arch) for i, arch in ask.untold if i not in places]
            found = [self._archive.get(arch) for _, arch in told]
            self._strategy.tell([evaluation for evaluation in found if evaluation is not None])

    def flush(self) -> None:
        """Store the events that are not stored yet."""
        if self._events:
            self._archive.append([], [], log=self._events)
            self._events.clear()

    def _is_proposed(self, arch: Architecture) -> bool:
        """Whether the archive has it although no search asked for it."""
        found = self._archive.get(arch)
        return found is not None and found.proposed

    def _resume(self, first: list[Architecture]) -> None:
        """Ask and tell the strategy what it was asked and told. The log begins with `first`, also without any."""
        self._note([], first)
        if self._archive.log:
            for event in map(json.loads, self._archive.log[1:]):
                self._replay(event)
        else:
            self._events.append(json.dumps({"first": len(first)}))
            self._replay_earlier_layout(first)
        for evaluation in self._archive.asked_from(0, self._archive.asked):
            if evaluation.arch not in self._trials:
                raise self._other_proposals(evaluation.index, [evaluation.arch.id], [])
        for number, ask in enumerate(self._asks):
            if ask.untold and not ask.waiting:  # somebody else has proposed, and stored, what was left of it
                self._hear(number)

    def _replay(self, event: dict[str, Any]) -> None:
        if "ask" in event:
            asked, ids = self._strategy.ask(event["ask"]), set(event["new"])
            fresh = [arch for arch in dict.fromkeys(asked) if arch.id in ids]
            if [arch.id for arch in fresh] != event["new"]:
                raise self._other_proposals(len(self._trials), event["new"], [arch.id for arch in asked])
            self._note(asked, fresh, event.get("known", ()))
        else:
            ask, places = self._asks[event["tell"]], set(event["of"])
            self._tell(ask, [(i, arch) for i, arch in ask.untold if i in places])

    def _replay_earlier_layout(self, first: list[Architecture]) -> None:
        """Of archives without a log: the strategy was asked again whenever all that it had asked for was evaluated."""
        self._require_stored(first, 0)
        barren = 0
        while (position := len(self._trials)) < self._archive.asked:
            ask, asked, fresh = self._ask(self._archive.asked_with(position) or self._batch)
            self._require_stored(fresh, position)
            barren = 0 if fresh else barren + 1
            if barren == _BARREN_ASKS or not asked:
                raise self._other_proposals(position, [], [])
            if not self._asks[ask].waiting:
                self._hear(ask)

    def _require_stored(self, fresh: list[Architecture], start: int) -> None:
        """Those first asked for from position `start` on must be those stored there."""
        for arch, stored in zip(fresh, self._archive.asked_from(start, len(fresh)), strict=False):
            if arch != stored.arch:
                raise self._other_proposals(stored.index, [stored.arch.id], [arch.id])

    def _other_proposals(self, place: int, stored: Sequence[str], asked: Sequence[str]) -> UserError:
        return UserError(
            f"{self._archive.path}: evaluation {place} is of {', '.join(stored) or 'another'}, but this version of "
            f"llmnas and its libraries asks for {', '.join(asked) or 'others'} there; continue with the versions that "
            "began the search, or start anew"
        )
