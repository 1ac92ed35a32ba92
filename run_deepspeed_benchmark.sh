#!/usr/bin/env bash
# Run the benchmark on NUM_GPUS GPUs (or, without a GPU, as many CPU processes). Sets up what is
# missing first: a virtual environment, the DeepSpeed checkout, the patches. See --help.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
python=${DSMOE_PYTHON:-python3}
for word in "$@"; do
    case $word in # the help needs no package, so install none
    -h | --help) exec "$python" -m dsmoe run --help ;;
    esac
done
check='from dsmoe.common import startup
startup.begin()
import sys, dsmoe.cli as c
sys.exit(c.check_arguments(["run"] + sys.argv[1:]))'
# Nor does a mistake in the arguments. Without a fit Python, setup.sh says what to do.
if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
    "$python" -c "$check" "$@" || exit
fi
trap 'echo "error: interrupted by Ctrl-C; repeat the command to go on" >&2; exit 130' INT
python=$("$here/scripts/setup.sh")
exec "$python" -m dsmoe run "$@"
