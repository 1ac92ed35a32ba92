#!/usr/bin/env python3
"""Write docs/reference/configuration.md from overlay/deepspeed/runtime/config_keys.py."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "configuration.md"
HEAD = """# Keys of the configuration

All keys of the configuration that `deepspeed.initialize` takes, and what the patched engine does
with each. A key that is not here is refused with the nearest one; at the top level a key that
resembles none is ignored with a warning, since programs keep settings of their own there. A key
that is given, asks for something other than its default, and lacks what the last column names has
no effect, and a warning says so. So are a second optimizer or schedule beside one that was passed.

`optimizer.type` and `scheduler.type` are names of classes: letter case counts, but for DeepSpeed's
own optimizers. `Adagrad` is torch's unless it is offloaded. `Adam` decays weights as AdamW unless
`adam_w_mode` is false.

`make` does not write this page: `python scripts/config_reference.py` does, from
`overlay/deepspeed/runtime/config_keys.py`.

| key | default | what it does | needs |
| --- | --- | --- | --- |
"""


def page() -> str:
    """The page's text."""
    data = runpy.run_path(str(ROOT / "overlay" / "deepspeed" / "runtime" / "config_keys.py"))
    rows = []
    for key, default, effect, needs in data["KEYS"]:
        shown = "" if default is None else f"`{default!r}`"
        rows.append(f"| `{key}` | {shown} | {effect} | {data['NEEDS'].get(needs, '')} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page())
