"""The convergence command: arms of equal cost, text without leaks, a real run, the figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dsmoe.convergence.options import parser, setting
from support import ROOT

from dsmoe.benchmark.data.corpus import prepare
from dsmoe.benchmark.run import patched_deepspeed
from dsmoe.common.errors import UsageError
from dsmoe.convergence import cli, plot, records, text
from dsmoe.convergence.arms import (
    ARMS,
    Setting,
    active_parameters,
    case_of,
    check_equal_flops,
    config_of,
    flops_per_token,
)

TINY = "--hidden 16 --layers 2 --heads 2 --sequence 16 --experts 4 --batch 8 --micro-batch 4"
SHORT = f"{TINY} --steps 6 --eval-every 4 --eval-windows 16".split()
SOURCES = ROOT / "dsmoe"


def default_setting(device: str) -> Setting:
    return setting(parser().parse_args([]), device)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_all_arms_cost_the_same_per_token(device: str) -> None:
    sizes = default_setting(device)
    cases = {name: case_of(arm, sizes, 1) for name, arm in ARMS.items()}
    assert check_equal_flops([case.model for case in cases.values()]) == 0
    moe, dense = cases["moe"].model, cases["dense"].model
    assert (moe.experts, moe.top_k, moe.ffn_factor, dense.ffn_factor) == (8, 2, 8, 12)
    # Written out: forward once, backward twice, two operations a weight; gate left out.
    h, s = sizes.hidden, sizes.sequence
    attention = 2 * 4 * h * h + 4 * s * h
    feed_forward = {"dense": sizes.layers * 2 * 2 * 12 * h * h}
    feed_forward["moe"] = sizes.layers // 2 * (1 + 2) * 2 * 2 * 8 * h * h
    for name, products in feed_forward.items():
        forward = sizes.layers * attention + products + 2 * h * moe.vocab
        assert flops_per_token(cases[name].model) == 3 * forward
    # Everything but the model is the same, the balance loss and the optimizer's mode apart.
    shared = [
        {k: v for k, v in case.to_dict().items() if k not in ("model", "auxiliary")}
        for name, case in cases.items()
        if "artifact" not in name
    ]
    assert shared[0] == shared[1] == shared[2]


def test_unequal_arms_are_refused() -> None:
    sizes = default_setting("cpu")
    models = [case_of(ARMS[name], sizes, 1).model for name in ("moe", "dense")]
    wide = type(models[1])(**{**vars(models[1]), "ffn_factor": 13})
    with pytest.raises(UsageError, match=r"FLOPs per token differ by 6.0 %"):
        check_equal_flops([models[0], wide])


def test_what_the_artifact_arms_change() -> None:
    sizes = default_setting("cpu")

    def optimizer(name: str) -> dict[str, Any]:
        config = config_of(ARMS[name], case_of(ARMS[name], sizes, 1), "cpu")
        return dict(config["optimizer"]["params"])

    moe = optimizer("moe")
    assert (moe["mode"], moe["relative_step"]) == ("sharded", False)
    assert optimizer("dense") == moe
    artifact = {**moe, "mode": "artifact"}
    assert optimizer("moe-artifact-adafactor-same-lr") == artifact
    assert optimizer("moe-artifact-adafactor") == {**artifact, "relative_step": True}


def words(name: str, lines: int = 40) -> str:
    return "".join(f"a line of {name} that is long enough to count, {i}\n" for i in range(lines))


def folder_of_packages(root: Path) -> Path:
    for package in ("alpha", "beta", "gamma", "delta"):
        for module in ("one", "two", "three", "four", "five", "six"):
            file = root / package / f"{module}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(words(f"{package}.{module}"))
    (root / "beta-1.0.dist-info").mkdir()
    (root / "beta-1.0.dist-info" / "top_level.txt").write_text("beta\n")
    (root / "alpha" / "vendored.py").write_text(words("alpha.one") + "\n\n")
    (root / "alpha" / "table.so").write_bytes(b"\xff" * 100)
    (root / "alpha" / "latin.py").write_bytes("café\n".encode("latin-1") * 100)
    return root


def test_held_out_text_is_whole_packages_without_copies(tmp_path: Path) -> None:
    root = folder_of_packages(tmp_path / "site")
    made = text.prepare(tmp_path / "cache", [str(root)], 10**9)
    info = made.info
    assert (info.documents, info.copies, info.leaks, info.held_out_entries) == (25, 1, 0, 1)
    assert info.shared_lines == 0
    corpus = prepare(tmp_path / "cache", **made.options())
    assert corpus.held_out is not None
    train, held = (bytes(ids[ids < 256].astype("uint8")) for ids in (corpus.train, corpus.held_out))
    assert (len(corpus.train), len(corpus.held_out)) == (info.train_tokens, info.held_out_tokens)
    package = held.split(b".")[0].split()[-1]
    assert held.count(package + b".") == 6 * 40 and package + b"." not in train
    assert text.entry_of("beta-1.0.dist-info/top_level.txt") == text.entry_of("beta/one.py")


def test_a_held_out_document_that_repeats_the_training_text_is_left_out(tmp_path: Path) -> None:
    def document(name: str, content: str) -> text.Document:
        path = tmp_path / f"{name}.py"
        path.write_text(content)
        return text.Document(text.Source(name, path, len(content), 0), name)

    train = [document("a", words("a"))]
    kept = [document("copy", words("a", 20) + "end\n"), document("own", words("own", 20))]
    assert text.seen_shares(train, kept) == [(20, 20), (20, 0)]


def command(capfd: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    code = cli.main([*options])
    out, err = capfd.readouterr()
    return code, out, err


def test_two_arms_train_for_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # The checkout is taken as it is, as conftest does.
    monkeypatch.setenv(patched_deepspeed.VARIABLE, str(patched_deepspeed.location()))
    monkeypatch.setenv("DSMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(patched_deepspeed, "ensure", lambda path: None)
    output = tmp_path / "out"
    options = [*SHORT, "--data", str(SOURCES), "--no-plot", "--output", str(output)]
    code, out, err = command(capfd, *options, "--arms", "dense", "moe")
    assert (code, err) == (0, ""), out + err
    assert out.count("== training") == 2
    summary = records.read_summary(output)
    curves = records.read_curves(output, summary)
    assert [curve.arm for curve in curves] == ["moe", "dense"]
    for curve in curves:
        steps = [point["iteration"] for point in curve.points]
        assert steps == [0, 4, 6]
        assert [point["tokens"] for point in curve.points] == [128 * step for step in steps]
        assert curve.points[0]["held_out_loss"] == pytest.approx(5.77, abs=0.1)  # log(320)
        assert curve.points[-1]["held_out_loss"] < curve.points[0]["held_out_loss"]
        assert curve.figures["held_out_windows"] == 16
        model = case_of(ARMS[curve.arm], Setting(**summary["common"]["setting"]), 1).model
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


def recorded(output: Path) -> None:
    """The files of a comparison of all arms with two seeds, and one run that failed."""
    runs = {}
    for number, arm in enumerate(ARMS.values()):
        for seed in (1, 2):
            points = []
            for step in range(0, 101, 10):
                loss = 5.7 / (1 + step / 20) + 0.01 * number + 0.002 * seed
                point: dict[str, Any] = {
                    "iteration": step,
                    "tokens": 1000 * step,
                    "held_out_loss": loss,
                }
                if step:
                    layers = [] if arm.dense else [[0.5, 0.25, 0.25, 0.0], [0.25] * 4]
                    point.update(expert_load=layers, dropped_share=[0.1, 0.02][: len(layers)])
                points.append(point)
            name = records.run_name(arm.name, seed)
            lines = "".join(json.dumps(point) + "\n" for point in points)
            (output / f"{name}.jsonl").write_text(lines)
            runs[name] = {
                "arm": arm.name,
                "seed": seed,
                "status": "ok",
                "device": {"device_name": "none"},
                "parameters": 10,
                "active_parameters": 5,
                "flops_per_token": 1e6,
                "tokens_per_second": 100.0,
                "held_out_loss": points[-1]["held_out_loss"],
                "held_out_loss_no_drop": points[-1]["held_out_loss"],
                "train_loss": 1.0,
            }
    runs["moe-3"] = {"arm": "moe", "seed": 3, "status": "failed", "reason": "out of memory"}
    common = {"setting": default_setting("cpu").to_dict(), "device": "cpu"}
    summary = {"schema": records.SCHEMA, "common": common, "text": {}, "runs": runs}
    (output / records.SUMMARY).write_text(json.dumps(summary))


def test_the_figure_is_drawn_from_the_files_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    recorded(tmp_path)
    drawn: list[Any] = []
    save = plot.save
    monkeypatch.setattr(plot, "save", lambda fig, to: (drawn.append(fig), save(fig, to))[1])
    code, out, err = command(capfd, "--plot-only", "--output", str(tmp_path))
    assert (code, err) == (0, "")
    assert all((tmp_path / f"convergence{suffix}").stat().st_size for suffix in (".png", ".pdf"))
    losses, apart, load, dropped = drawn[0].axes
    assert len(losses.lines) == 10  # five arms, two seeds
    assert [t.get_text() for t in drawn[0].legends[0].get_texts()][1] == (
        "dense, equal FLOPs per token: last 0.9630 ± 0.0010"
    )
    # Less the dense arm: -0.01 for the first arm at every token count; the last line is zero.
    assert apart.lines[0].get_ydata() == pytest.approx([-0.01] * 10)
    assert len(apart.lines) == 9
    # Four arms with experts, two seeds: two layers and their mean each, and the line at 1.
    assert len(load.lines) == 4 * 2 * 3 + 1 and len(dropped.lines) == 4 * 2 * 3
    assert load.lines[2].get_ydata() == pytest.approx([1.5] * 10)
    assert dropped.lines[2].get_ydata() == pytest.approx([6.0] * 10)
    assert "moe-artifact-adafactor-same-lr" in out and "failed: out of memory" in out


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--arms", "mole"], 2, "invalid choice: 'mole'"),
        (["--steps", "0"], 2, "not a whole number of at least 1"),
        (["--no-plot", "--micro-batch", "3"], 2, "expected a divisor of it"),
        (["--no-plot", "--experts", "1"], 2, "expected at least 2 for top-2"),
        (["--no-plot", "--layers", "3"], 2, "layers is odd"),
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
    monkeypatch.setenv(patched_deepspeed.VARIABLE, str(patched_deepspeed.location()))
    monkeypatch.setenv("DSMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(patched_deepspeed, "ensure", lambda path: None)
    monkeypatch.chdir(tmp_path)
    Path("one.txt").write_text(words("one"))
    found, _, err = command(capfd, *options)
    assert found == code
    assert message in err and err.count("\n") == 1 and err.startswith("error: ")
