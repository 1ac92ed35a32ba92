#!/usr/bin/env bash
# Run the benchmark on NUM_GPUS GPUs (or, without a GPU, as many CPU processes). Sets up what is
# missing first: a virtual environment, the DeepSpeed checkout, the patches. See --help.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$("$here/scripts/setup.sh")
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m dsmoe run "$@"
