#!/usr/bin/env bash
# Train and search a supernet on the machines of a hostfile (ssh without a password, one shared file system):
#   bash launch/many_nodes.sh HOSTFILE CONFIG [llmnas options]
# HOSTFILE has a line for each machine: `node1 slots=8`. See launch/hostfile.example.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: bash launch/many_nodes.sh HOSTFILE CONFIG [llmnas options]" >&2
  exit 2
fi
hostfile=$1
config=$2
shift 2
if [ ! -r "$hostfile" ]; then
  echo "$hostfile: no such hostfile; write one line a machine: node1 slots=8" >&2
  exit 2
fi

llmnas prepare "$config" --resume "$@"
for verb in train search; do
  deepspeed --no_local_rank --hostfile "$hostfile" --master_port "${PORT:-29500}" ${MASTER:+--master_addr "$MASTER"} \
    --module llmnas.cli "$verb" "$config" --resume "$@"
done
