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
refuse() {
  echo "$1; write one line a machine: node1 slots=8" >&2
  exit 2
}
if [ ! -f "$hostfile" ] || [ ! -r "$hostfile" ]; then
  refuse "$hostfile: no such hostfile"
fi
# deepspeed would find these out after the data is prepared, with a traceback
machine='^[[:space:]]*[^#[:space:]]+[[:space:]]+slots=[0-9]+([[:space:]].*)?$'
wrong=$(grep -nvE "$machine|^[[:space:]]*(#.*)?$" "$hostfile" | head -n 1 || true)
machines=$(grep -oE "$machine" "$hostfile" | awk '{print $1}' || true)
twice=$(sort <<< "$machines" | uniq -d | head -n 1)
if [ -n "$wrong" ]; then
  refuse "$hostfile:${wrong%%:*}: ${wrong#*:}: not a machine"
elif [ -z "$machines" ]; then
  refuse "$hostfile: no machine in it"
elif [ -n "$twice" ]; then
  refuse "$hostfile: $twice is there twice"
fi

llmnas prepare "$config" --resume "$@"
for verb in train search; do
  deepspeed --no_local_rank --hostfile "$hostfile" --master_port "${PORT:-29500}" ${MASTER:+--master_addr "$MASTER"} \
    --module llmnas.cli "$verb" "$config" --resume "$@"
done
