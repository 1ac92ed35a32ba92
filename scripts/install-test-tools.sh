#!/usr/bin/env bash
# Installs what some tests need: for several hosts ip, sshd, pdsh, Slurm and munge, mpirun; for the
# report's page Chromium and npm; for the wheel a Python that every user may run. Only as root on a
# system with apt-get; elsewhere it says so and ends well, and the tests say what they need.
set -euo pipefail
say() { printf '%s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

hosts="" page="" python=""
has ip || hosts="$hosts iproute2"
[ -x /usr/sbin/sshd ] || has sshd || hosts="$hosts openssh-server"
has ssh || hosts="$hosts openssh-client"
has pdsh || hosts="$hosts pdsh"
{ [ -x /usr/sbin/slurmctld ] && [ -x /usr/sbin/slurmd ] && has srun; } || hosts="$hosts slurm-wlm"
[ -x /usr/sbin/munged ] || hosts="$hosts munge"
has mpirun || hosts="$hosts openmpi-bin"
has chromium || has chromium-browser || has google-chrome || page="$page chromium"
has npm || page="$page npm"
/usr/bin/python3 -c 'import venv, ensurepip' 2>/dev/null || python=" python3-venv"
[ -n "$hosts$page$python" ] || exit 0
if [ "$(id -u)" != 0 ] || ! has apt-get; then
    say "not installed:$hosts$page$python (needs root and apt-get)"
    exit 0
fi
say "== packages for the tests:$hosts$page$python"
export DEBIAN_FRONTEND=noninteractive
# The tests start their own sshd, slurmd and munged; the packages shall start none for this machine.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
install() { # WHAT IS NOT TESTED THEN, PACKAGE...: alone, so that one unknown name costs no other
    local without=$1
    shift
    [ "$#" != 0 ] || return 0
    apt-get install -y -q --no-install-recommends "$@" >&2 || say "apt-get could not install $*; $without"
}
apt-get update -q >&2 || say "apt-get update failed; its lists are the old ones"
# shellcheck disable=SC2086  # lists of words
{
    install "tests over several hosts are skipped" $hosts
    install "make test-report will say what it lacks" $page
    install "make test-wheel may find no Python for a user who is not root" $python
}
