"""The scripts of launch/: shellcheck passes, bad input is one line, and each trains two processes at tiny size."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmnas.archive import read_archive

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
BIN = Path(sys.executable).parent
TINY = ["--set", "train.steps=4", "--set", "train.batch_size=4", "--set", "train.seq_len=32", "--set",
        "train.eval_sequences=2", "--set", "space.base.vocab_size=320", "--set", "space.base.max_seq=32",
        "--set", "data.source=tiny.jsonl", "--set", "data.validation=0.3", "--set", "budget.max_params=null",
        "--set", "search.evaluations=4", "--set", "search.windows=4", "--set", "search.sample=3",
        "--set", 'tracking.wandb="off"', "--run-dir", "run"]  # fmt: skip

# what SLURM does for launch/slurm.sh, without a cluster: tasks with their variables, signals to all processes of a
# task, the highest status; with --kill-on-bad-exit the first task that fails is the end of the others
SRUN = r"""#!/usr/bin/env bash
tasks=$SLURM_NTASKS strict=0
while [[ $1 == --* ]]; do
  [[ $1 == --ntasks=* ]] && tasks=${1#--ntasks=}
  [[ $1 == --kill-on-bad-exit=1 ]] && strict=1
  shift
done
pids=()
for ((i = 0; i < tasks; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=$tasks setsid "$@" &
  pids+=($!)
done
signal() {
  for pid in "${pids[@]}"; do kill "-$1" -- "-$pid"; done
}
trap 'signal TERM' TERM
worst=0
while ((${#pids[@]})); do
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2>/dev/null && continue
    wait "${pids[i]}"
    status=$?
    unset "pids[i]"
    ((status > worst)) && worst=$status
    if ((status && strict)); then
      signal TERM
      sleep 0.2
      signal KILL
    fi
  done
  sleep 0.05
done
exit "$worst"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> scontrol.log; fi
"""

# what carries DeepSpeed's commands to the machines of a hostfile, as it calls them; all machines are this one
SSH = r"""#!/usr/bin/env bash
while [[ $1 == -* ]]; do
  [[ $1 == -[op] ]] && shift
  shift
done
echo "$1" >> ssh.log
shift
exec bash -c "$*"
"""
PDSH = r"""#!/usr/bin/env bash
while [[ $1 == -* ]]; do
  [[ $1 == -w ]] && IFS=, read -ra hosts <<< "$2"
  [[ $1 == -[fw] ]] && shift
  shift
done
command=$*
pids=()
for i in "${!hosts[@]}"; do
  ssh "${hosts[i]}" "${command//%n/$i}" &
  pids+=($!)
done
worst=0
for pid in "${pids[@]}"; do
  wait "$pid" || worst=$?
done
exit "$worst"
"""


@pytest.fixture
def folder(tmp_path):
    """A place to run in: corpus, configs, `llmnas`, and on the path a SLURM and an ssh that know this machine only."""
    words = [f"word{i} is the {i * 7 % 13}th of {i} words and not the last." for i in range(400)]
    documents = [json.dumps({"text": " ".join(words[i : i + 40])}) for i in range(0, 400, 40)]
    (tmp_path / "tiny.jsonl").write_text("\n".join(documents))
    for name in ("search_configs", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("llmnas", f'#!/usr/bin/env bash\nexec "{sys.executable}" -m llmnas.cli "$@"\n'),
                       ("srun", SRUN), ("scontrol", SCONTROL), ("ssh", SSH), ("pdsh", PDSH)):  # fmt: skip
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    return tmp_path


def environment(folder, **more):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        **os.environ, "PATH": f"{folder / 'bin'}:{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PORT": str(port), **more,
    }  # fmt: skip


def run(folder, *command, **more):
    return subprocess.run(
        ["bash", *command], cwd=folder, env=environment(folder, **more), capture_output=True, text=True, check=False
    )


def steps_of(folder):
    return sorted(path.name for path in (folder / "run" / "supernet" / "checkpoints").iterdir())


def test_there_is_a_script_for_one_node_many_nodes_and_slurm():
    assert [path.name for path in SCRIPTS] == ["many_nodes.sh", "one_node.sh", "slurm.sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    found = subprocess.run([BIN / "shellcheck", script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_without_arguments_a_script_says_how_it_is_used(folder, script):
    found = run(folder, str(script))
    assert found.returncode == 2
    assert found.stderr.startswith("usage: ")


def test_a_missing_hostfile_is_one_line(folder):
    found = run(folder, "launch/many_nodes.sh", "nowhere", "search_configs/quickstart.yaml")
    assert found.returncode == 2
    assert found.stderr == "nowhere: no such hostfile; write one line a machine: node1 slots=8\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "hosts: no machine in it"),
        ("# none\n\n", "hosts: no machine in it"),
        ("# two\nnode1 slots=8\nnode2\nnode3\n", "hosts:3: node2: not a machine"),
        ("node1 slots=all\n", "hosts:1: node1 slots=all: not a machine"),
        ("node1 slots=8\nnode1 slots=8\n", "hosts: node1 is there twice"),
    ],
)
def test_a_hostfile_that_names_no_machines_is_one_line_before_any_work(folder, text, complaint):
    (folder / "hosts").write_text(text)
    found = run(folder, "launch/many_nodes.sh", "hosts", "search_configs/quickstart.yaml")
    assert found.returncode == 2
    assert found.stderr == f"{complaint}; write one line a machine: node1 slots=8\n"


@pytest.mark.full
def test_one_node_at_stage_3(folder):
    found = run(folder, "launch/one_node.sh", "search_configs/quickstart.yaml", *TINY, "--set", "train.zero_stage=3",
                "--set", "train.deepspeed=launch/ds_zero3.json", GPUS="2")  # fmt: skip
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    assert (folder / "run" / "pareto.json").exists()
    manifest = json.loads((folder / "run/supernet/checkpoints/step-00000004/files.json").read_text())
    assert (manifest["processes"], manifest["zero_stage"]) == (2, 3)


@pytest.mark.full
def test_many_nodes_of_a_hostfile(folder):
    """Two machines of one process each, started by DeepSpeed's own launcher; only the wire is not real."""
    (folder / "hosts").write_text("node1 slots=1\nnode2 slots=1\n")
    found = run(folder, "launch/many_nodes.sh", "hosts", "search_configs/quickstart.yaml", *TINY, MASTER="127.0.0.1")
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    assert (folder / "run" / "pareto.json").exists()
    manifest = json.loads((folder / "run/supernet/checkpoints/step-00000004/files.json").read_text())
    assert manifest["processes"] == 2
    for_each_verb = [host for verb in ("train", "search") for host in ("node1", "node1", "node2")]
    assert sorted((folder / "ssh.log").read_text().split()) == sorted(for_each_verb)  # reachable?, then one on each


def slurm(folder, *sets):
    return subprocess.Popen(
        ["bash", "launch/slurm.sh", "search_configs/quickstart.yaml", *TINY, *sets], cwd=folder,
        env=environment(folder, SLURM_JOB_NODELIST="here", SLURM_JOB_ID="42", SLURM_NTASKS="2",
                        SLURM_NTASKS_PER_NODE="2", SLURM_CPUS_PER_TASK="1", PATH_OF_TEST=str(folder)),
        stdout=(folder / "out.txt").open("w"), stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def children(pid, name):
    """Processes below `pid` whose command line holds `name`."""
    import psutil

    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):  # it ended between the two questions
            if any(name in part for part in process.cmdline()):
                found.append(process)
    return found


def preempt(folder, job, verb, ready):
    """SIGTERM to the step of a verb once it is ready, as SLURM sends it; the job is queued again, nothing searched."""
    while job.poll() is None and not ready():
        time.sleep(0.2)
    assert job.poll() is None, (folder / "out.txt").read_text()[-3000:]
    (step,) = [p for p in children(job.pid, "bin/srun") if verb in p.cmdline()]
    step.send_signal(signal.SIGTERM)
    assert job.wait() == 0
    assert (folder / "scontrol.log").read_text() == "requeue 42\n"
    assert "start again with --resume" in (folder / "out.txt").read_text()
    assert not (folder / "run" / "pareto.json").exists()


def test_slurm_preempts_saves_and_puts_the_job_back_then_the_next_start_finishes(folder):
    """SIGTERM to the step, as SLURM sends it: both processes save at one step and the job is queued again."""
    job = slurm(folder, "--set", "train.steps=100000", "--set", "train.save_every=100000")
    metrics = folder / "run" / "metrics.jsonl"
    preempt(folder, job, "train", lambda: metrics.exists() and '"train_loss"' in metrics.read_text())
    (saved,) = steps_of(folder)
    manifest = json.loads((folder / "run/supernet/checkpoints" / saved / "files.json").read_text())
    assert manifest["processes"] == 2
    assert manifest["step"] >= 10


@pytest.mark.full
def test_slurm_trains_and_searches_and_a_search_that_was_preempted_goes_on(folder):
    job = slurm(folder, "--set", "search.evaluations=100000")
    archive, journals = folder / "run" / "evaluations.sqlite", folder / "run" / "search"
    preempt(folder, job, "search", lambda: sum(len(f.read_text().splitlines()) for f in journals.glob("*.jsonl")) >= 14)
    before = read_archive(archive)[2]
    job = slurm(folder, "--set", f"search.evaluations={len(before) + 8}")
    assert job.wait() == 0, (folder / "out.txt").read_text()[-3000:]
    assert (folder / "run" / "pareto.json").exists()
    after = read_archive(archive)[2]
    assert after[: len(before)] == before
    assert len(after) == len(before) + 8
    assert (folder / "scontrol.log").read_text() == "requeue 42\n"


@pytest.mark.parametrize(
    ("prepare", "ranks"),
    [
        (0, ("told; sleep 1; exit 75", "told; exit 75")),  # the first to end must not kill one that is still writing
        (0, ("told; sleep 0.2; exit 1", "told; exit 143")),  # before its first step; the other one lost its neighbour
        (0, ("told; sleep 0.2; exit 0", "told; exit 0")),  # after its last step: no time for the next verb
        (143, ("exit 3", "exit 3")),
    ],
)
@pytest.mark.parametrize("verb", ["train", "search"])
def test_slurm_puts_the_job_back_whenever_the_system_stops_a_process(folder, prepare, ranks, verb):
    job, output = faked(folder, prepare, ranks, verb)
    assert job == 0, output
    assert (folder / "scontrol.log").read_text() == "requeue 42\n"
    assert sorted((folder / "ended").read_text().split()) == ([] if prepare else ["0", "1"])
    # the next start is a new one: nothing is left that would put it back again
    assert faked(folder, 0, ("exit 0", "exit 0"), verb)[0] == 0
    assert (folder / "scontrol.log").read_text() == "requeue 42\n"


def test_slurm_script_stops_with_the_status_of_a_failed_run_and_ends_the_other_ranks(folder):
    assert faked(folder, 0, ("sleep 10000", "exit 3"), "train")[0] == 3
    assert faked(folder, 2, ("exit 0", "exit 0"), "train")[0] == 2
    assert not (folder / "scontrol.log").exists()


def faked(folder, prepare, ranks, verb):
    """Status and output of the script where `llmnas prepare` ends with a status, and the ranks of a verb do this."""
    (folder / "ended").write_text("")
    (folder / "bin" / "llmnas").write_text(
        f"""#!/usr/bin/env bash
[ "$1" = prepare ] && exit {prepare}
told() {{ kill -TERM "$PPID"; }}
trap 'echo "$RANK" >> ended' EXIT
[ "$1" = {verb} ] || exit 0
if [ "$RANK" = 0 ]; then {ranks[0]}; else {ranks[1]}; fi
"""
    )
    job = slurm(folder)
    status = job.wait()
    if verb == "search":  # the training before it
        ended = (folder / "ended").read_text().split()
        (folder / "ended").write_text(" ".join(ended[2:]))
    return status, (folder / "out.txt").read_text()
