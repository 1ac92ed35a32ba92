"""Defect 25: training processes whose launcher is gone."""

NUMBER = 25
TITLE = "Processes end when their launcher is killed"


def observe(tools, phase):
    import base64
    import json
    import os
    import socket
    import subprocess
    import sys
    import time
    from pathlib import Path

    script, pid = Path(tools.folder, "script.py"), Path(tools.folder, "pid")
    script.write_text(
        "import os, sys, time\n"
        f"open({str(pid)!r} + '.new', 'w').write(str(os.getpid()))\n"
        f"os.rename({str(pid)!r} + '.new', {str(pid)!r})\n"
        "time.sleep(120)\n"
    )
    world = base64.urlsafe_b64encode(json.dumps({"localhost": [0]}).encode()).decode()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={world}"]
    command += ["--node_rank=0", "--master_addr=127.0.0.1", f"--master_port={port}", str(script)]
    launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not pid.exists():
        if launcher.poll() is not None:
            raise RuntimeError(f"the launcher ended with {launcher.returncode}")
        time.sleep(0.2)
    child = int(pid.read_text())
    launcher.kill()
    launcher.wait()
    for _ in range(75):
        time.sleep(0.2)
        try:
            state = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return "ended"
        if state == "Z":
            return "ended"
    os.kill(child, 9)
    return "still runs after 15 s"


def judge(seen):
    found = seen[0][0]
    return ("fixed" if found == "ended" else "lives"), f"the process {found}", "it ends"
