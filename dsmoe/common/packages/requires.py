"""Which Python and torch can work; the rest is refused at start in one line.

This module is imported by versions of Python that the rest of the package cannot be read by, so
it has neither annotations, only comments on types, nor imports from the package.
"""

import sys

PYTHON = (3, 8)  # the oldest that can read dsmoe/ and overlay/
TORCH = (1, 10)  # the oldest that the language model and the patched DeepSpeed run on
EXIT_CODE = 8


def check_python(program):
    # type: (str) -> None
    """End the process with one line where this Python is too old."""
    if sys.version_info < PYTHON:
        found = "%d.%d" % sys.version_info[:2]
        sys.stderr.write(
            "%s: this is Python %s; expected %d.%d or later: run it with another python3\n"
            % ((program, found) + PYTHON)
        )
        sys.exit(EXIT_CODE)


def torch_problem(version):
    # type: (str) -> str | None
    """What is wrong with torch ``version`` ("1.9.1+cpu"), in one line; None if it can work."""
    numbers = []
    for part in version.split("+")[0].split(".")[:2]:
        digits = ""
        for character in part:
            if not character.isdigit():
                break
            digits += character
        numbers.append(int(digits or 0))
    if tuple(numbers) >= TORCH:
        return None
    return "torch %s is too old; expected %d.%d or later: python -m pip install 'torch>=%d.%d'" % (
        (version,) + TORCH + TORCH
    )
