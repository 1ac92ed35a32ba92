"""The report in a browser: it fits the window, and axe-core finds nothing to object to.

In a wide and a narrow window, light and dark. ``make test-report`` runs this file with the axe-core
of tests/support/axe; DSMOE_AXE names another axe.min.js.
"""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path

import pytest
from support.browser import dumped
from support.records import failure, record

from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.results.page import page
from dsmoe.benchmark.results.record import RunRecord, measured

# What a reader with a screen reader, or of other sight, needs: WCAG 2.1 A and AA, and axe's advice.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
ASKED = """AXE
axe.run(document, {runOnly: RULES, resultTypes: ['violations', 'passes']}).then(found => {
  const said = found.violations.map(v => [v.id, v.help, v.nodes.map(n => n.html.slice(0, 200))]);
  const made = {violations: said, passes: found.passes.length,
    inner: innerWidth, dark: matchMedia('(prefers-color-scheme: dark)').matches};
  top.document.title = JSON.stringify(made);
});"""


@pytest.fixture(scope="module")
def axe() -> str:
    if not os.environ.get("DSMOE_AXE"):
        pytest.skip("needs axe-core of npm: make test-report")
    return Path(os.environ["DSMOE_AXE"]).read_text(encoding="utf-8")


def shown(text: str, script: str, width: int, place: Path, *options: str) -> str:
    """The title that ``script``, at the end of the page ``text``, gives to the window.

    A window of Chromium has 500 pixels at least: a narrower page is in a frame.
    """
    text = re.sub(r"<meta http-equiv[^>]*>", "", text)  # which forbids scripts
    text = text.replace("</body>", f"<script>{script}</script></body>")
    if width < 500:
        style = f":root {{ color-scheme: light dark }} iframe {{ width: {width}px; border: 0 }}"
        frame = f'<style>{style}</style><iframe srcdoc="{html.escape(text)}"></iframe>'
        text = f"<!doctype html><title>frame</title>{frame}"
    place.write_text(text, encoding="utf-8")
    dom = dumped(place, f"--window-size={max(width, 500)},900", *options)
    return html.unescape(re.findall(r"<title>(.*?)</title>", dom)[0])


def audit(text: str, axe: str, place: Path, width: int = 1280, *options: str) -> dict:
    """What axe-core says of the page: ``violations``, how many rules it ``passes``, its ``inner``
    width, and whether it was ``dark``."""
    asked = ASKED.replace("RULES", json.dumps(RULES)).replace("AXE", axe, 1)
    return dict(
        json.loads(shown(text, asked, width, place, "--virtual-time-budget=20000", *options))
    )


def runs() -> list[RunRecord]:
    good = [
        record(suite, gpus, "cuda", **measured(find_case(suite, gpus), [20.0, 21.0]))
        for suite, gpus in (("artifact", 1), ("artifact", 8), ("published", 1))
    ]
    return [*good, failure("out of memory at iteration 1", "artifact", 4), record()]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_fits_the_window(width: int, tmp_path: Path) -> None:
    """The page itself does not scroll sideways; only its wide tables do."""
    pytest.importorskip("matplotlib")
    asked = "top.document.title = document.documentElement.scrollWidth + ' of ' + innerWidth"
    wide, inner = shown(page(runs(), "results"), asked, width, tmp_path / "page.html").split(" of ")
    assert int(wide) <= int(inner) == width


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_report_is_accessible(width: int, dark: bool, axe: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    found = audit(page(runs(), "results"), axe, tmp_path / "page.html", width, scheme)
    assert found["violations"] == []
    assert found["passes"] > 10
    assert (found["inner"], found["dark"]) == (width, dark)


@pytest.mark.slow
def test_axe_sees_what_is_missing(axe: str, tmp_path: Path) -> None:
    """The check can fail: a page whose picture has no text and whose language is not given."""
    pytest.importorskip("matplotlib")
    broken = page(runs(), "results").replace("</body>", "<img src='data:,'></body>", 1)
    broken = re.sub(r"<html [^>]*>", "<html>", broken)
    found = audit(broken, axe, tmp_path / "page.html")
    assert {"image-alt", "html-has-lang"} <= {name for name, *_ in found["violations"]}
