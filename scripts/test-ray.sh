#!/usr/bin/env bash
# Runs the tests of the Ray source and of the Ray launcher with a real Ray, in build/ray-venv: Ray is
# large and brings many packages, which shall not come into the environment that trains. That
# environment's are shared. Where pip cannot install Ray, it says so and ends well.
#   scripts/test-ray.sh [PYTHON [OPTIONS OF PYTEST]]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${1:-$(scripts/setup.sh dev)}
[ "$#" = 0 ] || shift
venv=build/ray-venv
say() { printf '%s\n' "$*" >&2; }

if ! "$venv/bin/python" -c 'import ray, pytest' >/dev/null 2>&1; then
    say "== virtual environment $venv with Ray (this happens once)"
    rm -rf "$venv"
    "$python" -m venv "$venv" >&2
    own=$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
    "$python" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' \
        >"$own/shared.pth"
    if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check ray >&2; then
        rm -rf "$venv"
        say "pip could not install ray; the tests with a real Ray are not run"
        exit 0
    fi
fi
say "== Ray $("$venv/bin/python" -c 'import ray; print(ray.__version__)')"
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider "$@" \
    tests/unit/hosts/test_hostfiles_ray.py tests/system/ray
