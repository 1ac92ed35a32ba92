"""Slurm: the bracket syntax against brute force and scontrol, and the job's GPU variables."""

from __future__ import annotations

import os
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmoe.common.errors import DsmoeError, HostProblem, SourceProblem
from dsmoe.hosts.brackets import expand_counts, expand_names
from dsmoe.hosts.sources import slurm

# What `scontrol show hostnames` of Slurm 22.05.8 printed for each list.
SCONTROL = {
    "node[01-03,07],gpu5,r[1-2]n[0-3]": (
        "node01 node02 node03 node07 gpu5 r1n0 r1n1 r1n2 r1n3 r2n0 r2n1 r2n2 r2n3"
    ),
    "n[8-10]": "n8 n9 n10",
    "n[08-10]": "n08 n09 n10",
    "n[9-010]": "n9 n10",
    "a[001-3]": "a001 a002 a003",
    "a-[1-2]": "a-1 a-2",
    "a[1-2][3-4]": "a13 a14 a23 a24",
    "n[1-3,5],n2": "n1 n2 n3 n5 n2",
}
MALFORMED = ["", "a[1-", "a[]", "a[3-1]", "a[x]", "a]", "a,,b", ",a", "a,", "a[1-2] b"]
MALFORMED += ["a[1,,2]", "a[1-2-3]", "a[[1]]", "a[-1]"]
MALFORMED += ["a[1-70000]", "a[1-300]b[1-300]", "a[0-999999999999]"]


@pytest.mark.parametrize("nodelist", SCONTROL)
def test_expansion_as_scontrol_recorded(nodelist: str) -> None:
    assert expand_names(nodelist) == SCONTROL[nodelist].split()


@pytest.mark.parametrize("nodelist", MALFORMED)
def test_malformed_lists_are_refused(nodelist: str) -> None:
    with pytest.raises(HostProblem, match="node list") as caught:
        expand_names(nodelist)
    assert "\n" not in str(caught.value)


# A structure (text pieces and lists of number strings), from which the compact text and, by brute
# force, the names are made; nothing of the code under test is used.
_WORD = st.text("abcxyz-.", min_size=1, max_size=4)


@st.composite
def _range(draw: st.DrawFn) -> tuple[str, list[str]]:
    low, span = draw(st.integers(0, 120)), draw(st.integers(0, 4))
    width = draw(st.integers(1, 4))
    numbers = [format(n, f"0{width}d") for n in range(low, low + span + 1)]
    # Slurm pads to the width of the low bound as it is written.
    written = max(width, len(str(low)))
    numbers = [format(n, f"0{written}d") for n in range(low, low + span + 1)]
    text = numbers[0] if span == 0 else f"{numbers[0]}-{numbers[-1]}"
    return text, numbers


@st.composite
def _item(draw: st.DrawFn) -> tuple[str, list[str]]:
    text, parts = "", []
    for word in draw(st.lists(_WORD, min_size=1, max_size=2)):
        text += word
        parts.append([word])
        ranges = draw(st.lists(_range(), max_size=3))
        if ranges:
            text += "[" + ",".join(piece for piece, _ in ranges) + "]"
            parts.append([number for _, numbers in ranges for number in numbers])
    return text, ["".join(choice) for choice in product(*parts)]


ITEMS = st.lists(_item(), min_size=1, max_size=4)


@pytest.mark.long
@settings(max_examples=200, deadline=None)
@given(items=ITEMS)
def test_expansion_by_brute_force(items: list[tuple[str, list[str]]]) -> None:
    text = ",".join(piece for piece, _ in items)
    assert expand_names(text) == [name for _, names in items for name in names]


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab01[]-, ", max_size=14))
def test_any_text_expands_or_is_refused(text: str) -> None:
    try:
        names = expand_names(text)
    except HostProblem:
        return
    assert names and all(name and not set(name) & set("[], ") for name in names)


def test_expansion_as_the_installed_scontrol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = shutil.which("scontrol")
    if program is None:
        pytest.skip("no scontrol here (Debian: slurm-client; scripts/install-test-tools.sh)")
    # It wants a configuration before it expands a list; no daemon is needed.
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=test\nSlurmctldHost=localhost\n")
    monkeypatch.setenv("SLURM_CONF", str(conf))
    for nodelist, names in SCONTROL.items():
        job = {"SLURM_JOB_NODELIST": nodelist, "SLURM_GPUS_ON_NODE": "4"}
        if len(set(names.split())) == len(names.split()):
            found = slurm.find(job, "why")
            assert [candidate.name for candidate in found.candidates] == names.split()
            assert not any("scontrol" in warning for warning in found.warnings)

    @settings(max_examples=25, deadline=None)
    @given(items=st.lists(_item(), min_size=1, max_size=2).filter(_slurm_can))
    def compare(items: list[tuple[str, list[str]]]) -> None:
        text = ",".join(piece for piece, _ in items)
        done = subprocess.run([program, "show", "hostnames", text], capture_output=True, text=True)
        assert sorted(done.stdout.split()) == sorted(expand_names(text)), text

    compare()


def _slurm_can(items: list[tuple[str, list[str]]]) -> bool:
    # scontrol takes a leading "-" for an option, and no name that has text after its last bracket.
    ends = all("[" not in text or text.endswith("]") for text, _ in items)
    return ends and not items[0][0].startswith("-")


@settings(deadline=None)
@given(counts=st.lists(st.tuples(st.integers(1, 99), st.integers(1, 9)), min_size=1, max_size=6))
def test_counts_by_brute_force(counts: list[tuple[int, int]]) -> None:
    text = ",".join(f"{n}(x{r})" if r > 1 else str(n) for n, r in counts)
    assert expand_counts(text) == [n for n, repeat in counts for _ in range(repeat)]


@pytest.mark.parametrize("text", ["", "4(x0)", "4(2)", "4,", "-4", "4(x2", "4(x999999)"])
def test_malformed_counts_are_refused(text: str) -> None:
    with pytest.raises(HostProblem, match=r"4\(x2\),3"):
        expand_counts(text)


JOB = {"SLURM_JOB_NODELIST": "gpu[01-02]", "SLURM_JOB_NUM_NODES": "2"}


@pytest.mark.parametrize(
    "extra, slots",
    [
        ({"SLURM_GPUS_ON_NODE": "4"}, [4, 4]),
        ({"SLURM_GPUS_PER_NODE": "8"}, [8, 8]),
        ({"SLURM_GPUS_PER_NODE": "a100:4"}, [4, 4]),
        ({"SLURM_GPUS_PER_NODE": "a100:2,v100:1"}, [3, 3]),
        ({"SLURM_JOB_GPUS": "0,1,2,3"}, [4, 4]),
        ({"SLURM_JOB_GPUS": "0-7", "SLURM_GPUS_ON_NODE": "8"}, [8, 8]),
        ({"SLURM_STEP_GPUS": "2,3"}, [2, 2]),
        ({"SLURM_STEP_GPUS": "2", "SLURM_GPUS_ON_NODE": "4"}, [4, 4]),
        ({"SLURM_GPUS_PER_TASK": "1", "SLURM_TASKS_PER_NODE": "4(x2)"}, [4, 4]),
        ({"SLURM_GPUS_PER_TASK": "2", "SLURM_TASKS_PER_NODE": "4,3"}, [8, 6]),
        ({"SLURM_TASKS_PER_NODE": "4(x2)"}, [None, None]),
        ({}, [None, None]),
    ],
)
def test_gpus_of_the_job(
    extra: dict[str, str], slots: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = slurm.find({**JOB, **extra}, "why")
    assert [(c.name, c.slots) for c in found.candidates] == list(zip(["gpu01", "gpu02"], slots))


@pytest.mark.parametrize(
    "env, kind, words",
    [
        ({}, SourceProblem, "no SLURM_JOB_NODELIST"),
        ({**JOB, "SLURM_HET_SIZE": "2"}, SourceProblem, "heterogeneous"),
        ({**JOB, "SLURM_JOB_NUM_NODES": "3"}, HostProblem, "found 2 hosts in"),
        ({**JOB, "SLURM_GPUS_ON_NODE": "0"}, HostProblem, "found 0 GPUs"),
        ({**JOB, "SLURM_GPUS_PER_NODE": "a100"}, HostProblem, "a100:4"),
        ({**JOB, "SLURM_JOB_GPUS": "a,b"}, HostProblem, "0,1 or 0-3"),
        ({**JOB, "SLURM_GPUS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "4"}, HostProblem, "different"),
        (
            {**JOB, "SLURM_GPUS_PER_TASK": "1", "SLURM_TASKS_PER_NODE": "4(x3)"},
            HostProblem,
            "for 3",
        ),
        ({"SLURM_JOB_NODELIST": "n[1-3],n2"}, HostProblem, "twice"),
        ({"SLURM_JOB_NODELIST": "n;id"}, HostProblem, "letters, digits"),
    ],
)
def test_contradictions_are_refused(
    env: dict[str, str], kind: type[DsmoeError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(kind, match=words):
        slurm.find(env, "why")


@pytest.mark.parametrize(
    "script, names, warned",
    [
        # In another order than ours: scontrol's own order counts.
        ('printf "gpu02\\ngpu01\\n"', ["gpu02", "gpu01"], False),
        ('echo "Invalid hostlist: $3"', ["gpu01", "gpu02"], True),
        ("echo gpu01; echo 'scontrol: error: no slurm.conf' >&2", ["gpu01", "gpu02"], True),
        ("exit 1", ["gpu01", "gpu02"], True),
        ('test "$1 $2 $3" = "show hostnames gpu[01-02]" && echo gpu02 gpu01', ["gpu02", "gpu01"],
         False),
    ],
)  # fmt: skip
def test_scontrol_is_asked(
    script: str, names: list[str], warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_in(tmp_path, script, monkeypatch)
    found = slurm.find({**JOB, "SLURM_GPUS_PER_NODE": "4"}, "why")
    assert [candidate.name for candidate in found.candidates] == names
    assert bool(found.warnings) == warned


def test_scontrol_that_disagrees_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_in(tmp_path, "echo gpu01 gpu03", monkeypatch)
    with pytest.raises(HostProblem, match="other hosts"):
        slurm.find(JOB, "why")


def test_scontrol_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(tmp_path, "exec sleep 30", monkeypatch)
    monkeypatch.setattr(slurm, "SCONTROL_SECONDS", 0.3)
    found = slurm.find(JOB, "why")
    assert [candidate.name for candidate in found.candidates] == ["gpu01", "gpu02"]
    assert any("scontrol did not end within 0.3 s" in warning for warning in found.warnings)


def _stand_in(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "scontrol"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
