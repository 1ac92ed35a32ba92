#!/usr/bin/env bash
# Runs the tests of the report's page in Chromium: its width on a telephone, and what axe-core finds.
# axe-core comes from npm, at the release of tests/support/axe, into build/axe. What is missing is an
# error here, since nothing else is tested; pytest alone skips these tests with the reason.
#   scripts/test-report.sh [PYTHON [OPTIONS OF PYTEST]]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${1:-$(scripts/setup.sh dev)}
[ "$#" = 0 ] || shift
stop() { printf 'error: %s\n' "$*" >&2; exit 8; }

PYTHONPATH=tests "$python" -c 'import sys; from support import browser; sys.exit(not browser.found())' ||
    stop "found no Chromium or Chrome; install one (Debian: chromium), or run scripts/install-test-tools.sh as root"
axe=build/axe
if ! cmp -s tests/support/axe/package-lock.json "$axe/installed"; then
    command -v npm >/dev/null 2>&1 ||
        stop "found no npm, which fetches axe-core; install it (Debian: npm), or run scripts/install-test-tools.sh as root"
    rm -rf "$axe"
    mkdir -p "$axe"
    cp tests/support/axe/*.json "$axe"
    npm ci --prefix "$axe" --ignore-scripts --no-audit --no-fund >&2 ||
        stop "npm could not fetch axe-core (its reason is above); repeat this command to go on"
    cp tests/support/axe/package-lock.json "$axe/installed"
fi
DSMOE_AXE=$PWD/$axe/node_modules/axe-core/axe.min.js exec "$python" -m pytest -q "$@" \
    tests/system/benchmark/test_report_in_browser.py
