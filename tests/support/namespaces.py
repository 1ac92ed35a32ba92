"""Hosts made of network namespaces on this machine, each with its own sshd and address.

``Cluster(4)`` makes four hosts and a switch (a bridge in a namespace of its own), joined by veth
pairs; nothing is made in the machine's own namespace. ``ip netns exec`` puts the files of
/etc/netns/NAME over those of /etc: hosts, and ssh/ with keys made for this cluster alone.

A guardian process holds a pipe from the owner and removes everything when that closes, so also
when the owner is killed; what a killed guardian leaves is swept by the next cluster.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Sequence

PREFIX = "dsmoe"
RUN_NETNS = Path("/run/netns")
ETC_NETNS = Path("/etc/netns")
PORT = 2222
TOOLS = ("ip", "sshd", "ssh", "ssh-keygen", "pdsh", "mount")

SSHD = f"""\
Port {PORT}
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PidFile none
LogLevel ERROR
MaxStartups 100
"""
SSH = f"""\
Host *
  Port {PORT}
  IdentityFile /etc/ssh/client_key
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile /etc/ssh/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  LogLevel ERROR
"""


def unavailable() -> str | None:
    """Why no cluster can be made here, or None."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    missing = [tool for tool in TOOLS if _tool(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (scripts/install-test-tools.sh)"
    name = f"{PREFIX}-{_owner(os.getpid())}-try"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "add", "name", "try0", "type", "bridge")
            _ip("-n", name, "link", "add", "name", "try1", "type", "veth", "peer", "name", "try2")
            _ip("netns", "exec", name, "true")
        finally:
            _ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"the kernel refuses network namespaces: {error.stderr.strip()[:200]}"
    return None


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _ip(*words: str) -> str:
    done = subprocess.run([str(_tool("ip")), *words], capture_output=True, text=True, check=True)
    return done.stdout


def _owner(pid: int) -> str | None:
    """PID and start time: the name of a process that no later one shares; None if it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return f"{pid}-{fields[19]}"


class Cluster:
    """``count`` hosts named ``n1``, ``n2``, … at 10.77.0.1, …; n1 is where commands run."""

    def __init__(self, count: int) -> None:
        sweep_dead()
        self.owner = str(_owner(os.getpid()))
        self.names = [f"n{number}" for number in range(1, count + 1)]
        self._guardian = subprocess.Popen(
            [sys.executable, __file__, self.owner], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def space(self, host: str) -> str:
        return f"{PREFIX}-{self.owner}-{host}"

    def address(self, host: str) -> str:
        return f"10.77.0.{host[1:]}"

    def _make(self) -> None:
        switch = self.space("switch")
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        keys = self._keys()
        for host in self.names:
            space = self.space(host)
            self._etc(space, keys)
            _ip("netns", "add", space)
            words = ["type", "veth", "peer", "name", "eth0", "netns", space]
            _ip("-n", switch, "link", "add", host, *words)
            _ip("-n", switch, "link", "set", host, "master", "bridge", "up")
            _ip("-n", space, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")
            # sshd wants /run/sshd; this /run is that of its own mount namespace.
            start = f"mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec {_tool('sshd')} -D"
            self.start(host, ["sh", "-c", start], stdout=subprocess.DEVNULL)
        for host in self.names:
            self._wait_for_ssh(host)

    def _keys(self) -> dict[str, str]:
        folder = ETC_NETNS / self.space("switch")
        folder.mkdir(parents=True)
        files = {}
        for name in ("host_key", "client_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
            files[name] = (folder / name).read_text()
            files[f"{name}.pub"] = (folder / f"{name}.pub").read_text()
        return files

    def _etc(self, space: str, keys: dict[str, str]) -> None:
        ssh = ETC_NETNS / space / "ssh"
        ssh.mkdir(parents=True)
        table = "".join(f"{self.address(host)} {host}\n" for host in self.names)
        (ETC_NETNS / space / "hosts").write_text(f"127.0.0.1 localhost\n{table}")
        known = "".join(
            f"[{name}]:{PORT} {keys['host_key.pub']}"
            for host in self.names
            for name in (host, self.address(host))
        )
        files = {
            "host_key": keys["host_key"],
            "client_key": keys["client_key"],
            "authorized_keys": keys["client_key.pub"],
            "known_hosts": known,
            "sshd_config": SSHD,
            "ssh_config": SSH,
        }
        for name, text in files.items():
            (ssh / name).write_text(text)
            (ssh / name).chmod(0o600)

    def _wait_for_ssh(self, host: str) -> None:
        deadline = time.monotonic() + 10
        while True:
            done = self.run(self.names[0], ["ssh", "-o", "BatchMode=yes", host, "true"])
            if done.returncode == 0:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"sshd of {host} does not answer: {done.stderr}")
            time.sleep(0.1)

    def start(self, host: str, command: Sequence[str], **more: Any) -> subprocess.Popen[str]:
        """``command`` on ``host``, in a session of its own, without waiting for it."""
        words = [str(_tool("ip")), "netns", "exec", self.space(host), *command]
        more.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(words, start_new_session=True, text=True, **more)

    def run(
        self, host: str, command: Sequence[str], timeout: float = 60, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = self.start(host, command, **pipes, **more)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def plug(self, host: str, state: str) -> None:
        """``down`` pulls the host's cable out of the switch, ``up`` puts it back."""
        _ip("-n", self.space("switch"), "link", "set", host, state)

    def processes(self, host: str, word: str) -> list[str]:
        """The command lines on ``host`` that contain ``word``."""
        return [line for _, line in _processes(self.space(host)) if word in line]

    def close(self) -> None:
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        self._guardian.wait(timeout=60)


def _processes(space: str) -> list[tuple[int, str]]:
    found = []
    for pid in map(int, _ip("netns", "pids", space).split()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found.append((pid, b" ".join(words).decode("utf-8", "replace")))
    return found


def sweep(owner: str) -> None:
    """Remove the namespaces of ``owner``, all that runs in them, and their files."""
    folders = [*RUN_NETNS.glob(f"{PREFIX}-{owner}-*"), *ETC_NETNS.glob(f"{PREFIX}-{owner}-*")]
    for space in sorted({path.name for path in folders}):
        if (RUN_NETNS / space).exists():
            deadline = time.monotonic() + 10
            while (alive := _processes(space)) and time.monotonic() < deadline:
                for pid, _ in alive:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                time.sleep(0.05)
            subprocess.run([str(_tool("ip")), "netns", "del", space], capture_output=True)
        shutil.rmtree(ETC_NETNS / space, ignore_errors=True)
    if ETC_NETNS.is_dir() and not any(ETC_NETNS.iterdir()):
        ETC_NETNS.rmdir()


def sweep_dead() -> None:
    """Remove what clusters of processes that are gone have left."""
    for folder in (RUN_NETNS, ETC_NETNS):
        for path in folder.glob(f"{PREFIX}-*-*-*"):
            found = re.fullmatch(rf"{PREFIX}-((\d+)-\d+)-\w+", path.name)
            if found and _owner(int(found[2])) != found[1]:
                sweep(found[1])


if __name__ == "__main__":
    # The guardian: ends when its standard input does, whatever became of the owner.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    sweep(sys.argv[1])
