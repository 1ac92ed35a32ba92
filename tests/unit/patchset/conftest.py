"""The fixtures of support/patch_fixtures.py; here ``checkout`` is a clone of the synthetic base."""

from support.patch_fixtures import (  # noqa: F401
    built_release,
    checkout,
    project,
    quiet,
    real_archive,
    real_base,
    release_checkout,
    template,
)
