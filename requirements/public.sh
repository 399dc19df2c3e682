#!/usr/bin/env bash
# uv as a stranger has it: the public index alone, whatever this machine is told of wheels, indexes and constraints.
#   bash requirements/public.sh pip compile pyproject.toml
set -euo pipefail
kept='^UV_(CACHE_DIR|CONCURRENT_.*|HTTP_.*|LINK_MODE|NATIVE_TLS|SYSTEM_CERTS)$'
for name in $(compgen -e | grep -E '^(PIP|UV)_' | grep -vE "$kept"); do
  unset "$name"
done
exec "$(command -v uv || echo .venv/bin/uv)" --no-config "$@"
