"""Nothing from an option, the environment, a file or a folder's name reaches a shell as code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import stand_in
from support.launcher import lean_runner

# Each would leave a file behind in the folder, or change on the way: quotes, pdsh's %n, blanks.
PLANTS = [
    "$(touch pwned)",
    "`touch pwned`",
    ";touch pwned;",
    "a && touch pwned",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "%n %h %% 100%",
    "two  blanks\tand\na line end",
    "*",
    "~",
    "$HOME",
    "",
    "--flag=$(touch pwned)",
    "#not a comment",
    "!!",
    "é",
]
SAY = """
import json, os, sys
names = ["NCCL_PLANT", "FILE_PLANT", "SECOND"]
found = {"args": sys.argv[2:], **{name: os.environ.get(name) for name in names}}
found["folder"] = os.getcwd()
print("SAID", json.dumps(found))
"""


def said(output: str) -> list[dict]:
    return [json.loads(line.split("SAID ", 1)[1]) for line in output.splitlines() if "SAID" in line]


def test_nothing_reaches_a_shell(tmp_path: Path) -> None:
    """One launch on two stand-in hosts, whose commands go through a real shell."""
    folder = tmp_path / "a;touch pwned;$(touch pwned) %n 'b'"
    folder.mkdir()
    (folder / "say it;.py").write_text(SAY)
    (folder / "hosts").write_text("203.0.113.1 slots=1\n203.0.113.2 slots=1\n")
    value = " ".join(plant for plant in PLANTS if "\n" not in plant)
    # The home folder's file is read first, and the current folder's wins.
    (tmp_path / ".deepspeed_env").write_text("FILE_PLANT=home\nSECOND=1\n")
    (folder / ".deepspeed_env").write_text(f"\n# note\nFILE_PLANT={value}=x\n")
    environment = {
        **os.environ,
        **stand_in.install(tmp_path),
        "HOME": str(tmp_path),
        "NCCL_PLANT": "".join(PLANTS),
    }
    launcher = lean_runner("--hostfile", "hosts")
    done = subprocess.run(
        [*launcher, "say it;.py", *PLANTS],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = {
        "args": PLANTS,
        "NCCL_PLANT": "".join(PLANTS).strip(),
        "FILE_PLANT": f"{value}=x",
        "SECOND": "1",
        "folder": str(folder),
    }
    assert said(done.stdout) == [expected, expected]
    assert list(tmp_path.rglob("pwned")) == []


def test_environment_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the runner, up to the command for pdsh: values as they stand, errors by line."""
    from deepspeed.launcher import runner

    variables = stand_in.install(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner.sys, "executable", "/bin/true")
    monkeypatch.setattr(runner, "DEEPSPEED_ENVIRONMENT_PATHS", [str(tmp_path / "absent"), "."])
    Path("hosts").write_text("203.0.113.1 slots=1\n203.0.113.2 slots=1\n")
    good = b"\xef\xbb\xbfA1=1=2\r\n\r\n  # note\r\nB1 = two words \r\nC1='q'\r\nD1=\r\n"
    Path(".deepspeed_env").write_bytes(good)
    runner.main(["--hostfile", "hosts", "script.py"])
    command = stand_in.calls(variables)[-1][-1]
    for words in (" A1=1=2 ", " 'B1=two words' ", " C1=q ", " D1= "):
        assert words in command
    Path(".deepspeed_env").write_text("A1=1\nexport $(touch pwned)=2\n")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        runner.main(["--hostfile", "hosts", "script.py"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert ".deepspeed_env:2: found" in error


def test_exported_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.launcher import runner

    variables = stand_in.install(tmp_path)
    for name, value in {**variables, "GLOO_SOCKET_IFNAME": "e 0", "OMP_NUM_THREADS": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner.sys, "executable", "/bin/true")
    Path("hosts").write_text("203.0.113.1 slots=1\n203.0.113.2 slots=1\n")
    runner.main(["--hostfile", "hosts", "script.py"])
    command = stand_in.calls(variables)[-1][-1]
    assert " 'GLOO_SOCKET_IFNAME=e 0' " in command and " OMP_NUM_THREADS=3 " in command


@pytest.mark.parametrize("launcher", ["openmpi", "mvapich"])
def test_mpirun_gets_words_not_a_shell_line(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mpirun is started without a shell, so every value arrives in one word, as it stands."""
    from deepspeed.launcher import runner

    log = tmp_path / "words"
    for program in ("mpirun", "ompi_info", "mpiname"):
        path = tmp_path / "bin" / program
        path.parent.mkdir(exist_ok=True)
        lines = f"import json, sys; open({str(log)!r}, 'w').write(json.dumps(sys.argv[1:]))"
        answer = "print('MVAPICH2-GDR')" if program == "mpiname" else lines
        path.write_text(f"#!{sys.executable}\n{answer}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NCCL_PLANT", "$(touch pwned);x")
    monkeypatch.chdir(tmp_path)
    Path("hosts").write_text("203.0.113.1 slots=1\n203.0.113.2 slots=1\n")
    runner.main(["--launcher", launcher, "--hostfile", "hosts", "script.py", *PLANTS])
    words = json.loads(log.read_text())
    assert words[-len(PLANTS) :] == PLANTS and "NCCL_PLANT=$(touch pwned);x" in words
    assert list(tmp_path.rglob("pwned")) == []
