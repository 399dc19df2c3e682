"""Every file of a run folder, damaged, under every verb that reads it: noticed, harmless, or never silent."""

import re

from damage import DAMAGES, contents, copied, damaged
from forked import Counts, forked, steady, verb

MADE_ANEW = ("report.html", "front.png", "curves.png", "correlation.png", "ladder.png", "lock.json")
TIMES = ("ended", "time", "seconds", "cpu_seconds", "candidates_per_hour", "strategy_share", "created")


def verbs(config, run):
    """Name -> arguments of the verbs that read a finished run."""
    common = (config, "--run-dir", run)
    return {
        "report": ("report", *common, "--resume"),
        "run": ("run", *common, "--resume"),
        "export": ("export", *common, "--force"),
        "elastic": ("export", *common, "--elastic", "--force"),
        "gguf": ("export", *common, "--format", "gguf", "--force"),
        "correlate": ("correlate", *common, "--resume"),
        "generate": ("generate", run, "--prompt", "We", "--tokens", "8", "--seed", "1"),
    }


def readers(name):
    """Verbs that may read a file of the run folder."""
    found = ["report", "run"]
    if name.startswith("export/"):
        found = ["generate", "run"]
    elif name.startswith(("retrain/", "data/tokenizer")):
        found += ["export", "gguf"]
    elif name.startswith("supernet/"):
        found = ["elastic", "run"]
    elif name.startswith("correlate/"):
        found = ["correlate", "report"]
    elif name in ("manifest.json", "config.yaml"):
        found += ["export", "generate"]
    elif name.startswith(("evaluations", "decision")):
        found += ["elastic"]
    return found


def result(folder, out):
    """What a verb left, without times: text of its answer, files by hash."""
    files = {}
    for name, digest in contents(folder, but=MADE_ANEW).items():
        path = folder / name
        if path.suffix in {".json", ".jsonl", ".html", ".md"}:
            files[name] = _timeless(path.read_text(encoding="utf-8", errors="replace"))
        elif not name.endswith(("-wal", "-shm")):
            files[name] = digest
    return steady(out), files


def _timeless(text):
    keys = "|".join(TIMES)
    return re.sub(rf'"({keys})": [^,\n}}]+', r'"\1": 0', steady(text))


def run_matrix(config, run, work, only=None):
    """The counts of all cases on copies of a finished run folder, which stays as it is.

    A case is silent where the verb ends well, says nothing, and leaves or prints something else than it does for the
    undamaged folder; harmless where all but the damaged file is the same.
    """
    counts = Counts("fault matrix")
    place = work / "run"
    known = verbs(config, place)
    expected = {}

    def tried(name):
        ended = forked(verb(*known[name]), work)
        return ended, result(place, ended.out)

    for name in [name for name in known if (run / "correlate").exists() or name != "correlate"]:
        found = []
        for _ in range(2):
            copied(run, place)
            ended, made = tried(name)
            assert ended.code == 0, (name, ended.err)
            found.append(made)
        assert found[0][0] == found[1][0], f"{name} prints something else each time"
        expected[name] = (
            found[0][0],
            {path for path in found[0][1] if found[0][1][path] != found[1][1].get(path)},
            found[0][1],
        )
    for name in contents(run, but=MADE_ANEW):
        if only is not None and not only(name):
            continue
        for how in DAMAGES:
            for reader in readers(name):
                copied(run, place)
                if not damaged(place / name, how):
                    continue
                ended, (out, files) = tried(reader)
                verdict = ended.verdict
                if verdict == "done":
                    said, differs, left = expected[reader]
                    wrong = {path for path in left if files.get(path) != left[path]} - differs - {name}
                    verdict = "silent" if out != said or wrong else "harmless"
                counts.add(f"{reader}: {name}: {how}", verdict, ended)
    return counts
