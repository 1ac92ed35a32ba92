#!/usr/bin/env bash
# Run the benchmark on NUM_GPUS GPUs (or, without a GPU, as many CPU processes). Sets up what is
# missing first: a virtual environment, the DeepSpeed checkout, the patches. See --help.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
for word in "$@"; do
    case $word in # the help needs no package, so install none
    -h | --help) exec "${DSMOE_PYTHON:-python3}" -m dsmoe run --help ;;
    esac
done
python=$("$here/scripts/setup.sh")
exec "$python" -m dsmoe run "$@"
