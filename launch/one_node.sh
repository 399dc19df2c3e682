#!/usr/bin/env bash
# Train a supernet on all GPUs of this machine, and search it on them:
#   bash launch/one_node.sh CONFIG [llmnas options]
# GPUS=N takes N of them; PORT is where the processes meet. Start it again after any fault: it goes on.
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: bash launch/one_node.sh CONFIG [llmnas options]" >&2
  exit 2
fi
config=$1
shift
count=()
if [ -n "${GPUS:-}" ]; then
  count=(--num_gpus "$GPUS")
fi

llmnas prepare "$config" --resume "$@"
for verb in train search; do
  deepspeed --no_local_rank "${count[@]}" --master_port "${PORT:-29500}" \
    --module llmnas.cli "$verb" "$config" --resume "$@"
done
