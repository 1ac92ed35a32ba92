"""Hosts made of network and UTS namespaces on this machine, each with its own name and address.

``HostCluster(4)`` makes four hosts and a switch (a bridge in a namespace of its own), joined by
veth pairs; nothing is made in the machine's own namespace. ``ip netns exec`` puts the files of
/etc/netns/NAME over those of /etc: hosts, and ssh/ with keys made for this cluster alone.
Commands reach other hosts by real ssh and pdsh where these are installed, else by entry.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any, Mapping, Sequence

from dsmoe.common.errors import EnvironmentProblem
from dsmoe.hosts.spaces import entry, guardian, ssh
from dsmoe.hosts.spaces.guardian import ETC_NETNS, RUN_NETNS, ip, owner_of, space_of, tool
from dsmoe.hosts.spaces.link import Link

TOOLS = ("ip", "unshare", "sh")
# What the hosts call their end of the link.
INTERFACE = "eth0"
_SSH_SECONDS = 10


def unavailable(tools: Sequence[str] = ()) -> str | None:
    """Why no cluster can be made here, or None; ``tools`` are needed beside its own."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    missing = [name for name in (*TOOLS, *tools) if tool(name) is None]
    if missing:
        return (
            f"not installed: {', '.join(missing)} (Debian: iproute2, util-linux, openssh-server, "
            "pdsh)"
        )
    name = space_of(str(owner_of(os.getpid())), "try")
    try:
        ip("netns", "add", name)
        try:
            ip("-n", name, "link", "add", "name", "try0", "type", "bridge")
            ip("-n", name, "link", "add", "name", "try1", "type", "veth", "peer", "name", "try2")
            ip("netns", "exec", name, "unshare", "--uts", "true")
        finally:
            ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"the kernel refuses network namespaces: {error.stderr.strip()[:200]}"
    return None


class HostCluster:
    """``count`` hosts named ``n1``, ``n2``, … at 10.77.0.1, …; n1 is where commands run.

    ``environment``: variables of each host, by its name, for what is started there.
    ``link`` is that of every host. ``with_ssh`` None: where ssh and pdsh are installed. Raises
    EnvironmentProblem where the link cannot be made.
    """

    def __init__(
        self,
        count: int,
        link: Link | None = None,
        environment: Mapping[str, Mapping[str, str]] | None = None,
        with_ssh: bool | None = None,
    ) -> None:
        guardian.sweep_dead()
        self.owner = str(owner_of(os.getpid()))
        self.names = [f"n{number}" for number in range(1, count + 1)]
        self.link = link or Link()
        self.environment = {name: dict((environment or {}).get(name, {})) for name in self.names}
        installed = all(tool(name) for name in ssh.TOOLS)
        self.with_ssh = installed if with_ssh is None else with_ssh
        if (RUN_NETNS / self.space("switch")).exists():
            raise EnvironmentProblem("this process has a cluster already; close that one first")
        self._bin = ETC_NETNS / self.space("switch") / "bin"
        self._guardian = subprocess.Popen(
            [sys.executable, guardian.__file__, self.owner],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._make()
        except BaseException as error:
            self.close()
            if isinstance(error, subprocess.CalledProcessError):
                said = " ".join((error.stderr or "").split())[:200]
                raise EnvironmentProblem(
                    f"{' '.join(error.cmd)[:100]}: {said or error.returncode}; expected a machine "
                    "where root may make network namespaces"
                ) from error
            raise

    def space(self, host: str) -> str:
        """The name of the host's network namespace."""
        return space_of(self.owner, host)

    def address(self, host: str) -> str:
        return f"10.77.0.{host[1:]}"

    def _make(self) -> None:
        switch = self.space("switch")
        (ETC_NETNS / switch).mkdir(parents=True)
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        keys = ssh.make_keys(ETC_NETNS / switch) if self.with_ssh else None
        for host in self.names:
            self._make_host(host, switch, keys)
        if self.with_ssh:
            for host in self.names:
                self._wait_for_ssh(host)
            return
        hosts = {
            name: {
                "enter": self.enter(name),
                "address": self.address(name),
                "environment": self.environment[name],
            }
            for name in self.names
        }
        entry.install(self._bin, hosts)

    def _make_host(self, host: str, switch: str, keys: Mapping[str, str] | None) -> None:
        space = self.space(host)
        addresses = {name: self.address(name) for name in self.names}
        (ETC_NETNS / space).mkdir(parents=True)
        table = "".join(f"{address} {name}\n" for name, address in addresses.items())
        (ETC_NETNS / space / "hosts").write_text(f"127.0.0.1 localhost\n{table}")
        if keys:
            folder = ETC_NETNS / space / "ssh"
            ssh.write_settings(folder, keys, addresses, self.environment[host])
        ip("netns", "add", space)
        words = ["type", "veth", "peer", "name", INTERFACE, "netns", space]
        ip("-n", switch, "link", "add", host, *words)
        ip("-n", switch, "link", "set", host, "master", "bridge", "up")
        ip("-n", space, "addr", "add", f"{self.address(host)}/24", "dev", INTERFACE)
        ip("-n", space, "link", "set", INTERFACE, "up")
        ip("-n", space, "link", "set", "lo", "up")
        self.link.apply(space, INTERFACE, leaves_host=True)
        self.link.apply(switch, host, leaves_host=False)
        if keys:
            self.start(host, ssh.daemon(), stdout=subprocess.DEVNULL)

    def _wait_for_ssh(self, host: str) -> None:
        deadline = time.monotonic() + _SSH_SECONDS
        while True:
            done = self.run(self.names[0], ["ssh", "-o", "BatchMode=yes", host, "true"])
            if done.returncode == 0:
                return
            if time.monotonic() > deadline:
                said = " ".join(done.stderr.split())[:200]
                raise EnvironmentProblem(f"sshd of {host} does not answer ({said}); try again")
            time.sleep(0.1)

    def enter(self, host: str) -> list[str]:
        """The words before a command that runs it on ``host``."""
        named = f'echo {host} > /proc/sys/kernel/hostname && exec "$@"'
        space = ["netns", "exec", self.space(host), "unshare", "--uts", "sh", "-c", named, "sh"]
        return [str(tool("ip")), *space]

    def variables(self, host: str, environment: Mapping[str, str]) -> dict[str, str]:
        """``environment`` for a command on ``host``, with its own variables and its ssh.

        Without NCCL_HOSTID: the launcher hands the variables of NCCL on to every host, which has
        this one from its own login.
        """
        own = {k: v for k, v in self.environment[host].items() if k != "NCCL_HOSTID"}
        found = {**environment, **own}
        if not self.with_ssh:
            found["PATH"] = f"{self._bin}{os.pathsep}{found.get('PATH', os.defpath)}"
        return found

    def start(self, host: str, command: Sequence[str], **more: Any) -> subprocess.Popen[str]:
        """``command`` on ``host``, in a session of its own, without waiting for it."""
        more.setdefault("stdin", subprocess.DEVNULL)
        more["env"] = self.variables(host, more.get("env") or os.environ)
        return subprocess.Popen(
            [*self.enter(host), *command], start_new_session=True, text=True, **more
        )

    def run(
        self, host: str, command: Sequence[str], timeout: float = 60, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """``command`` on ``host`` and what it printed."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = self.start(host, command, **pipes, **more)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def plug(self, host: str, state: str) -> None:
        """``down`` pulls the host's cable out of the switch, ``up`` puts it back."""
        ip("-n", self.space("switch"), "link", "set", host, state)

    def processes(self, host: str, word: str) -> list[str]:
        """The command lines on ``host`` that contain ``word``."""
        return [line for _, line in guardian.processes(self.space(host)) if word in line]

    def close(self) -> None:
        """End all that runs on the hosts, and remove them."""
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        self._guardian.wait(timeout=60)
