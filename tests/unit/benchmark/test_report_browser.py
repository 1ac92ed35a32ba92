"""axe-core finds nothing to object to in the report, in a wide and a narrow window, light and dark.

Needs Chromium and axe-core of npm (``npm install -g axe-core``, or DSMOE_AXE names its axe.min.js).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.records import failure, record

from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.results.page import page
from dsmoe.benchmark.results.record import RunRecord, measured

# What a reader with a screen reader, or of other sight, needs: WCAG 2.1 A and AA, and axe's advice.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
ASKED = """<script>AXE</script><script>
axe.run(document, {runOnly: RULES, resultTypes: ['violations', 'passes']}).then(found => {
  const said = found.violations.map(v => [v.id, v.help, v.nodes.map(n => n.html.slice(0, 200))]);
  const made = {violations: said, passes: found.passes.length,
    dark: matchMedia('(prefers-color-scheme: dark)').matches};
  document.documentElement.innerHTML = '<body><pre id=found></pre></body>';
  document.getElementById('found').textContent = JSON.stringify(made);
});</script>"""


def axe_script() -> Path | None:
    """The file axe.min.js, where there is one."""
    if os.environ.get("DSMOE_AXE"):
        return Path(os.environ["DSMOE_AXE"])
    npm = shutil.which("npm")
    if npm is None:
        return None
    done = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, check=False)
    found = Path(done.stdout.strip(), "axe-core/axe.min.js")
    return found if done.returncode == 0 and found.is_file() else None


@pytest.fixture(scope="module")
def axe() -> str:
    script = axe_script()
    if script is None:
        pytest.skip("needs axe-core (npm install -g axe-core, or DSMOE_AXE)")
    return script.read_text(encoding="utf-8")


def audit(text: str, axe: str, place: Path, *options: str) -> dict:
    """What axe-core says of the page: ``violations``, how many rules it ``passes``, and whether it
    was ``dark``."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", text)  # which forbids scripts
    # not by re.sub: axe's text has backslashes
    asked = ASKED.replace("RULES", json.dumps(RULES)).replace("AXE", axe, 1)
    place.write_text(text.replace("</body>", f"{asked}</body>"), encoding="utf-8")
    plain = ("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom")
    plain += ("--virtual-time-budget=20000", f"--user-data-dir={place.with_suffix('')}")
    done = subprocess.run(
        ["chromium", *plain, *options, place.as_uri()], capture_output=True, text=True, timeout=300
    )
    [found] = re.findall(r'<pre id="found">(.*)</pre>', done.stdout)
    known = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&amp;": "&"}
    for name, character in known.items():
        found = found.replace(name, character)
    return dict(json.loads(found))


def runs() -> list[RunRecord]:
    good = [
        record(suite, gpus, "cuda", **measured(find_case(suite, gpus), [20.0, 21.0]))
        for suite, gpus in (("artifact", 1), ("artifact", 8), ("published", 1))
    ]
    return [*good, failure("out of memory at iteration 1", "artifact", 4), record()]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium (Debian: chromium)")
@pytest.mark.parametrize(
    "options",
    [
        ("--window-size=1280,900",),
        ("--window-size=390,900", "--blink-settings=preferredColorScheme=0"),
    ],
    ids=["wide", "narrow and dark"],
)
def test_the_report_is_accessible(options: tuple[str, ...], axe: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = audit(page(runs(), "results"), axe, tmp_path / "page.html", *options)
    assert found["violations"] == []
    assert found["passes"] > 10
    assert found["dark"] == (len(options) == 2)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium (Debian: chromium)")
def test_axe_sees_what_is_missing(axe: str, tmp_path: Path) -> None:
    """The check can fail: a page whose picture has no text and whose language is not given."""
    pytest.importorskip("matplotlib")
    broken = page(runs(), "results").replace("</body>", "<img src='data:,'></body>", 1)
    broken = re.sub(r"<html [^>]*>", "<html>", broken)
    found = audit(broken, axe, tmp_path / "page.html")
    assert {"image-alt", "html-has-lang"} <= {name for name, *_ in found["violations"]}
