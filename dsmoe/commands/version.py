"""``dsmoe --version``: every part with its version, licence and ids, like a bill of materials."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import Any

from dsmoe import __version__
from dsmoe.common.errors import DsmoeError
from dsmoe.patchset.base import Base, load_bases
from dsmoe.patchset.locked_result import read_result
from dsmoe.patchset.series import load_series, readable

#: Packages used at run time: name -> (licence as its own files state it, what it is used for).
PACKAGES = {
    "torch": ("BSD-3-Clause", "tensors, autograd, process groups"),
    "torch-optimizer": ("Apache-2.0", "the artifact's AdaFactor, the oracle in the tests"),
    "pytorch-ranger": ("Apache-2.0", "imported by torch-optimizer"),
    "GitPython": ("BSD-3-Clause", "runs git for the applier"),
    "filelock": ("MIT", "locks of the prepared text"),
    "numpy": ("BSD-3-Clause", "token files"),
    "rich": ("MIT", "progress and tables"),
    "hjson": ("MIT", "imported by DeepSpeed"),
    "packaging": ("Apache-2.0 OR BSD-2-Clause", "imported by DeepSpeed"),
    "psutil": ("BSD-3-Clause", "imported by DeepSpeed"),
    "py-cpuinfo": ("MIT", "imported by DeepSpeed"),
    "tqdm": ("MPL-2.0 AND MIT", "imported by DeepSpeed"),
}


def parts() -> dict[str, Any]:
    """What ``--version --json`` prints; no process is started and nothing is written."""
    return {
        "dsmoe": {"version": __version__, "licence": "MIT"},
        "python": platform.python_version(),
        "bases": [_base(base) for base in load_bases()],
        "packages": [
            {"name": name, "version": _installed(name), "licence": licence, "used_for": use}
            for name, (licence, use) in PACKAGES.items()
        ],
    }


def _base(base: Base) -> dict[str, Any]:
    with readable(base) as complete:
        series = load_series(complete)
        try:
            trees, digest = read_result(complete)
        except (OSError, ValueError):
            trees, digest = {}, None
    return {
        "name": base.name,
        "component": "DeepSpeed",
        "version": base.version,
        "licence": "MIT",
        "source": base.upstream,
        "commit": base.commit,
        "trees": base.trees,
        "patches": len(series.patches),
        "overlay_files": len(series.overlay),
        "series": series.digest,
        "locked_series": digest,
        "result": trees,
    }


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def show(as_json: bool = False) -> int:
    """Print the parts; the exit code."""
    try:
        found = parts()
    except DsmoeError as error:
        print(f"dsmoe: {error}")
        return error.exit_code
    if as_json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"dsmoe {__version__} (MIT), Python {found['python']}")
    for base in found["bases"]:
        print(f"base {base['name']}: DeepSpeed {base['version']} ({base['licence']})")
        print(f"  commit  {base['commit']}")
        for top, oid in sorted(base["trees"].items()):
            print(f"  {top + '/':<12}{oid}{_result(base, top)}")
        lock = "locked" if base["series"] == base["locked_series"] else "NOT the locked one"
        print(f"  series  {base['series']} ({lock})")
        print(f"          {base['patches']} patches, {base['overlay_files']} overlay files")
    for package in found["packages"]:
        version = package["version"] or "not installed"
        print(f"{package['name']} {version} ({package['licence']}): {package['used_for']}")
    return 0


def _result(base: dict[str, Any], top: str) -> str:
    return f" -> {base['result'][top]}" if top in base["result"] else ""
