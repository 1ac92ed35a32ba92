#!/usr/bin/env bash
# Prints the path of a Python that has what the project needs; what it does goes to stderr.
#   scripts/setup.sh          for running      scripts/setup.sh dev     for the tests too
#
# An active environment (venv or conda) that has torch is taken, and gets the small packages that it
# lacks. Otherwise .venv is made here with all of them; if the Python it is made with already has
# torch, that torch is shared. DSMOE_PYTHON names that Python (default: python3).
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
"$base" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 13))' ||
    stop "$base is $("$base" -V 2>&1); expected Python 3.9 to 3.13: name one with DSMOE_PYTHON=/path/to/python"

# The import names of what requirements.txt (and, for dev, requirements-dev.txt) lists.
needed="torch_optimizer git filelock numpy rich matplotlib hjson packaging psutil cpuinfo tqdm setuptools wheel"
[ "$kind" = dev ] && needed="$needed pytest hypothesis pytest_timeout xdist ruff tokenizers tensorboard"
lacks() {
    "$1" - $needed <<'PY'
import importlib.util, sys
sys.exit(all(importlib.util.find_spec(name) for name in sys.argv[1:]))
PY
}
has_torch() { "$1" -c 'import torch' >/dev/null 2>&1; }
install() { # PYTHON [pip options]: everything but torch, or with "torch" as well
    local python=$1 names
    names=$(mktemp)
    cat "$here/requirements.txt" "$requirements" | grep -v '^-r' | sort -u >"$names"
    has_torch "$python" && sed -i '/^torch==/d' "$names"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$names" >&2 ||
        { rm -f "$names"; stop "pip could not install what $(basename "$requirements") lists (its reason is above)"; }
    rm -f "$names"
}

hopper() { # PYTHON: where there is a Hopper GPU, the kernels for it; no reason to stop
    local cuda names failed
    case ${DSMOE_KERNELS:-all} in all | nccl) ;; *) return 0 ;; esac
    command -v nvidia-smi >/dev/null 2>&1 || return 0
    nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -q '^9\.' || return 0
    # for a newer Python, or there already in the releases listed
    "$1" - "$here/requirements-hopper.txt" >/dev/null 2>&1 <<'PY' && return 0
import re, sys
from importlib.metadata import version
lines = re.findall(r"^([\w-]+)==(\S+);", open(sys.argv[1]).read(), re.M)
sys.exit(sys.version_info >= (3, 10) and any(version(name) != release for name, release in lines))
PY
    # pip is not asked at every start of a machine without network, but again the next day
    failed=${XDG_CACHE_HOME:-$HOME/.cache}/dsmoe/no-hopper-$(command -v "$1" | cksum | cut -d' ' -f1)
    if cmp -s "$failed" "$here/requirements-hopper.txt" && [ -n "$(find "$failed" -mtime -1)" ]; then
        say "note: no packages of requirements-hopper.txt, which pip could not install today; to try again now: rm $failed"
        return 0
    fi
    say "== packages of requirements-hopper.txt (kernels for this GPU; nvidia-cutlass-dsl has a licence of NVIDIA's own)"
    cuda=$("$1" -c 'import torch; print((torch.version.cuda or "").split(".")[0])')
    names=$(mktemp)
    sed "s/^nvidia-cutlass-dsl==/nvidia-cutlass-dsl${cuda:+[cu$cuda]}==/; s/\[cu12\]//" \
        "$here/requirements-hopper.txt" >"$names"
    if ! "$1" -m pip install --quiet --disable-pip-version-check --retries 1 -r "$names" >&2; then
        say "note: pip could not install them (its reason is above); without them an iteration takes about 6 % longer; DSMOE_KERNELS=cublas leaves them out"
        { mkdir -p "$(dirname "$failed")" && cp "$here/requirements-hopper.txt" "$failed"; } 2>/dev/null || true
    fi
    rm -f "$names"
}

if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}${DSMOE_PYTHON:-}" ] && has_torch "$base"; then
    if lacks "$base"; then
        say "== into the active environment, which has torch: the rest of $(basename "$requirements")"
        install "$base"
    fi
    hopper "$base"
    command -v "$base"
    exit 0
fi

venv="$here/.venv"
stamp="$venv/.dsmoe-$kind"
if ! cmp -s "$stamp" <(cat "$here/requirements.txt" "$requirements"); then
    [ -w "$here" ] || stop "$here cannot be written, and .venv belongs there; make it writable, or activate an environment that has torch"
    # Asked of pip, because a kill can leave a Python without it.
    if ! "$venv/bin/python" -c 'import pip' >/dev/null 2>&1; then
        rm -rf "$venv"
        shared=
        has_torch "$base" && shared=--system-site-packages
        say "== virtual environment $venv${shared:+, sharing the torch of $(command -v "$base")}"
        "$base" -m venv $shared "$venv" >&2 || stop "$base cannot make a virtual environment; install its venv package (Debian: python3-venv)"
    fi
    say "== packages of $(basename "$requirements") (torch is the large one; this happens once)"
    install "$venv/bin/python"
    cat "$here/requirements.txt" "$requirements" >"$stamp"
fi
hopper "$venv/bin/python"
echo "$venv/bin/python"
