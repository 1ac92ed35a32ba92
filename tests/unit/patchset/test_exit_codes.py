"""Every failure and every state has a documented exit code of its own."""

from __future__ import annotations

from dsmoe.common import errors
from dsmoe.patchset.checkout.state import EXIT_CODES as STATES


def test_every_failure_has_a_documented_code_of_its_own() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.DsmoeError)
    ]
    assert len(kinds) > 10
    assert {kind.exit_code for kind in kinds} <= set(errors.EXIT_CODES)
    own = [kind.exit_code for kind in kinds if kind is not errors.DsmoeError]
    assert len(own) == len(set(own))


def test_every_state_has_a_documented_code_of_its_own() -> None:
    assert set(STATES.values()) <= set(errors.EXIT_CODES)
    assert len(set(STATES.values())) == len(STATES)
