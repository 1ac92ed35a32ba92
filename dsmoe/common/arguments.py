"""Command lines whose mistakes are one line, like every other expected failure."""

from __future__ import annotations

import argparse
from typing import NoReturn

from dsmoe.common.errors import UsageError


class OneLineParser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print the whole usage and end the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")
