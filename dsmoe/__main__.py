"""``python -m dsmoe``: see doors.py. This file is read by older Pythons too, to refuse them."""

import sys

from dsmoe.common.requires import check_python

check_python("dsmoe")

from dsmoe.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
