#!/usr/bin/env bash
#SBATCH --job-name=llmnas
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
#
#   sbatch launch/slurm.sh CONFIG [llmnas options]
#
# Five minutes before the limit, or when the job is preempted, every process gets SIGTERM: it finishes its
# step (in a search its candidate), saves, and exits with 75; before the first step there is nothing to save, and it
# exits with 143. This script then puts the job back into the queue, where it goes on (prepare begins anew).
# srun starts the processes itself (no ssh, no second launcher), so signals and statuses arrive unchanged.
set -uo pipefail

if [ $# -lt 1 ]; then
  echo "usage: sbatch launch/slurm.sh CONFIG [llmnas options]" >&2
  exit 2
fi
config=$1
shift

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
export MASTER_PORT=${PORT:-$((20000 + SLURM_JOB_ID % 20000))}
# SLURM signals the job's steps; this shell waits for them (a handler is not inherited, ignoring would be)
trap : TERM

requeue() {
  echo "stopped by the system: back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}

srun --nodes=1 --ntasks=1 llmnas prepare "$config" --resume "$@"
status=$?
if [ "$status" -eq 143 ]; then
  requeue
elif [ "$status" -ne 0 ]; then
  exit "$status"
fi

# A process that was told to stop says so in this file and ends with 0: at any other status srun would kill those that
# are still writing. One that fails without having been told keeps its status, and srun ends the others.
export STOPPED=$PWD/slurm-$SLURM_JOB_ID.stopped
# shellcheck disable=SC2016  # expanded by each process, not here
everywhere='
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  export LOCAL_WORLD_SIZE=${SLURM_NTASKS_PER_NODE:-1}
  told=
  trap "told=yes" TERM
  verb=$1
  shift
  llmnas "$verb" "$@" --resume
  status=$?
  if [ "$told" ]; then
    echo "rank $RANK: $status" >> "$STOPPED"
    exit 0
  fi
  exit "$status"
'
for verb in train search; do
  rm -f "$STOPPED"
  srun --kill-on-bad-exit=1 bash -c "$everywhere" llmnas "$verb" "$config" "$@"
  status=$?
  if [ "$status" -ne 0 ]; then
    exit "$status"
  elif [ -e "$STOPPED" ]; then
    requeue
  fi
done
rm -f "$STOPPED"
