"""A search as an object: measured elsewhere, out of order, by strategies of one's own; stopped, resumed, looked at."""

import random
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from toy_problem import BUDGET, EACH, LIGHT, SPACE, measure

from llmnas.archive import Archive
from llmnas.errors import RunError, UserError
from llmnas.pareto import Failed
from llmnas.search import Search, search
from llmnas.search.strategy import Candidates


def result(trial):
    return measure([trial.arch])[0]


def opened(name="nsga2", path=None, **options):
    return Search(SPACE, strategy=name, archive_path=path, options=LIGHT.get(name, {}), seed=1, **options)


def measured_elsewhere(work, turns, rng, workers=3):
    """Workers with a trial each, asked for one to three at once, finish in a random order."""
    if work.pending:  # a start takes over what the one before left
        assert work.ask(len(work.pending)) == work.pending
    for _ in range(turns):
        while len(work.pending) < workers:
            assert work.ask(rng.randint(1, workers - len(work.pending)))
        trial = rng.choice(work.pending)
        work.tell(trial, result(trial))
    return work


@pytest.mark.parametrize("name", EACH)
def test_told_out_of_order_a_search_is_the_same_however_often_it_is_opened(name, tmp_path):
    whole = measured_elsewhere(opened(name, budget=BUDGET), 45, random.Random(0))
    rng, path = random.Random(0), tmp_path / "evaluations.sqlite"
    for turns in (7, 1, 20, 17):
        work = measured_elsewhere(opened(name, path, budget=BUDGET), turns, rng)
        work.close()
    assert work.archive.evaluations == whole.archive.evaluations
    assert work.pending == whole.pending
    archs = [e.arch for e in whole.archive.evaluations] + [trial.arch for trial in whole.pending]
    assert len(set(archs)) == len(archs) == 45 + len(whole.pending)
    assert all(BUDGET.admits(SPACE.base, arch) for arch in archs)
    assert whole.front


@pytest.mark.parametrize("name", EACH)
def test_told_in_batches_it_is_the_search_that_measures_itself(name):
    work = opened(name)
    while len(work.archive) < 40:
        batch = work.ask(8)
        for trial in batch[:-1]:
            work.tell(trial, result(trial))
        work.tell(batch[-1].id, result(batch[-1]))
    whole = search(SPACE, measure, name, evaluations=40, options=LIGHT.get(name, {}), seed=1)
    assert work.archive.evaluations[:8] == whole.evaluations[:8]
    if name in {"random", "local"}:  # the others learn of a batch at once, or one by one
        assert work.archive.evaluations == whole.evaluations


def test_a_run_goes_on_with_what_was_asked_for_and_not_told(tmp_path):
    path = tmp_path / "evaluations.sqlite"
    work = opened(path=path)
    asked = work.ask(5)
    work.tell(asked[3], result(asked[3]))
    work.close()
    again = opened(path=path, evaluate=measure)
    assert again.pending == [asked[i] for i in (0, 1, 2, 4)]
    assert [e.arch for e in again.step()] == [asked[i].arch for i in (0, 1, 2, 4)]
    assert len(again.run(30).archive) == 30


@pytest.mark.parametrize("batches", [(2, 5), (8, 1)])
def test_those_that_come_first_are_told_in_any_order_with_any_batch(batches, tmp_path):
    path, first = tmp_path / "evaluations.sqlite", [SPACE.largest(), SPACE.smallest(), SPACE.middle()]
    work = opened(path=path, first=first, batch=batches[0])
    trials = work.ask(3)
    assert [trial.arch for trial in trials] == first
    work.tell(trials[2], result(trials[2]))
    work.close()
    work = opened(path=path, first=first, batch=batches[1], evaluate=measure)
    assert work.pending == trials[:2]
    (asked,) = [trial for trial in work.ask(3) if trial not in trials]
    work.tell(asked, result(asked))
    work.close()
    work = opened(path=path, first=first, batch=batches[0], evaluate=measure).run(20)
    assert len({e.arch for e in work.archive.evaluations}) == 20


def test_asked_for_more_than_a_batch_a_run_measures_no_more_than_that_at_once():
    sizes = []
    work = opened(evaluate=lambda archs: sizes.append(len(archs)) or measure(archs), batch=4)
    work.ask(18)
    work.run(30)
    assert max(sizes) == 4


def test_what_was_asked_for_belongs_to_its_search(tmp_path):
    path = tmp_path / "evaluations.sqlite"
    work = opened(path=path)
    (trial,) = work.ask()
    with pytest.raises(UserError, match="belongs to another search"):
        Search(SPACE, seed=2, archive_path=path)
    with pytest.raises(UserError, match=f"trial 0 is of {trial.arch.id} in this search, not of {SPACE.middle().id}"):
        work.tell(trial._replace(arch=SPACE.middle()), result(trial))
    work.close()
    assert opened(path=path).pending == [trial]


def test_a_trial_that_could_not_be_stored_is_handed_out_again(tmp_path, monkeypatch):
    monkeypatch.setattr("llmnas.archive.layout.PATIENCE", 0.01)
    path = tmp_path / "evaluations.sqlite"
    work = opened(path=path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RunError, match="locked by another process"):
            work.ask(2)
        other.rollback()
    assert [trial.id for trial in work.ask(2)] == [0, 1]


def test_a_process_killed_between_ask_and_tell_loses_no_trial(tmp_path):
    """SIGKILL; what was asked for is the same in the next process."""
    path = tmp_path / "evaluations.sqlite"
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_search_session import opened, result
work = opened(path={str(path)!r})
first = work.ask(4)
work.tell(first[2], result(first[2]))
print(*(trial.arch.id for trial in work.ask(3)), flush=True)
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    work = opened(path=path)
    assert len(work.archive) == 1
    assert [trial.id for trial in work.pending] == [0, 1, 3, 4, 5, 6]
    assert [trial.arch.id for trial in work.pending[3:]] == died.stdout.split()


class Alternate:
    """A strategy of somebody's own: random members, every second time the best so far changed a little."""

    def __init__(self, problem):
        self.candidates, self.problem, self.best, self.turn = Candidates(problem), problem, None, 0

    def ask(self, n):
        self.turn += 1
        change = self.best is not None and self.turn % 2
        return self.candidates.new(
            n, (lambda: self.candidates.mutate(self.best.arch)) if change else self.candidates.sample
        )

    def tell(self, evaluations):
        alive = [e for e in (*evaluations, self.best) if e is not None and e.failure is None]
        self.best = min(alive, key=lambda e: e.metrics["val_loss"], default=None)


def test_a_strategy_of_ones_own_needs_no_change_of_the_package(tmp_path):
    path = tmp_path / "evaluations.sqlite"
    for evaluations in (21, 50):
        work = Search(SPACE, measure, strategy=Alternate, archive_path=path).run(evaluations)
        work.close()
    assert work.archive.evaluations == Search(SPACE, measure, strategy=Alternate).run(50).archive.evaluations
    assert len(search(SPACE, measure, lambda problem: Alternate(problem), evaluations=16)) == 16
    with pytest.raises(UserError, match="strategy: Alternate -> random"):
        Search(SPACE, measure, strategy="random", archive_path=path)
    for wrong, message in ((object(), "ask"), (lambda problem: 3, "ask"), ("magic", "does not exist")):
        with pytest.raises(UserError, match=f"strategy: .*{message}"):
            Search(SPACE, measure, strategy=wrong)
    with pytest.raises(UserError, match="options: are for strategies by name"):
        Search(SPACE, measure, strategy=Alternate, options={"population": 4})


class Net:
    """What has a space and measures its members, as a trained supernet does."""

    space = SPACE

    def measure(self, archs):
        return measure(archs)


def test_what_measures_its_own_space_is_searched_as_it_is():
    assert Search(Net()).run(24).archive.evaluations == search(SPACE, measure, evaluations=24).evaluations


def test_a_failure_is_told_as_one():
    work = opened()
    a, b = work.ask(2)
    assert work.tell(a, Failed("no memory")).failure == "no memory"
    assert work.tell(b, {"val_loss": float("nan"), "params": 1}).failure == "val_loss is nan"
    assert work.front == []


def test_wrong_calls_are_one_line_and_store_nothing():
    work = opened()
    (trial,) = work.ask()
    for number, told, message in (
        (7, {}, "trial 7 was never asked for; pending: 0"),
        ("0", {}, "trial must be a whole number"),
        (trial, {"params": 3}, "returned no 'val_loss'"),
        (trial, 3, "must return a mapping from metric to number"),
    ):
        with pytest.raises(UserError, match=message):
            work.tell(number, told)
    work.tell(trial, result(trial))
    with pytest.raises(UserError, match="trial 0 was told already; pending: none"):
        work.tell(trial, result(trial))
    with pytest.raises(UserError, match="n must be at least 1"):
        work.ask(0)
    with pytest.raises(UserError, match=r"need evaluate=\.\.\."):
        work.run(3)
    assert len(work.archive) == 1


def test_a_small_space_ends_when_nothing_is_pending():
    work = opened("random")
    small = Search(SPACE.model_copy(update={"hidden_size": (32,), "layers": 4}), strategy="random", budget=None)
    assert small.ask(3)
    one = Search(
        type(SPACE).from_dict({"base": {"vocab_size": 64}, "layers": 1, "hidden_size": [32], "depth": [1],
                               "kv_heads": [1, 2], "queries_per_group": 1, "head_dim": 8, "ffn_size": 32}),
        strategy="random",
    )  # fmt: skip
    trials = one.ask(5)
    assert len(trials) == 2
    assert one.ask(5) == []
    for trial in trials:
        one.tell(trial, {"val_loss": 1.0 + trial.id, "params": 1})
    assert one.ask(5) == []
    assert work.ask(1)


def test_time_and_stop_end_a_run_between_steps():
    work = opened(evaluate=measure)
    assert len(work.run(100, timeout=0).archive) == 0
    steps = []

    def stop_at_third(archive):
        steps.append(len(archive))
        if len(steps) == 3:
            thread = threading.Thread(target=work.stop)
            thread.start()
            thread.join()

    work = opened(evaluate=measure, on_progress=stop_at_third)
    assert len(work.run(100).archive) == 24
    assert len(work.run(40, timeout=600).archive) == 40
    assert work.archive.evaluations == opened(evaluate=measure).run(40).archive.evaluations


def test_it_is_looked_at_as_text_html_frame_and_picture(tmp_path):
    work = opened(evaluate=lambda archs: [{**row, "<b>": 1.0} for row in measure(archs)]).run(24)
    assert repr(work).startswith("Search(nsga2; 0 pending; Archive(:memory:; 24 evaluations; front of ")
    shown = work._repr_html_()
    assert "<b>" not in shown
    assert shown.count("<tr>") == 1 + min(20, len(work.front))
    frame = work.to_frame()
    assert list(frame["id"]) == [e.arch.id for e in work.archive.evaluations]
    assert frame["on_front"].sum() == len(work.front)
    assert frame["val_loss"].min() == work.best().metrics["val_loss"] == work.best("val_loss").metrics["val_loss"]
    assert work.best("params").metrics["params"] == min(e.metrics["params"] for e in work.front)
    picture = work.plot()
    picture.save(tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes() == picture._repr_png_()
    assert picture.png.startswith(b"\x89PNG")
    with pytest.raises(
        UserError, match="no metric 'speed' of every network of the front; allowed: <b>, params, val_loss"
    ):
        work.best("speed")
    with pytest.raises(UserError, match="the front is empty"):
        opened().best()
    assert "0 evaluations" in repr(opened())


def test_an_archive_of_the_layout_before_goes_on_as_it_was(tmp_path):
    """It had no log, but the number asked for with every evaluation."""
    path = tmp_path / "evaluations.sqlite"
    search(SPACE, measure, "nsga2", evaluations=21, archive_path=path, batch=8, seed=1).close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE log")
        db.execute("UPDATE evaluations SET batch = 8")
        db.execute("PRAGMA user_version = 1")
    first = Archive.load(path)
    assert first.log == ()
    first.close()
    for evaluations in (30, 50):
        work = opened(path=path, evaluate=measure).run(evaluations)
        work.close()
    assert work.archive.evaluations == search(SPACE, measure, evaluations=50, seed=1).evaluations


def test_a_log_that_lost_an_event_is_damage(tmp_path):
    path = tmp_path / "evaluations.sqlite"
    search(SPACE, measure, evaluations=24, archive_path=path).close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM log WHERE number = 2")
    with pytest.raises(UserError, match="an event of the log is missing"):
        Archive.load(path)
