#!/usr/bin/env bash
# Prints the path of a Python that has what the project needs. All other output goes to stderr.
#   scripts/setup.sh          what a run needs
#   scripts/setup.sh dev      what the tests need, too
#   scripts/setup.sh docs     what `make docs` needs, too
#
# If an environment (venv or conda) is active and has torch, this installs into it the packages that
# it lacks. Otherwise it makes .venv in the project's folder and installs everything there; if the
# Python that makes it has torch, .venv shares that torch. DSMOE_PYTHON names the Python to use
# (default: python3). pyproject.toml lists the packages. Two of these at once: one waits.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extras=(run)
kind=${1:-run}
say() { printf '%s\n' "$*" >&2; }
stop() { say "error: $*"; exit 8; }
case $kind in
run) ;;
dev | docs) extras+=("$kind") ;;
-h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
*) say "error: scripts/setup.sh: found $kind; expected nothing, dev or docs"; exit 2 ;;
esac

base=${DSMOE_PYTHON:-python3}
command -v "$base" >/dev/null 2>&1 || stop "no $base found; install Python 3.9 to 3.13, or name one with DSMOE_PYTHON=/path/to/python"
command -v git >/dev/null 2>&1 || stop "no git found; install git (2.30 or newer)"
"$base" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 13))' ||
    stop "$base is $("$base" -V 2>&1); expected Python 3.9 to 3.13: name one with DSMOE_PYTHON=/path/to/python"

lacks() { # PYTHON EXTRA...: a line for each package that this Python needs and has not
    local python=$1
    shift
    "$python" - "$here" "$@" <<'PY'
import sys
sys.path.insert(0, sys.argv[1])
from dsmoe.common.packages.dependencies import missing, requirements
for item in dict.fromkeys(missing(requirements() + requirements(*sys.argv[2:]))):
    print(item)
PY
}
has_torch() { # PYTHON: whether torch is installed there; importing it would take seconds
    "$1" -c 'import sys, importlib.util as u; s = u.find_spec("torch"); sys.exit(not (s and s.origin))' 2>/dev/null
}
lock() { # holds $lock_file until this script ends, also by a kill; another one of these waits here
    [ -z "${locked:-}" ] || return 0
    { mkdir -p "$(dirname "$lock_file")" && : >>"$lock_file"; } 2>/dev/null ||
        stop "$lock_file cannot be written; make its folder writable"
    exec 9>>"$lock_file"
    locked=yes
    "$base" - "$lock_file" <<'PY'
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print(f"== another set-up is at work (it holds {sys.argv[1]}); waiting", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
PY
}
install() { # PYTHON PACKAGE...
    local python=$1
    shift
    "$python" -m pip install --disable-pip-version-check "$@" >&2
}
complete() { # PYTHON: install what it lacks
    local python=$1 list packages
    local wanted=("${extras[@]}")
    has_torch "$python" || wanted=(torch "${extras[@]}") # first: an older pip fetches what is first named
    list=$(lacks "$python" "${wanted[@]}")
    [ -n "$list" ] || return 0
    mapfile -t packages <<<"$list"
    say "== installing into $python: ${packages[*]}"
    install "$python" "${packages[@]}" ||
        stop "pip could not install what pyproject.toml lists (its reason is above); repeat this command to go on"
}

hopper() { # PYTHON: on a machine with a Hopper GPU, the kernels for it; a failure is a note
    local python=$1 list packages failed cuda
    case ${DSMOE_KERNELS:-all} in all | nccl) ;; *) return 0 ;; esac
    command -v nvidia-smi >/dev/null 2>&1 || return 0
    nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -q '^9\.' || return 0
    list=$(lacks "$python" hopper)
    [ -n "$list" ] || return 0
    lock
    list=$(lacks "$python" hopper) # the one that this waited for may have installed them
    [ -n "$list" ] || return 0
    # A machine without network shall not ask pip at every start, but again the next day.
    failed=${XDG_CACHE_HOME:-$HOME/.cache}/dsmoe/no-hopper-$(command -v "$python" | cksum | cut -d' ' -f1)
    if [ "$(cat "$failed" 2>/dev/null)" = "$list" ] && [ -n "$(find "$failed" -mtime -1)" ]; then
        say "note: without the kernels for this GPU, which pip could not install today; to try again now: rm $failed"
        return 0
    fi
    cuda=$("$python" -c 'import torch; print((torch.version.cuda or "").split(".")[0])')
    mapfile -t packages <<<"$list"
    [ "$cuda" != 13 ] || packages=("${packages[@]/#nvidia-cutlass-dsl==/nvidia-cutlass-dsl[cu13]==}")
    say "== kernels for this GPU: ${packages[*]} (nvidia-cutlass-dsl has a licence of NVIDIA's own)"
    if ! install "$python" --retries 1 "${packages[@]}"; then
        say "note: pip could not install them (its reason is above); without them an iteration takes about 6 % longer; DSMOE_KERNELS=cublas does not ask for them"
        { mkdir -p "$(dirname "$failed")" && printf '%s\n' "$list" >"$failed"; } 2>/dev/null || true
    fi
}

if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}${DSMOE_PYTHON:-}" ] && has_torch "$base"; then
    python=$(command -v "$base")
    lock_file="${XDG_CACHE_HOME:-$HOME/.cache}/dsmoe/setup.lock"
    if [ -n "$(lacks "$python" "${extras[@]}")" ]; then
        lock
        complete "$python"
    fi
    hopper "$python"
    echo "$python"
    exit 0
fi

venv="$here/.venv"
python="$venv/bin/python"
stamp="$venv/.dsmoe-$kind"
list="$here/pyproject.toml"
lock_file="$here/.venv.lock"
if ! cmp -s "$stamp" "$list"; then
    [ -w "$here" ] || stop "$here cannot be written, and .venv belongs there; make it writable, or activate an environment that has torch"
    lock
    if ! cmp -s "$stamp" "$list"; then # another one may have finished it meanwhile
        started="$venv/.dsmoe-started"
        [ ! -e "$started" ] || say "== $venv is half made, because its set-up was stopped; going on with it"
        # Ask pip, because a kill can leave a Python without it.
        if ! "$python" -c 'import pip' >/dev/null 2>&1; then
            rm -rf "$venv"
            shared=
            has_torch "$base" && shared=--system-site-packages
            say "== making the virtual environment $venv${shared:+, which shares the torch of $(command -v "$base")}"
            mkdir "$venv" && : >"$started"
            "$base" -m venv $shared "$venv" >&2 || stop "$base cannot make a virtual environment; install its venv package (Debian: python3-venv)"
        fi
        : >"$started"
        has_torch "$python" || say "== torch is the large package; this happens once"
        complete "$python"
        cp "$list" "$stamp"
        rm "$started"
    fi
fi
hopper "$python"
echo "$python"
