"""``dsmoe converge`` trains two arms for real."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import ROOT
from support.commands import dsmoe
from support.comparison import SHORT

from dsmoe.benchmark.run import patched_deepspeed
from dsmoe.common.places import CHECKOUT_VARIABLE
from dsmoe.convergence import curve_files
from dsmoe.convergence.arms import ARMS, ArmSetting, active_parameters, case_of

SOURCES = ROOT / "dsmoe"


def command(capfd: pytest.CaptureFixture[str], *options: object) -> tuple[int, str, str]:
    code = dsmoe("converge", *options)
    out, err = capfd.readouterr()
    return code, out, err


@pytest.mark.long
def test_two_arms_train_for_real(
    checkout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # The checkout is taken as it is, as support/patched.py does.
    monkeypatch.setenv(CHECKOUT_VARIABLE, str(checkout))
    monkeypatch.setenv("DSMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(patched_deepspeed, "ensure", lambda path, say=print: None)
    output = tmp_path / "out"
    options = [*SHORT, "--data", str(SOURCES), "--no-plot", "--output", str(output)]
    code, out, err = command(capfd, *options, "--arms", "dense", "moe")
    assert (code, err) == (0, ""), out + err
    assert out.count("== training") == out.count("before training; the next after 4 steps") == 2
    summary = curve_files.read_summary(output)
    curves = curve_files.read_curves(output, summary)
    assert [curve.arm for curve in curves] == ["moe", "dense"]
    for curve in curves:
        steps = [point["iteration"] for point in curve.points]
        assert steps == [0, 4, 6]
        assert [point["tokens"] for point in curve.points] == [128 * step for step in steps]
        assert curve.points[0]["held_out_loss"] == pytest.approx(5.77, abs=0.1)  # log(320)
        assert curve.points[-1]["held_out_loss"] < curve.points[0]["held_out_loss"]
        assert curve.figures["held_out_windows"] == 16
        model = case_of(ARMS[curve.arm], ArmSetting(**summary["common"]["setting"]), 1).model
        count = curve.figures["parameters"]
        assert curve.figures["active_parameters"] == active_parameters(model, count)
    moe, dense = curves
    for point in moe.points[1:]:
        for load in (point["expert_load"], point["held_out_load"]):
            assert [len(layer) for layer in load] == [4]
            assert sum(load[0]) == pytest.approx(1)
        assert 0 <= point["dropped_share"][0] < 1
    assert dense.points[-1]["expert_load"] == []
    gate = 4 * 16  # the dense model has none
    assert moe.figures["active_parameters"] - gate == pytest.approx(
        dense.figures["active_parameters"], rel=0.01
    )

    code, out, _ = command(capfd, *options, "--arms", "dense", "moe", "--resume")
    assert (code, out.count("finished already, skipped"), out.count("== training")) == (0, 2, 0)
    code, _, err = command(capfd, *options, "--steps", "7")
    assert code == 2 and "is of a comparison with another setting; expected the same" in err
