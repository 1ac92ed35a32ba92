"""Kernels by the kind of their work; the profile itself needs a GPU."""

from __future__ import annotations

import pytest
from support.commands import dsmoe

from dsmoe.benchmark.timing.profile import kind_of


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_tst_128x192_64x5_2x1_v_bz_coopB_geluauxbias_auxt_NNN", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26", "attention"),
        ("triton_red_fused_sum_7", "fused elementwise and reductions (compiled)"),
        ("_row", "cross-entropy"),
        ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", "communication"),
        ("Memcpy HtoD (Pageable -> Device)", "copies and fills"),
        ("void at::native::_scatter_gather_elementwise_kernel<128, 8>", "other elementwise"),
        ("something else", "other"),
    ],
)
def test_the_kind_of_a_kernel(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


@pytest.mark.parametrize("option", ["--all", "--steps 3", "--warmup 2"])
def test_options_that_a_profile_has_not(option: str, capsys) -> None:
    assert dsmoe("profile", 1, "--suite", "tuned", *option.split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {option.split()[0]}: one step of one case is profiled")
