#!/usr/bin/env bash
# Prints the path of a Python that has what the project needs; what it does goes to stderr.
#   scripts/setup.sh          for running      scripts/setup.sh dev     for the tests too
# The active environment is taken, as it is, if it already has torch. Otherwise .venv is made here
# with requirements.txt. DSMOE_PYTHON names the Python to make it with (default: python3).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
kind=${1:-run}
requirements="$here/requirements.txt"
[ "$kind" = dev ] && requirements="$here/requirements-dev.txt"
say() { printf '%s\n' "$*" >&2; }
stop() { say "error: $*"; exit 8; }

base=${DSMOE_PYTHON:-python3}
command -v "$base" >/dev/null 2>&1 || stop "no $base found; install Python 3.9 to 3.13, or name one with DSMOE_PYTHON=/path/to/python"
command -v git >/dev/null 2>&1 || stop "no git found; install git (2.30 or newer)"

# The packages' import names; kept beside requirements.txt on purpose short.
needed="torch torch_optimizer git filelock numpy rich hjson packaging psutil cpuinfo tqdm setuptools wheel"
[ "$kind" = dev ] && needed="$needed pytest hypothesis pytest_timeout"
missing() {
    "$1" - $needed <<'PY'
import importlib.util, sys
print(" ".join(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))
PY
}

if [ ! -x "$here/.venv/bin/python" ] && "$base" -c 'import torch' >/dev/null 2>&1; then
    lacking=$(missing "$base")
    [ -z "$lacking" ] || stop "the active Python ($(command -v "$base")) has torch but lacks: $lacking; expected all of $(basename "$requirements"): run $base -m pip install -r $requirements"
    command -v "$base"
    exit 0
fi

venv="$here/.venv"
stamp="$venv/.dsmoe-$kind"
if ! cmp -s "$stamp" <(cat "$here/requirements.txt" "$requirements"); then
    "$base" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 13))' ||
        stop "$base is $("$base" -V 2>&1); expected Python 3.9 to 3.13: name one with DSMOE_PYTHON=/path/to/python"
    if [ ! -x "$venv/bin/python" ]; then
        say "== virtual environment $venv"
        rm -rf "$venv"
        "$base" -m venv "$venv" >&2 || stop "$base cannot make a virtual environment; install its venv package (Debian: python3-venv)"
    fi
    say "== packages of $(basename "$requirements") (torch is the large one; this happens once)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2 ||
        stop "pip could not install $requirements (its reason is above)"
    cat "$here/requirements.txt" "$requirements" >"$stamp"
fi
echo "$venv/bin/python"
