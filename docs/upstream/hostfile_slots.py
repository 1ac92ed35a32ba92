"""A host file with a mistake in its slots is accepted."""

import sys
import tempfile

from deepspeed.launcher.runner import fetch_hostfile

accepted = []
for line in ("worker-1 slots=1O", "worker-1 slots=4.5", "worker-1 slots=0"):
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(line + "\n")
        file.flush()
        try:
            slots = fetch_hostfile(file.name)["worker-1"]
        except ValueError as error:
            print(f"{line!r}: refused: {error}")
        else:
            accepted.append(line)
            print(f"{line!r}: accepted as {slots} slots")
print("right: all three are refused with a ValueError (1O has the letter O)")
sys.exit(1 if accepted else 0)
