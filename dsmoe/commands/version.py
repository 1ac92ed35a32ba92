"""``dsmoe --version``: every part with its version, licence and ids, like a bill of materials."""

from __future__ import annotations

import json
import platform
from typing import Any

from dsmoe import __version__
from dsmoe.common.errors import DsmoeError
from dsmoe.common.packages import dependencies, interpreter
from dsmoe.patchset.base import Base, load_bases
from dsmoe.patchset.locked_result import read_result
from dsmoe.patchset.series import load_series, readable

#: What a run uses: name -> (licence as its own files state it, what it is used for). The extras
#: that EXTRAS names say which packages there are; the test of this file holds the two together.
EXTRAS = ("run", "hopper")
LICENCES = {
    "GitPython": ("BSD-3-Clause", "runs git for the applier"),
    "torch": ("BSD-3-Clause", "tensors, autograd, process groups"),
    "torch-optimizer": ("Apache-2.0", "the artifact's AdaFactor, the oracle in the tests"),
    "pytorch-ranger": ("Apache-2.0", "imported by torch-optimizer"),
    "filelock": ("MIT", "locks of the prepared text"),
    "numpy": ("BSD-3-Clause", "token files"),
    "rich": ("MIT", "progress and tables"),
    "matplotlib": ("Matplotlib licence, based on PSF-2.0", "figures"),
    "safetensors": ("Apache-2.0", "exported models"),
    "jinja2": ("BSD-3-Clause", "the HTML report"),
    "hjson": ("MIT", "imported by DeepSpeed"),
    "packaging": ("Apache-2.0 OR BSD-2-Clause", "imported by DeepSpeed"),
    "psutil": ("BSD-3-Clause", "processes of a run; imported by DeepSpeed"),
    "py-cpuinfo": ("MIT", "imported by DeepSpeed"),
    "tqdm": ("MPL-2.0 AND MIT", "imported by DeepSpeed"),
    "setuptools": ("MIT", "distutils, which DeepSpeed imports"),
    "wheel": ("MIT", "builds packages for pip"),
    "nvidia-ml-py": ("BSD-3-Clause", "the energy of a run on GPUs"),
    "quack-kernels": ("Apache-2.0", "matrix products on a Hopper GPU"),
    "flash-attn-4": ("BSD-3-Clause", "the gradient of attention on a Hopper GPU"),
    "nvidia-cutlass-dsl": ("NVIDIA's own licence", "used by quack-kernels and flash-attn-4"),
}


def parts() -> dict[str, Any]:
    """What ``--version --json`` prints; no process is started and nothing is written."""
    return {
        "dsmoe": {"version": __version__, "licence": "MIT"},
        "python": platform.python_version(),
        "environment": {
            "path": str(interpreter.environment()),
            "half_made": interpreter.half_made(),
        },
        "bases": [_base(base) for base in load_bases()],
        "packages": [
            {
                "name": name,
                "version": dependencies.version_of(name),
                "licence": LICENCES[name][0],
                "used_for": LICENCES[name][1],
            }
            for name in package_names()
        ],
    }


def package_names() -> list[str]:
    """The packages that a run uses, in the order of pyproject.toml."""
    listed = dependencies.requirements() + dependencies.requirements(*EXTRAS)
    return list(dict.fromkeys(item.name for item in listed))


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


def show(as_json: bool = False) -> int:
    """Print the parts, from ``.venv`` where this Python lacks what a run needs; the exit code."""
    if dependencies.missing(dependencies.requirements() + dependencies.requirements("run")):
        interpreter.start_again()
    try:
        found = parts()
    except DsmoeError as error:
        print(f"dsmoe: {error}")
        return error.exit_code
    if as_json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"dsmoe {__version__} (MIT), Python {found['python']}")
    half = " is half made: run scripts/setup.sh, which finishes it"
    print(f"environment {interpreter.environment()}{half if interpreter.half_made() else ''}")
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
