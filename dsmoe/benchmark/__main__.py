"""``python -m dsmoe.benchmark`` is ``./run_deepspeed_benchmark.sh`` without its set-up."""

import sys

from dsmoe.benchmark.cli import main

sys.exit(main())
