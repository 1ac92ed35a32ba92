"""``dsmoe bench --hosts`` on real namespaces: bytes by the link's counters, and what is left after.

Bytes are compared with arithmetic over the collectives of a step, never with an earlier run.
"""

from __future__ import annotations

import itertools
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import ROOT
from support.cluster_runs import DSMOE

from dsmoe.benchmark.cases.suites import find_case
from dsmoe.hosts.spaces import guardian, ssh
from dsmoe.hosts.spaces.namespace_cluster import unavailable

# A machine under load takes its time to start.
SECONDS = 500
PARAMETERS = find_case("smoke", 2).model.parameter_count
# Headers, acknowledgements, gradient norms and the losses: under 1 % at this size.
OVERHEAD = 0.03


@pytest.fixture(autouse=True, scope="module")
def possible() -> None:
    reason = unavailable()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("All work and no play makes Jack a dull boy.\n" * 400)
    return path


def command(text: Path, output: Path, *words: str) -> list[str]:
    short = ["--steps", "2", "--data", str(text), "--output", str(output)]
    return [*DSMOE, "bench", "--hosts", "2", *words, *short]


def bench(text: Path, output: Path, *words: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        command(text, output, "--json", *words),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


# Two hosts, one reduction and one gather in fp32: each sends half of the sums, and half of the
# weights, where that is all that it need send; gloo's all-reduce sends the sums whole.
ONE_EXCHANGE = PARAMETERS * 4 * (0.5 + 0.5)
ONE_REDUCTION = PARAMETERS * 4 * (1 + 0.5)
PLAIN = ["--expert-parallel", "1", "--rate", "1gbit", "--global-batch", "8"]
PLAIN += ["--micro-batches", "4", "--setting", "zero-stage=1"]


def test_bytes_of_two_hosts_are_those_of_the_collectives(text: Path, tmp_path: Path) -> None:
    """One reduction and one gather, whatever the micro-batches; on two hosts that is the choice."""
    [once] = bench(text, tmp_path, *PLAIN)
    assert (once["case"]["reduce"], once["case"]["reduce_reason"]) == ("step", "2 hosts")
    assert once["micro_batches"] == 4 and once["rate"] == "1gbit"
    for direction in ("bytes_sent", "bytes_received"):
        assert once[direction] == pytest.approx([ONE_EXCHANGE] * 2, rel=OVERHEAD)
    assert once["n"] == 2 and once["seconds"] > 0 and len(once["losses"]) == 3


def test_two_hosts_of_two_send_every_gradient_once(text: Path, tmp_path: Path) -> None:
    """Half of the sums and half of the weights, as with one process a host, for 4 micro-batches."""
    words = ["--per-host", "2", "--precision", "bf16", "--micro-batches", "4"]
    [found] = bench(text, tmp_path, *words, "--global-batch", "16")
    for direction in ("bytes_sent", "bytes_received"):
        assert found[direction] == pytest.approx([ONE_EXCHANGE / 2] * 2, rel=OVERHEAD)
    assert found["expert_parallel"] == 2 and found["case"]["reduce"] == "step"


@pytest.mark.slow
def test_what_two_hosts_of_two_send_by_each_way(text: Path, tmp_path: Path) -> None:
    """Not by hosts, gloo sends 0.75 to 1 of the sums for 0.5; int8 is about half of 16 bit."""
    words = ["--per-host", "2", "--precision", "bf16", "--micro-batches", "1,8"]
    settings = ("", "reduce=step no-hierarchical", "reduce=step reduce-dtype=int8")
    found = bench(text, tmp_path, *words, *itertools.chain(*(("--setting", s) for s in settings)))
    for one, eight in zip(found[::2], found[1::2]):
        assert min(one["bytes_sent"]) > 0
        assert max(eight["bytes_sent"]) <= 1.05 * min(one["bytes_sent"])
    by_hosts, by_owner, int8 = (sum(f["bytes_sent"]) for f in found[::2])
    assert 1.3 < by_owner / by_hosts < 1.6
    assert int8 < 0.6 * by_hosts


@pytest.mark.slow
def test_bytes_grow_with_the_micro_batches_of_the_bases_zero(text: Path, tmp_path: Path) -> None:
    """The base's ZeRO-2 reduces every micro-batch."""
    once, each = bench(text, tmp_path, *PLAIN, "--setting", "no-flat-gradients")
    # a process keeps half of every sum: it sends at least the other half, four times
    assert min(each["bytes_sent"]) > PARAMETERS * 4 * (4 * 0.5 + 0.5)
    assert each["losses"] == pytest.approx(once["losses"], rel=1e-4)


@pytest.mark.long
def test_a_pipeline_sends_the_hidden_states_of_its_boundary(text: Path, tmp_path: Path) -> None:
    """2 x 2, a stage a host: each token's hidden state goes over the link once forward and its
    gradient once back, and half of the tied embedding's sum each way twice; nothing grows with the
    micro-batches, and what a stage reduces stays inside its host (guide/pipeline.md)."""
    words = ["--per-host", "2", "--rate", "1gbit", "--micro-batches", "8"]
    [found] = bench(text, tmp_path, *words, "--pipeline", "2")
    model, batch = find_case("smoke", 4).model, found["global_batch_size"]
    hidden = batch * model.sequence_length * model.hidden_size * 4
    tied = model.vocab_size * model.hidden_size * 4
    for direction in ("bytes_sent", "bytes_received"):
        assert found[direction] == pytest.approx([hidden + tied] * 2, rel=0.05)
    assert found["case"]["parallel"]["pipeline_parallel_size"] == 2
    assert found["expert_parallel"] == 2 and len(found["losses"]) == 3


def across_hosts(
    text: Path, output: Path, each: int, *settings: str
) -> tuple[float, list[dict[str, Any]]]:
    """Bytes that the warning says for a host, and the records; ``each`` processes on 2 hosts.

    The last setting has an expert group of all of them.
    """
    words = ["--per-host", str(each), "--global-batch", "8", *settings]
    words += [f"--setting=expert-parallel={2 * each}"]
    done = subprocess.run(
        command(text, output, *words), cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    table = done.stdout[done.stdout.index("sent, MB") : done.stdout.index("on cpu, torch")]
    assert max(map(len, table.splitlines())) <= 80
    warning = f"warning: the experts of a layer are on {2 * each} processes of 2 hosts"
    assert done.stdout.count(warning) == 1
    warned = float(done.stdout.split("each host sends ")[1].split(" MiB")[0]) * 2**20
    return warned, [json.loads(line) for line in (output / "results_e2e.jsonl").open()]


@pytest.mark.long
def test_experts_over_two_hosts_send_the_tokens_that_the_warning_says(
    text: Path, tmp_path: Path
) -> None:
    """2 x 1 in one group; beside its tokens a host sends at most a reduction of the whole model."""
    warned, [across] = across_hosts(text, tmp_path, 1)
    assert across["case"]["parallel"]["expert_parallel_size"] == 2
    assert warned < min(min(host) for host in across["link"]["sent"])
    assert max(max(host) for host in across["link"]["sent"]) < warned + ONE_REDUCTION


@pytest.mark.slow
def test_experts_inside_a_host_send_no_tokens_to_the_other(text: Path, tmp_path: Path) -> None:
    """2 x 2: the size for the hosts is 2; a group of 4 spans them, with a warning, in two steps."""
    warned, [inside, across] = across_hosts(text, tmp_path, 2, "--hierarchical", "--setting", "")
    assert across["kernels"] == {"exchange": "gloo in a host, gloo between"}
    assert not inside["kernels"]
    assert [r["case"]["parallel"]["expert_parallel_size"] for r in (inside, across)] == [2, 4]
    assert across["losses"] == pytest.approx(inside["losses"], rel=1e-4)
    # Beside its tokens a host sends and receives what it does inside, but for the experts'
    # gradients and weights, which have no copy left: three quarters of the model are experts.
    tokens = min(min(host) for host in across["link"]["sent"])
    assert warned < tokens < warned + max(max(host) for host in inside["link"]["sent"])


def left_of(pid: int) -> list[str]:
    folders = (guardian.RUN_NETNS, guardian.ETC_NETNS)
    return [p.name for folder in folders for p in folder.glob(f"{guardian.PREFIX}-{pid}-*")]


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGKILL]
)
def test_nothing_is_left_of_a_run_that_was_ended(
    number: signal.Signals, text: Path, tmp_path: Path
) -> None:
    started = subprocess.Popen(
        [*command(text, tmp_path), "--steps", "100000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert started.stdout is not None
        for line in started.stdout:  # as soon as the processes are starting
            if line.startswith("== 1 of 1"):
                break
        spaces = [name for name in left_of(started.pid) if name.endswith(("n1", "n2"))]
        assert spaces
        deadline = time.monotonic() + SECONDS
        while not (inside := [p for name in set(spaces) for p, _ in guardian.processes(name)]):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        started.send_signal(number)
        started.communicate(timeout=SECONDS)
        deadline = time.monotonic() + SECONDS
        while left_of(started.pid) or any(Path(f"/proc/{pid}").exists() for pid in inside):
            assert time.monotonic() < deadline, left_of(started.pid)
            time.sleep(0.2)
    finally:
        started.kill()
    assert started.returncode in (-number, 128 + number)


def test_a_launcher_in_each_namespace_where_ssh_is_not_there(tmp_path: Path) -> None:
    """The product's launcher starts a program on both hosts, each with its name and variables."""
    program = tmp_path / "say.py"
    program.write_text(
        "import os, socket\n"
        "print('SAID', os.environ['RANK'], socket.gethostname(), os.environ['NCCL_HOSTID'])\n"
    )
    (tmp_path / "hosts").write_text("n1 slots=1\nn2 slots=1\n")
    script = f"""
import sys
from dsmoe.hosts.spaces.namespace_cluster import HostCluster
names = {{name: {{"NCCL_HOSTID": "id-" + name}} for name in ("n1", "n2")}}
cluster = HostCluster(2, environment=names, with_ssh=False)
try:
    words = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", "hosts", "say.py"]
    done = cluster.run("n1", words, cwd={str(tmp_path)!r}, timeout=200)
    print(done.stdout, done.stderr)
finally:
    cluster.close()
sys.exit(done.returncode)
"""
    paths = [str(ROOT / "build" / "DeepSpeed"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = {line.split("SAID ")[1].strip() for line in done.stdout.splitlines() if "SAID " in line}
    assert said == {"0 n1 id-n1", "1 n2 id-n2"}


LOGIN = """
import sys
from dsmoe.hosts.spaces.namespace_cluster import HostCluster
made = HostCluster(1, environment={"n1": {"HOME": sys.argv[1]}}, with_ssh=True)
try:
    done = made.run("n1", ["ssh", "-o", "BatchMode=yes", "n1", "echo in $HOME"])
    print(done.stdout, done.stderr)
finally:
    made.close()
"""


def test_a_login_on_a_host_reads_no_file_of_the_users_shell(tmp_path: Path) -> None:
    """pyenv's lock outlived a host that was ended while ~/.bashrc ran, and the next logins hung."""
    if unavailable(ssh.TOOLS) or pwd.getpwuid(os.getuid()).pw_shell != "/bin/bash":
        pytest.skip("needs sshd, and bash as the user's shell")
    (tmp_path / ".bashrc").write_text(f"touch {tmp_path}/was-read\n")
    command = [sys.executable, "-c", LOGIN, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[:2] == ["in", str(tmp_path)], done.stdout + done.stderr
    assert not (tmp_path / "was-read").exists()
