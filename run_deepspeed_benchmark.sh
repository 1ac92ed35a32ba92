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
# Nor does a mistake in the arguments. Without a fit Python, setup.sh says what to do.
if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
    "$python" -c 'import sys, dsmoe.cli as c; sys.exit(c.check_arguments(["run"] + sys.argv[1:]))' "$@" || exit
fi
python=$("$here/scripts/setup.sh")
exec "$python" -m dsmoe run "$@"
