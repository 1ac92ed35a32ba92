"""With a host file, the user's CUDA_VISIBLE_DEVICES is overwritten without a message."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())
script = folder / "train.py"
script.write_text("import os\nos.write(1, b'sees %s\\n' % os.environb[b'CUDA_VISIBLE_DEVICES'])\n")
(folder / "hostfile").write_text("localhost slots=2\n")
command = [sys.executable, "-c", "from deepspeed.launcher.runner import main; main()"]
command += [f"--hostfile={folder / 'hostfile'}", "--no_ssh_check", "--master_addr=127.0.0.1"]
run = subprocess.run(
    [*command, "--master_port=29526", str(script)],
    env={**os.environ, "CUDA_VISIBLE_DEVICES": "5,6"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
)
sees = [line for line in run.stdout.splitlines() if line.startswith("sees")]
assert len(sees) == 2, run.stdout
print("started with CUDA_VISIBLE_DEVICES=5,6 and two slots; the two scripts:", *sees, sep="\n  ")
print("right: 5,6 in both (without a host file the runner keeps them)")
sys.exit(1 if "sees 0,1" in sees else 0)
