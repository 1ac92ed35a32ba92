"""Keys and settings of ssh for hosts of namespaces: made for one cluster, known to no other."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping

from dsmoe.common.errors import EnvironmentProblem
from dsmoe.hosts.spaces.guardian import run_tool, tool

PORT = 2222
TOOLS = ("sshd", "ssh", "ssh-keygen", "pdsh", "mount")

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


def make_keys(folder: Path) -> dict[str, str]:
    """The text of a host key and a client key, and of their public halves."""
    files = {}
    for name in ("host_key", "client_key"):
        options = ("-q", "-t", "ed25519", "-N", "", "-f")
        done = run_tool("ssh-keygen", *options, str(folder / name))
        if done.returncode:
            raise EnvironmentProblem(
                f"ssh-keygen made no key ({' '.join(done.stderr.split())[:200]}); see whether "
                "`ssh-keygen -t ed25519` works here"
            )
        files[name] = (folder / name).read_text()
        files[f"{name}.pub"] = (folder / f"{name}.pub").read_text()
    return files


def write_settings(
    folder: Path,
    keys: Mapping[str, str],
    addresses: Mapping[str, str],
    environment: Mapping[str, str],
) -> None:
    """What a host has as /etc/ssh; every login there gets ``environment``.

    bash reads ~/.bashrc in a login by ssh, but not below another shell (SHLVL). The user's shell
    has read it, and what it does may do harm where a host is ended in the middle: ``pyenv init``
    leaves a lock that the user's next shells wait for.
    """
    folder.mkdir(parents=True)
    known = "".join(
        f"[{name}]:{PORT} {keys['host_key.pub']}" for pair in addresses.items() for name in pair
    )
    variables = " ".join(f"{name}={value}" for name, value in {"SHLVL": "1", **environment}.items())
    files = {
        "host_key": keys["host_key"],
        "client_key": keys["client_key"],
        "authorized_keys": keys["client_key.pub"],
        "known_hosts": known,
        "sshd_config": SSHD + f"SetEnv {variables}\n",
        "ssh_config": SSH,
    }
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)


def daemon() -> list[str]:
    """The command of a host's sshd, which stays in the foreground.

    sshd wants /run/sshd; this /run is that of its own mount namespace.
    """
    start = f"mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec {tool('sshd')} -D"
    return ["sh", "-c", start]
