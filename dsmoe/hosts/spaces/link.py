"""The rate and the delay of a host's link to the switch, by tc.

The rate holds in both directions: a token bucket (TBF) at the host's end and one at the switch's.
The delay is that of one way, added where packets leave the host (netem): a round trip between two
hosts takes it twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dsmoe.common.errors import EnvironmentProblem, UsageError
from dsmoe.hosts.spaces.guardian import TIMED_OUT, run_tool, tool

_RATE = re.compile(r"(\d+(?:\.\d+)?)(k|m|g)bit")
_DELAY = re.compile(r"(\d+(?:\.\d+)?)(us|ms)")
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
# A bucket refills between two packets of 64 KiB, as veth hands them on unsplit.
_BURST_SECONDS = 1e-3
_LEAST_BURST = 1 << 17
# What waits for the bucket, beyond which packets are dropped and TCP slows down.
_QUEUE_SECONDS = 20e-3


@dataclass(frozen=True)
class Link:
    """``rate`` such as ``25gbit`` (None: as fast as the machine), ``delay`` such as ``50us``."""

    rate: str | None = None
    delay: str | None = None

    def __post_init__(self) -> None:
        if self.rate and not (_RATE.fullmatch(self.rate) and self.bits_per_second >= 1e5):
            raise UsageError(
                f"--rate {self.rate[:40]!r}: expected a number with kbit, mbit or gbit of at "
                "least 100kbit, such as 25gbit"
            )
        if self.delay and not _DELAY.fullmatch(self.delay):
            raise UsageError(
                f"--delay {self.delay[:40]!r}: expected a number with us or ms, such as 50us"
            )

    @property
    def bits_per_second(self) -> float:
        found = _RATE.fullmatch(self.rate or "")
        return float(found[1]) * _UNITS[found[2]] if found else float("inf")

    @property
    def words(self) -> str:
        """The link in a few words, such as ``25gbit, 50us a way``."""
        delay = [f"{self.delay} a way"] if self.delay else []
        return ", ".join([self.rate or "no limit", *delay])

    def apply(self, space: str, device: str, leaves_host: bool) -> None:
        """Shape what ``device`` of a network namespace sends. Raises EnvironmentProblem."""
        if self.rate:
            size = self.bits_per_second / 8
            burst = max(_LEAST_BURST, int(size * _BURST_SECONDS))
            limit = burst + max(_LEAST_BURST, int(size * _QUEUE_SECONDS))
            words = ["rate", self.rate, "burst", f"{burst}b", "limit", f"{limit}b"]
            _tc(space, device, ["root", "handle", "1:", "tbf", *words], "--rate")
        if self.delay and leaves_host:
            place = ["parent", "1:1", "handle", "10:"] if self.rate else ["root"]
            _tc(space, device, [*place, "netem", "delay", self.delay, "limit", "100000"], "--delay")


def _tc(space: str, device: str, words: list[str], option: str) -> None:
    if tool("tc") is None:
        raise EnvironmentProblem(f"{option} needs tc, which is not installed (Debian: iproute2)")
    done = run_tool("tc", "-n", space, "qdisc", "add", "dev", device, *words)
    if done.returncode == TIMED_OUT:
        raise EnvironmentProblem(f"{option}: {done.stderr}; see what it waits for, or repeat")
    if done.returncode:
        said = " ".join(done.stderr.split())[:200]
        kind = "netem" if option == "--delay" else "tbf"
        raise EnvironmentProblem(
            f"{option}: tc refused it ({said}); expected a kernel with sch_{kind}: load that "
            f"module, or leave {option} out"
        )
