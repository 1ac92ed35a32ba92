"""Training processes continue after their launcher was killed (Linux)."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

folder = Path(tempfile.mkdtemp())
script, file = folder / "train.py", folder / "pid"
script.write_text(
    f"import os, time\nopen('{file}.new', 'w').write(str(os.getpid()))\n"
    f"os.rename('{file}.new', '{file}')\ntime.sleep(120)\n"
)
(folder / "hostfile").write_text("localhost slots=1\n")
command = [sys.executable, "-c", "from deepspeed.launcher.runner import main; main()"]
command += [f"--hostfile={folder / 'hostfile'}", "--no_ssh_check", "--master_addr=127.0.0.1"]
runner = subprocess.Popen([*command, "--master_port=29525", str(script)])
while not file.exists():
    assert runner.poll() is None, "the launcher ended before the script began"
    time.sleep(0.2)
child = int(file.read_text())


def stat(pid):
    """State and parent of a process, from /proc."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]


os.kill(int(stat(child)[1]), 9)  # deepspeed.launcher.launch
time.sleep(15)
lives = Path(f"/proc/{child}").exists() and stat(child)[0] != "Z"
print("15 s after its launcher was killed the process", "still runs" if lives else "has ended")
print("right: it has ended, and its GPU is free")
if lives:
    os.kill(child, 9)
sys.exit(1 if lives else 0)
