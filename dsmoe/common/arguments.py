"""Command lines: mistakes are one line, types of numbers, and options that need no case."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any, NoReturn

from dsmoe.common.errors import UsageError

MOST = 10**9  # no option counts more than this; a larger number is a slip of the keys


WIDTH = 80  # the widest help


class Help(argparse.RawDescriptionHelpFormatter):
    """Fills paragraphs. Keeps indented lines, and lets a long one go on under its last column."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(shutil.get_terminal_size().columns, WIDTH))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        text = re.sub(r"(?m)^(\S.*)\n(?=\S)", r"\1 ", text)
        return "\n".join(_wrapped(indent + line, width) for line in text.splitlines())


def _wrapped(line: str, width: int) -> str:
    columns = re.match(r" *\S+(?: \S+)* {2,}(?=\S)|  (?:\d+ )? *| *", line)
    indent = columns.end() if columns else 0
    if indent > width * 2 // 3:  # no room beside so long a first column
        indent = 6
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )


class OneLineParser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print the whole usage and end the process."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", Help)
        super().__init__(allow_abbrev=False, **options)

        self._words: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; keeps the words for :meth:`error`."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._words, namespace)

    def knows(self, option: str) -> bool:
        """Whether there is such an option."""
        return option in self._option_string_actions

    def error(self, message: str) -> NoReturn:
        # argparse misses an argument before it sees that another is unknown
        if message.startswith("the following arguments are required"):
            unknown = [word for word in self._options_given() if not self.knows(word)]
            if unknown:
                message = f"unrecognized arguments: {' '.join(unknown)}"
        raise UsageError(f"{message}; see {self.prog} --help")

    def _options_given(self) -> list[str]:
        words = self._words
        if "--" in words:
            words = words[: words.index("--")]
        given = [word.split("=", 1)[0] for word in words if len(word) > 1 and word[0] == "-"]
        return [word for word in given if not re.fullmatch(r"-\d.*", word)]


def whole(text: str, least: int = 0, most: int = MOST) -> int:
    """A whole number from ``least`` to ``most``."""
    try:
        value = int(text) if len(text) < 40 else most + 1
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a whole number") from None
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} is not a whole number from {least} to {most}"
        )
    return value


def count(text: str) -> int:
    """A whole number of at least 1."""
    return whole(text, 1)


def seed(text: str) -> int:
    """A seed: torch's generators take 64 bits."""
    return whole(text, 0, 2**63 - 1)


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a number above 0")
    return value


def listed(action: argparse.Action) -> None:
    """Let an option take several values with commas between them; it then has their texts."""
    one, choices = action.type or str, action.choices
    assert callable(one)
    if choices and action.metavar is None:
        action.metavar = "{" + ",".join(map(str, choices)) + "}"
    action.choices = None

    def several(text: str) -> list[str]:
        found = text.split(",")
        for word in found:
            value = one(word)
            if choices and value not in choices:
                expected = ", ".join(map(str, choices))
                raise argparse.ArgumentTypeError(f"{word[:60]!r}: expected one of {expected}")
        return found

    action.type = several


def plain_name(text: str) -> str:
    """A name for a record: letters, digits and a few signs, with single blanks between words."""
    if not re.fullmatch(r"[\w.,/+-]+( [\w.,/+-]+)*", text):
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a plain name such as 25gbit")
    return text


def utf8_text(text: str) -> str:
    """A text; where the locale is not of UTF-8, its bytes are read as UTF-8 all the same."""
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(text).decode("utf-8")
        except UnicodeError:
            raise argparse.ArgumentTypeError(
                f"{text!r:.60}: found bytes that are no UTF-8; expected a text"
            ) from None
    return text


def not_empty(text: str) -> str:
    """A name, as it was given; an empty one is a variable that was not set."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def file_name(text: str) -> Path:
    """The name of a file or folder, which is not empty."""
    return Path(not_empty(text))


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="The result is one JSON object on standard output."
    )


def add_output(parser: argparse._ActionsContainer, default: str, words: str) -> None:
    parser.add_argument(
        "--output",
        type=file_name,
        default=Path(default),
        metavar="PATH",
        help=f"{words} (default: {default}).",
    )
