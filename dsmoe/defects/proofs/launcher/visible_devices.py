"""Defect 26: the user's CUDA_VISIBLE_DEVICES."""

NUMBER = 26
TITLE = "The launcher maps its slots into the user's CUDA_VISIBLE_DEVICES"


def observe(tools, phase):
    import base64
    import json
    import os
    import socket
    import subprocess
    import sys
    from pathlib import Path

    script = Path(tools.folder, "script.py")
    script.write_text("import os\nprint('sees', os.environ.get('CUDA_VISIBLE_DEVICES'))\n")
    world = base64.urlsafe_b64encode(json.dumps({"localhost": [0, 1]}).encode()).decode()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    place = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    place["CUDA_VISIBLE_DEVICES"] = "5,6"
    if "DS_ACCELERATOR" in place:  # it says cpu, whose slots are no GPUs
        place["DS_ACCELERATOR"] = "cuda"
    command = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={world}"]
    command += ["--node_rank=0", "--master_addr=127.0.0.1", f"--master_port={port}", str(script)]
    run = subprocess.run(
        command,
        env=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    sees = sorted(line.strip() for line in run.stdout.splitlines() if line.startswith("sees"))
    if not sees:
        raise RuntimeError("the script did not run: " + run.stdout.strip()[-200:])
    return sees


def judge(seen):
    found = seen[0][0]
    state = "fixed" if all(line == "sees 5,6" for line in found) else "lives"
    return state, f"two processes: {', '.join(found)}", "5,6 as set, in both"
