"""Writing: all files or none, whatever fails and whenever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from support import ROOT

from dsmoe.common.errors import EnvironmentProblem, HostGone
from dsmoe.hosts import writer
from dsmoe.hosts.host import Host
from dsmoe.hosts.hostfile import read_hostfile

OLD = [Host(f"old{n}", 2) for n in range(1, 5)]
NEW = [Host(f"10.0.0.{n}", 8) for n in range(1, 4)]


def _nothing() -> None:
    return None


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _child(body: str, *arguments: str) -> subprocess.Popen[str]:
    head = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + body, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with the files of a former cluster of four hosts."""
    folder = tmp_path / "out"
    writer.write(folder, OLD, _nothing)
    return folder


def test_every_size_is_written_head_first_and_stale_files_go(old: Path) -> None:
    (old / "hostfile_9node").write_bytes(b"my own notes\n")
    mask = os.umask(0o027)
    try:
        done = writer.write(old, NEW, _nothing)
    finally:
        os.umask(mask)
    names = ["hostfile_1node", "hostfile_2node", "hostfile_3node", "hostfile"]
    assert [path.name for path in done.files] == names
    assert [read_hostfile(path) for path in done.files] == [NEW[:1], NEW[:2], NEW, NEW]
    assert (old / "hostfile").read_bytes() == b"".join(
        b"10.0.0.%d slots=8\n" % n for n in (1, 2, 3)
    )
    assert (old / "hostfile").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in done.removed] == ["hostfile_4node"]
    assert "hostfile_9node" in done.warnings[0]
    # Neither a hidden folder nor another file is left behind.
    assert sorted(path.name for path in old.iterdir()) == sorted([*names, "hostfile_9node"])


def test_a_failed_last_check_changes_nothing(old: Path) -> None:
    before = _contents(old)

    def died() -> NoReturn:
        raise HostGone("10.0.0.2 died")

    with pytest.raises(HostGone):
        writer.write(old, NEW, died)
    assert _contents(old) == before
    assert len(list(old.iterdir())) == len(before)


def test_a_rename_that_fails_half_way_is_undone(old: Path) -> None:
    # One of the new files has no old one to come back: it must go again.
    (old / "hostfile_2node").unlink()
    before = _contents(old)
    del before["hostfile_3node"]

    def in_the_way() -> None:
        # Appears after all checks: hostfile_1node and _2node are replaced, then this one fails.
        (old / "hostfile_3node").unlink()
        (old / "hostfile_3node").mkdir()

    with pytest.raises(EnvironmentProblem, match="hostfile_3node"):
        writer.write(old, NEW, in_the_way)
    assert _contents(old) == before


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_odd_targets_are_refused(kind: str, old: Path, tmp_path: Path) -> None:
    (old / "hostfile").unlink()
    if kind == "folder":
        (old / "hostfile").mkdir()
    else:
        (old / "hostfile").symlink_to(tmp_path / "elsewhere")
    before = _contents(old)
    with pytest.raises(EnvironmentProblem, match="expected a plain file"):
        writer.write(old, NEW, _nothing)
    assert _contents(old) == before and not (tmp_path / "elsewhere").exists()


def test_output_that_is_a_file_or_has_no_parent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "a" / "b"):
        with pytest.raises(EnvironmentProblem, match=str(folder)):
            writer.write(folder, NEW, _nothing)


def test_a_full_disk_changes_nothing(old: Path) -> None:
    # A file-size limit makes the kernel refuse the write itself, as a full disk does.
    before = _contents(old)
    body = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))\n"
        "from pathlib import Path\n"
        "from dsmoe.common.errors import EnvironmentProblem\n"
        "from dsmoe.hosts import writer\nfrom dsmoe.hosts.host import Host\n"
        "try: writer.write(Path(sys.argv[1]), [Host('a', 8), Host('b', 8), Host('c', 8)], int)\n"
        "except EnvironmentProblem as error: print('EXPECTED', error)\n"
    )
    stdout, stderr = _child(body, str(old)).communicate(timeout=300)
    assert stdout.startswith("EXPECTED") and "too large" in stdout, stderr
    assert _contents(old) == before
    assert len(list(old.iterdir())) == len(before)


_WAITING_WRITER = """
from pathlib import Path
from dsmoe.hosts import writer
from dsmoe.hosts.host import Host
def wait():
    print("ready", flush=True)
    sys.stdin.readline()
writer.write(Path(sys.argv[1]), [Host("b1", 4)], wait)
"""


def test_two_runs_at_once_and_a_kill(old: Path) -> None:
    before = _contents(old)
    child = _child(_WAITING_WRITER, str(old))
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    with pytest.raises(EnvironmentProblem, match="another run"):
        writer.write(old, NEW, _nothing)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=300)
    assert _contents(old) == before
    assert len(list(old.iterdir())) == len(before) + 1  # the killed run's hidden folder
    writer.write(old, NEW, _nothing)
    assert sorted(_contents(old)) == ["hostfile"] + [f"hostfile_{n}node" for n in (1, 2, 3)]
    assert len(list(old.iterdir())) == 4


def test_readers_never_see_half_a_file(old: Path) -> None:
    body = (
        "import select\nfrom pathlib import Path\n"
        "from dsmoe.hosts import writer\nfrom dsmoe.hosts.host import Host\n"
        "print('ready', flush=True)\n"
        "n = 0\n"
        "while not select.select([sys.stdin], [], [], 0)[0]:\n"
        "    n += 1\n"
        "    writer.write(Path(sys.argv[1]), [Host(f'r{n}x{i}', 8) for i in range(20)], int)\n"
    )
    child = _child(body, str(old))
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    seen: set[str] = set()
    while child.poll() is None and len(seen) < 8:  # it writes until it is told to end
        hosts = read_hostfile(old / "hostfile")
        assert hosts == OLD or (
            len(hosts) == 20 and len({host.name.partition("x")[0] for host in hosts}) == 1
        )
        seen.add(hosts[0].name)
    _, stderr = child.communicate("end\n", timeout=300)
    assert child.returncode == 0, stderr
