#!/usr/bin/env bash
# Times this project's GPU cases on the GPUs that are here, one after another, and prints the table
# of docs/performance.md, then where a step goes. Results are kept in the folder named (default:
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
"$python" -m dsmoe.benchmark 1 --suite artifact --output "$folder"
"$python" -m dsmoe.benchmark 1 --suite tuned --output "$folder"
# Once more, with the compiler's cache filled: how long the start takes then.
"$python" -m dsmoe.benchmark 1 --suite tuned --output "$folder"
# Small micro-batches, and eight times the experts: time per token should hardly depend on either.
"$python" -m dsmoe.benchmark 1 --suite tuned --micro-batch-size 8 --output "$folder"
"$python" -m dsmoe.benchmark 1 --suite tuned --num-experts 64 --output "$folder"
if [ "$gpus" -ge 2 ]; then
    "$python" -m dsmoe.benchmark 2 --suite tuned --output "$folder"
fi
"$python" -m dsmoe.benchmark.speed --table "$folder"
"$python" -m dsmoe.benchmark.profile_step 1 --suite tuned
