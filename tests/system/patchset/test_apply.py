"""Apply, check, revert, status and renewal, on real clones of the synthetic base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.patch_project import BASE_FILES, Project, git, read_files, result_files, snapshot

from dsmoe.common.errors import LocalChanges, ResultMismatch, SeriesBroken
from dsmoe.patchset.checkout.actions import apply, check, lock, revert
from dsmoe.patchset.checkout.state import EXIT_CODES, describe


def test_apply_gives_the_expected_bytes(template: Project, checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    done = template.run(checkout)
    assert (done.returncode, done.stderr) == (0, "")
    assert read_files(checkout) == result_files()
    # Plain git agrees, tree by tree, with a commit of those files made upstream.
    assert git(checkout, "write-tree") == git(template.upstream, "rev-parse", "main^{tree}")
    assert git(checkout, "rev-parse", "HEAD") == head
    assert git(checkout, "diff", "--name-only") == ""
    code, text = template.main(checkout)
    assert code == 0 and "already applied" in text
    assert template.main(checkout, "--revert")[0] == 0
    assert read_files(checkout) == BASE_FILES
    assert git(checkout, "status", "--porcelain") == ""
    assert not (checkout / "lib" / "new").exists()
    code, text = template.main(checkout, "--revert")
    assert code == 0 and "nothing to revert" in text


def test_status_names_each_state(template: Project, tmp_path: Path, quiet) -> None:
    checkout = template.clone(tmp_path / "c")

    def state() -> tuple[str, list[str]]:
        code, text = template.main(checkout, "--status", "--json")
        data = json.loads(text)
        assert code == EXIT_CODES[data["outcome"]] == data["exit_code"]
        assert data["state"]["trees"] == template.base.trees
        return data["outcome"], data["state"]["edited"]

    assert state() == ("pristine", [])
    (checkout / "docs/read.txt").write_bytes(b"mine\n")
    assert state() == ("base-edited", ["docs/read.txt"])
    apply(checkout, template.bases, quiet)  # no file of the series: the edit stays
    assert (checkout / "docs/read.txt").read_bytes() == b"mine\n"
    assert state() == ("applied-edited", ["docs/read.txt"])
    git(checkout, "checkout", "docs/read.txt")
    assert state() == ("applied", [])
    (checkout / "lib/new/deep/x.py").write_bytes(b"new = 3\n")
    (checkout / "lib/a.py").unlink()
    (checkout / "lib/mine.py").write_bytes(b"")
    edited = ["lib/a.py", "lib/mine.py", "lib/new/deep/x.py"]
    assert state() == ("applied-edited", edited)
    git(checkout, "add", "-A")
    assert state() == ("applied-edited", edited)
    git(checkout, "reset", "-q", "--hard")
    assert state() == ("pristine", [])
    apply(checkout, template.bases, quiet)
    git(checkout, "checkout", "HEAD", "--", "lib/a.py", "lib/crlf.py")
    assert state() == ("partly-applied", [])
    assert apply(checkout, template.bases, quiet).changed == ["lib/a.py", "lib/crlf.py"]
    git(checkout, "reset", "-q")  # index back at the base, files as applied
    assert state() == ("partly-applied", [])
    revert(checkout, template.bases, quiet)
    assert read_files(checkout) == BASE_FILES
    (checkout / "lib/a.py").write_bytes(b"another version\n")
    git(checkout, "commit", "-qam", "another version")
    code, text = template.main(checkout, "--status", "--json")
    assert (code, json.loads(text)["outcome"]) == (4, "other-base")
    code, text = template.main(tmp_path / "nothing", "--status", "--json")
    assert (code, json.loads(text)["outcome"]) == (3, "not-a-checkout")


def test_check_and_status_write_nothing(template: Project, tmp_path: Path) -> None:
    # Of one branch alone, so that the result's objects are not there already.
    checkout = template.clone(tmp_path / "c", "--no-local", "--single-branch", "--branch=base")
    before = snapshot(checkout)
    code, text = template.main(checkout, "--check")
    assert code == 0 and "would change 12 files" in text
    assert template.main(checkout, "--status")[0] == 20
    assert snapshot(checkout) == before


def test_every_patch_that_fails_is_reported(project: Project, checkout: Path, quiet) -> None:
    one, two = project.root / "patch/one.patch", project.root / "patch/two.patch"
    # Wrong context in the second hunk of a.py and in crlf.py; two.patch then misses its blob.
    text = one.read_bytes().replace(b" line 29\n", b" line 92\n").replace(b" line 6\r", b" line 6")
    one.write_bytes(text)
    two.write_bytes(two.read_bytes().replace(b"-echo one", b"-echo uno"))
    (project.root / "overlay/lib/a.py").write_bytes(b"collides\n")
    before = snapshot(checkout)
    for command in (check, apply, lock):
        with pytest.raises(SeriesBroken) as caught:
            command(checkout, project.bases, quiet)
        found = "\n".join(caught.value.details)
        assert "one.patch: lib/a.py: hunk 2 of 2 (line 30) does not apply" in found
        assert "one.patch: lib/crlf.py: hunk 1 of 1 (line 6) does not apply" in found
        assert "two.patch: lib/run.sh: hunk 1 of 1 (line 1) does not apply" in found
        assert "overlay lib/a.py: would replace" in found
        assert "latin" not in found and "data.bin" not in found and "link" not in found
    shutil.rmtree(checkout / ".git/dsmoe", ignore_errors=True)
    keep = {name: item for name, item in snapshot(checkout).items() if "/objects/" not in name}
    assert keep == {name: item for name, item in before.items() if "/objects/" not in name}


def test_a_hunk_never_moves(project: Project, tmp_path: Path, quiet) -> None:
    # Upstream with one more line above the hunk: git apply alone would accept it with an offset.
    upstream = project.clone(tmp_path / "other")
    path = upstream / "lib/a.py"
    path.write_bytes(b"first\n" + path.read_bytes())
    git(upstream, "commit", "-qam", "shifted")
    data = json.loads((project.root / "bases/syn/base.json").read_text())
    head = git(upstream, "rev-parse", "HEAD")
    data["commits"].append({"id": head, "label": "shifted"})
    (project.root / "bases/syn/base.json").write_text(json.dumps(data))
    git(upstream, "apply", "--check", str(project.root / "patch/one.patch"))
    with pytest.raises(SeriesBroken) as caught:
        apply(upstream, project.bases, quiet)
    assert any("lib/a.py: made for blob" in line for line in caught.value.details)


def test_result_must_be_the_locked_one(project: Project, checkout: Path, quiet) -> None:
    path = project.root / "overlay/lib/new/deep/x.py"
    path.write_bytes(b"new = 9\n")
    with pytest.raises(ResultMismatch, match="--lock"):
        apply(checkout, project.bases, quiet)
    assert read_files(checkout) == BASE_FILES
    assert lock(checkout, project.bases, quiet).name == "locked"
    apply(checkout, project.bases, quiet)
    assert (checkout / "lib/new/deep/x.py").read_bytes() == b"new = 9\n"
    assert lock(checkout, project.bases, quiet).name == "lock-unchanged"
    lock_file = project.root / "bases/syn/result.json"
    text = lock_file.read_text()
    data = json.loads(text)
    data["trees"]["lib"] = "0" * 40
    for wrong in (json.dumps(data), "{", None):
        lock_file.unlink() if wrong is None else lock_file.write_text(wrong)
        with pytest.raises(ResultMismatch):
            check(checkout, project.bases, quiet)


def test_an_older_series_is_renewed(project: Project, checkout: Path, quiet) -> None:
    apply(checkout, project.bases, quiet)
    (project.root / "overlay/lib/new/deep/x.py").unlink()
    (project.root / "overlay/lib/new/crlf.py").write_bytes(b"newer\r\n")
    (project.root / "overlay/lib/new/more.py").write_bytes(b"more\n")
    (project.root / "patch/series").write_text("one.patch\n")  # two.patch is dropped
    lock(checkout, project.bases, quiet)
    state = describe(checkout, project.bases)
    assert (state.name, state.edited) == ("other-series", [])
    (checkout / "lib/new/go.sh").write_bytes(b"#!/bin/sh\nexit 1\n")  # same in both: may stay
    (checkout / "lib/run.sh").write_bytes(b"mine\n")
    before = read_files(checkout)
    with pytest.raises(LocalChanges) as caught:
        apply(checkout, project.bases, quiet)
    assert caught.value.details == ["lib/run.sh: edited"]
    assert read_files(checkout) == before
    (checkout / "lib/run.sh").write_bytes(result_files()["lib/run.sh"])
    assert apply(checkout, project.bases, quiet).state.name == "applied-edited"
    found = read_files(checkout)
    assert found["lib/a.py"].count(b"line 2 patched\n") == 1
    assert found["lib/old.py"] == BASE_FILES["lib/old.py"]
    assert found["lib/new/crlf.py"] == b"newer\r\n" and "lib/new/deep/x.py" not in found
    assert found["lib/new/go.sh"].endswith(b"exit 1\n")
    git(checkout, "checkout", "lib/new/go.sh")
    # A series that no longer fits does not stop the way back.
    (project.root / "patch/one.patch").write_bytes(b"nonsense")
    revert(checkout, project.bases, quiet)
    assert read_files(checkout) == BASE_FILES
