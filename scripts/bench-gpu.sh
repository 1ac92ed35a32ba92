#!/usr/bin/env bash
# Times this project's GPU cases on the GPUs that are here, one after another, and prints the table
# of docs/lab/performance.md, then where a step goes. Results are kept in the folder named (default:
# results/bench-gpu).
#   scripts/bench-gpu.sh PYTHON [FOLDER]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$1
folder=${2:-$here/results/bench-gpu}
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" = 0 ]; then
    echo "error: no GPU is here; expected one or more: make bench compares the paths on a CPU" >&2
    exit 8
fi
failed=0
bench() { # one case; the next one comes whatever it gives, unless it was interrupted
    local code=0
    "$python" -m dsmoe run "$@" --output "$folder" || code=$?
    [ "$code" -lt 128 ] || exit "$code"
    [ "$code" = 0 ] || failed=1
}
bench 1 --suite artifact
bench 1 --suite tuned
bench 1 --suite tuned # once more, with the caches filled: how long the start takes then
# Small micro-batches, and eight times the experts: time per token should hardly depend on either.
bench 1 --suite tuned --micro-batch-size 8
bench 1 --suite tuned --num-experts 64
[ "$gpus" -lt 2 ] || bench 2 --suite tuned
"$python" -m dsmoe bench --table "$folder" || failed=1
"$python" -m dsmoe profile 1 --suite tuned || failed=1
[ "$failed" = 0 ] || { echo "error: a case failed; its reason is above" >&2; exit 1; }
