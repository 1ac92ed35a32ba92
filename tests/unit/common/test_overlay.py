"""Facts of overlay/ are read by path, by a process that never imports torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import ROOT

from dsmoe.common import overlay_modules


def test_model_sizes_and_kernel_choices_need_no_torch() -> None:
    code = (
        "import sys; from dsmoe.common import overlay_modules; "
        "overlay_modules.model_sizes().count_parameters(768, 8, 8); "
        "overlay_modules.kernel_choices().chosen({}); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'deepspeed')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_named_sizes_are_what_their_names_say() -> None:
    sizes, unit = overlay_modules.model_sizes(), {"M": 1e6, "B": 1e9}
    for name, size in sizes.SIZES.items():
        expected = float(name[:-1]) * unit[name[-1]]
        assert sizes.count_parameters(*size) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("environment", [{}, {"DSMOE_KERNELS": ""}])
def test_an_unset_choice_means_every_kernel(environment: dict[str, str]) -> None:
    assert overlay_modules.kernel_choices().chosen(environment) == "all"


def test_an_unknown_choice_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError) as error:
        overlay_modules.kernel_choices().chosen({"DSMOE_KERNELS": "wrong"})
    expected = "DSMOE_KERNELS='wrong'; expected one of all, nccl, cublas, torch"
    assert str(error.value) == expected


def test_a_missing_file_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        overlay_modules.load("moe/lm/none.py")
