#!/usr/bin/env bash
# uv as a stranger has it: the public index alone, whatever this machine is told of wheels, indexes and constraints.
#   bash requirements/public.sh pip compile pyproject.toml
set -euo pipefail
for name in $(compgen -e | grep -E '^(PIP|UV)_'); do
  unset "$name"
done
exec "$(command -v uv || echo .venv/bin/uv)" --no-config "$@"
