#!/usr/bin/env bash
# Installs what the tests over several hosts need: ip, sshd, pdsh, Slurm and munge, mpirun. Only
# as root on a system with apt-get; elsewhere it says so and ends well, and those tests are skipped with
# their reason.
set -euo pipefail
say() { printf '%s\n' "$*" >&2; }

packages=""
command -v ip >/dev/null 2>&1 || packages="$packages iproute2"
[ -x /usr/sbin/sshd ] || command -v sshd >/dev/null 2>&1 || packages="$packages openssh-server"
command -v ssh >/dev/null 2>&1 || packages="$packages openssh-client"
command -v pdsh >/dev/null 2>&1 || packages="$packages pdsh"
{ [ -x /usr/sbin/slurmctld ] && [ -x /usr/sbin/slurmd ] && command -v srun >/dev/null 2>&1; } ||
    packages="$packages slurm-wlm"
[ -x /usr/sbin/munged ] || packages="$packages munge"
command -v mpirun >/dev/null 2>&1 || packages="$packages openmpi-bin"
[ -n "$packages" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    say "not installed:$packages (needs root and apt-get); tests over several hosts are skipped"
    exit 0
fi
say "== packages for the tests over several hosts:$packages"
export DEBIAN_FRONTEND=noninteractive
# The tests start their own sshd, slurmd and munged; the packages shall start none for this machine.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
# shellcheck disable=SC2086  # a list of words
if ! { apt-get update -q && apt-get install -y -q --no-install-recommends $packages; } >&2; then
    say "apt-get could not install$packages; tests over several hosts are skipped"
fi
