"""``dsmoe converge`` without training: the figure of what is there, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.commands import NO_GPU, dsmoe
from support.comparison import recorded, words

from dsmoe.benchmark.preflight import machine
from dsmoe.benchmark.run import patched_deepspeed
from dsmoe.convergence import curve_files, plot, table
from dsmoe.convergence.text import TextInfo


@pytest.mark.long
def test_the_figure_is_drawn_from_the_files_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    recorded(tmp_path)
    drawn: list[Any] = []
    save = plot.save
    monkeypatch.setattr(plot, "save", lambda fig, to: (drawn.append(fig), save(fig, to))[1])
    assert dsmoe("converge", "--plot-only", "--output", tmp_path) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert all((tmp_path / f"convergence{suffix}").stat().st_size for suffix in (".png", ".pdf"))
    losses, apart, load, dropped = drawn[0].axes
    assert len(losses.lines) == 5 * 3  # five arms: two seeds and their mean
    one, other, mean = (line.get_ydata() for line in losses.lines[:3])
    assert mean == pytest.approx([(a + b) / 2 for a, b in zip(one, other)])
    assert losses.lines[2].get_linewidth() > 2 * losses.lines[0].get_linewidth()
    assert [t.get_text() for t in drawn[0].legends[0].get_texts()][1] == (
        "dense, equal FLOPs per token: last 0.9630 ± 0.0014"
    )
    # Less the dense arm: -0.01 for the first arm at every token count; the last line is zero.
    assert apart.lines[0].get_ydata() == pytest.approx([-0.01] * 10)
    assert len(apart.lines) == 4 * 3 + 1
    # Four arms with experts: the layers' mean of two seeds, their mean, and the line at 1.
    assert len(load.lines) == 4 * 3 + 1 and len(dropped.lines) == 4 * 3
    assert load.lines[2].get_ydata() == pytest.approx([1.5] * 10)
    assert dropped.lines[2].get_ydata() == pytest.approx([6.0] * 10)
    assert out.count("same-lr") == 4 and "failed: out of memory" in out


def test_the_tables_have_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(tmp_path)
    summary = curve_files.read_summary(tmp_path)
    curves = curve_files.read_curves(tmp_path, summary)
    large = {"parameters": 123456789, "active_parameters": 123456789, "tokens_per_second": 1e6}
    for curve in curves:
        curve.figures.update(large)
    summary["runs"]["moe-3"]["reason"] = "out of memory, " * 20
    table.print_table(summary, [dataclasses.replace(one, seed=2**31) for one in curves])
    info = TextInfo("x", "y", 10**9, 10**8, 10**6, 10**6, 10**6, 10**6, 10**6, 0.5)
    print("\n".join(table.text_lines(info)))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out and out.count("123,456,789") == 2 * len(curves)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--arms", "mole"], 2, "invalid choice: 'mole'"),
        (["--steps", "0"], 2, "'0' is not a whole number from 1"),
        (["--no-plot", "--micro-batch-size", "3"], 2, "expected a divisor of it"),
        (["--no-plot", "--num-experts", "1"], 2, "expected at least 2 for top-2"),
        (["--no-plot", "--num-layers", "3"], 2, "expected an even number"),
        (["--plot-only", "--no-plot"], 2, "give one of them"),
        (["--plot-only", "--output", "nothing-here"], 10, "no such file"),
        (["--no-plot", "--data", "one.txt", "--output", "out"], 9, "expected at least 2, one to"),
    ],
)
def test_refusals_are_one_line(
    options: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(machine, "this_machine", lambda: NO_GPU)
    monkeypatch.setenv("DSMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(patched_deepspeed, "ensure", lambda path, say=print: None)
    monkeypatch.chdir(tmp_path)
    Path("one.txt").write_text(words("one"))
    assert dsmoe("converge", *options) == code
    err = capfd.readouterr().err
    assert message in err and err.count("\n") == 1 and err.startswith("error: ")
