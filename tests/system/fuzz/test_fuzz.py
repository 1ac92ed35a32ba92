"""A short part of the fuzzer; ``make fuzz`` goes on for as long as it is told to."""

from __future__ import annotations

import sys

import pytest
from support.fuzz import campaign
from support.fuzz.commands import parser_of

from dsmoe.cli import COMMANDS

CASES = 80

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and Linux's devices")


@pytest.mark.long
def test_no_case_ends_badly() -> None:
    done = campaign.run_cases(CASES)
    print(done.summary())
    assert done.cases == CASES
    assert done.found == [] and done.changed == []
    assert len(done.codes) >= 4 and done.codes[0] < CASES / 2  # cases of many kinds


@pytest.mark.long
def test_a_wrong_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same cases with a defect in the wrapper: the oracle is no formality."""
    monkeypatch.setattr("dsmoe.cli.guarded", lambda command, wants_json: command())
    done = campaign.run_cases(40)
    assert any(what == "a traceback" for *_, what in done.found)


def test_every_option_has_a_value_to_draw() -> None:
    from support.fuzz.commands import arguments_of

    for command in COMMANDS:
        for action in parser_of(command)._actions:
            assert arguments_of(action) is not None
