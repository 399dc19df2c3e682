import itertools
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import pytest
import toy_problem
from toy_problem import BUDGET, KILLED_RUN, LIGHT, ONE, SPACE, TWO, measure

from llmnas.archive import Archive
from llmnas.cost import Budget
from llmnas.errors import UserError
from llmnas.pareto import Evaluation
from llmnas.search import STRATEGIES, Options, search  # noqa: F401 (Options: found by name)
from llmnas.search.strategies import Entry
from llmnas.space import Architecture


class Counting:
    """The toy evaluator, remembering what it was asked for."""

    def __init__(self) -> None:
        self.seen: list[Architecture] = []

    def __call__(self, archs: Sequence[Architecture]) -> list[dict[str, float]]:
        self.seen += archs
        return measure(archs)


def test_the_shortest_call_works():
    archive = search(SPACE, measure)
    assert len(archive) == 200
    assert archive.objectives == TWO
    assert archive.front()


def test_a_longer_search_begins_with_the_shorter_one(tmp_path):
    for name in STRATEGIES:
        path, options = tmp_path / f"{name}.sqlite", LIGHT.get(name, {})
        for evaluations in (21, 21, 50):  # 21 is no multiple of the batch
            evaluate = Counting()
            search(SPACE, evaluate, name, evaluations=evaluations, archive_path=path, options=options).close()
        assert len(evaluate.seen) == 29
        whole = search(SPACE, measure, name, evaluations=50, options=options)
        assert Archive.load(path).evaluations == whole.evaluations


@pytest.fixture
def uninterrupted():
    return lambda name: search(SPACE, measure, name, options=LIGHT.get(name, {}), **KILLED_RUN)


def check_resumed(name: str, path: Path, diary: Path, kills: int, whole: Archive) -> None:
    """Finish the search and compare it with one that was never killed."""
    stored = {e.arch.id for e in Archive.load(path).evaluations}
    before = Counter(diary.read_text().split())
    resumed = search(SPACE, evaluate := Counting(), name, archive_path=path, options=LIGHT.get(name, {}), **KILLED_RUN)
    assert resumed.evaluations == whole.evaluations
    assert resumed.front() == whole.front()
    assert not stored & {arch.id for arch in evaluate.seen}
    times = before + Counter(arch.id for arch in evaluate.seen)
    repeated = sum(times.values()) - len(times)
    assert repeated <= kills * KILLED_RUN["batch"]  # only what was being evaluated at the moment of a kill


@pytest.mark.parametrize(
    ("name", "moment", "count"),
    [
        ("random", "evaluating", 1),
        ("evolution", "stored", 40),
        ("nsga2", "evaluating", 39),
        ("local", "stored", 20),
        ("bayes", "stored", 32),
    ],
)
def test_a_killed_search_resumes_as_if_nothing_had_happened(name, moment, count, tmp_path, uninterrupted):
    path, diary = tmp_path / "evaluations.sqlite", tmp_path / "diary"
    command = [sys.executable, toy_problem.__file__, name, str(path), str(diary), moment, str(count)]
    died = subprocess.run(command, check=False, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(Archive.load(path)) == (count if moment == "stored" else (count - 1) // 4 * 4)
    check_resumed(name, path, diary, 1, uninterrupted(name))


def test_killed_again_and_again_at_any_moment(tmp_path, uninterrupted):
    path, diary = tmp_path / "evaluations.sqlite", tmp_path / "diary"
    diary.touch()
    kills = 0
    for target in itertools.count(3, 11):
        process = get_context("fork").Process(target=toy_problem.main, args=("nsga2", path, diary, "slow", target))
        process.start()
        while process.is_alive() and len(diary.read_text().split()) < target:
            process.join(0.001)
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        kills += 1
    assert kills >= 3
    check_resumed("nsga2", path, diary, kills, uninterrupted("nsga2"))


def test_what_was_stored_before_an_exception_is_kept(tmp_path):
    def breaks(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        counting(archs)
        if len(counting.seen) > 30:
            raise ZeroDivisionError("the evaluator broke")
        return measure(archs)

    path, counting = tmp_path / "evaluations.sqlite", Counting()
    with pytest.raises(ZeroDivisionError, match="the evaluator broke"):
        search(SPACE, breaks, evaluations=60, archive_path=path)
    assert len(Archive.load(path)) == 24
    resumed = search(SPACE, measure, evaluations=60, archive_path=path)
    assert resumed.evaluations == search(SPACE, measure, evaluations=60).evaluations


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"strategy": "local"}, "strategy: random -> local"),
        ({"objectives": {"val_loss": "min", "params": "max"}}, "objectives.params: min -> max"),
        ({"objectives": ONE}, "objectives.params: min -> None"),
        ({"constraints": {"params": 9}}, "constraints.params: None -> [None, 9.0]"),
        ({"budget": Budget(max_params=60_000)}, "budget.max_params: 70000 -> 60000"),
        ({"space": SPACE.model_copy(update={"hidden_size": (32,)})}, "space: "),
    ],
)
def test_the_archive_of_another_search_is_refused_with_the_difference(changed, difference, tmp_path):
    asked = {
        "space": SPACE,
        "evaluate": measure,
        "strategy": "random",
        "budget": BUDGET,
        "evaluations": 20,
        "archive_path": tmp_path / "evaluations.sqlite",
    }
    search(**asked).close()
    with pytest.raises(UserError) as error:
        search(**(asked | changed))
    assert f"evaluations.sqlite: belongs to another search ({difference}" in str(error.value)
    assert len(search(**asked)) == 20


def test_options_belong_to_the_search(tmp_path):
    path = tmp_path / "evaluations.sqlite"
    search(SPACE, measure, "nsga2", evaluations=8, archive_path=path).close()
    with pytest.raises(UserError, match=r"options.population: 16 -> 4"):
        search(SPACE, measure, "nsga2", evaluations=8, archive_path=path, options={"population": 4})


def test_the_order_in_which_objectives_are_named_changes_nothing():
    for name in STRATEGIES:
        orders = (TWO, dict(reversed(TWO.items())))
        runs = [search(SPACE, measure, name, order, evaluations=40, options=LIGHT.get(name, {})) for order in orders]
        assert runs[0].evaluations == runs[1].evaluations


def test_a_replay_that_leaves_the_archive_is_refused(tmp_path):
    path = tmp_path / "evaluations.sqlite"
    search(SPACE, measure, "random", evaluations=16, archive_path=path).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE evaluations SET arch = ? WHERE idx = 9", (SPACE.smallest().to_json(),))
    with pytest.raises(UserError, match=f"evaluation 9 is of {SPACE.smallest().id}"):
        search(SPACE, measure, "random", evaluations=20, archive_path=path)


class Stubborn:
    """Asks for the same three architectures for ever, one of them twice."""

    def __init__(self, *_: object) -> None:
        self.told: list[Sequence[Evaluation]] = []
        Stubborn.last = self

    def ask(self, n: int) -> list[Architecture]:
        return [SPACE.smallest(), SPACE.largest(), SPACE.smallest(), SPACE.middle()][:n]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        self.told.append(evaluations)


def test_repeated_questions_are_answered_from_the_archive_and_end_the_search(monkeypatch, caplog):
    monkeypatch.setitem(STRATEGIES, "stubborn", Entry(__name__, "Options", "Stubborn"))
    archive = search(SPACE, evaluate := Counting(), "stubborn", evaluations=10)
    assert evaluate.seen == [SPACE.smallest(), SPACE.largest(), SPACE.middle()]
    assert [e.arch for e in archive.evaluations] == evaluate.seen
    first, *others = Stubborn.last.told
    assert [e.index for e in first] == [0, 1, 0, 2]
    assert others
    assert all(told == first for told in others)
    assert "3 of 10" in caplog.text


def test_progress_is_told_after_every_stored_batch(tmp_path):
    path, sizes = tmp_path / "evaluations.sqlite", []
    for evaluations in (10, 30):
        search(SPACE, measure, evaluations=evaluations, archive_path=path, on_progress=lambda a: sizes.append(len(a)))
    assert sizes == [8, 10, 16, 24, 30]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"strategy": "magic"},
            "'magic' does not exist; allowed: random, evolution, nsga2, local, bayes, reinforce, ofa, mip",
        ),
        ({"objectives": {}}, "objectives: none given"),
        ({"objectives": {"val_loss": "down"}}, "val_loss: 'down' is not a direction; allowed: min, max"),
        ({"constraints": {"params": (3, 2)}}, "params: .* bounds nothing"),
        ({"evaluations": 0}, "evaluations must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"evaluations": 10.0}, "evaluations must be a whole number, got 10.0"),
        ({"batch": "8"}, "batch must be a whole number, got '8'"),
        ({"evaluate": lambda archs: None}, "evaluate: must return a mapping for each architecture in a list, got None"),
        ({"evaluate": lambda archs: [None] * len(archs)}, "a mapping from metric to number, got None"),
        ({"evaluate": lambda archs: [{"val_loss": 10**400}] * len(archs)}, "a mapping from metric to number, got"),
        ({"evaluate": lambda archs: [{}] * len(archs)}, r"returned no 'val_loss'; it returned \[\]"),
        ({"evaluate": lambda archs: measure(archs)[1:]}, "returned 7 results for 8 architectures"),
        ({"evaluate": lambda archs: [3.0] * len(archs)}, "a mapping from metric to number, got 3.0"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(UserError, match=message):
        search(**({"space": SPACE, "evaluate": measure, "evaluations": 10} | wrong))


def test_a_search_that_failed_at_once_leaves_its_path_free(tmp_path):
    path = tmp_path / "evaluations.sqlite"
    with pytest.raises(UserError, match="returned no"):
        search(SPACE, lambda archs: [{}] * len(archs), "random", archive_path=path)
    assert len(search(SPACE, measure, "local", evaluations=8, archive_path=path)) == 8
