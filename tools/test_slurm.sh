#!/bin/sh
# Starts a Slurm of one node in a temporary folder, runs tests/slurm/drive.py on it, and ends it again.
# `make test-slurm` calls it. Needs root; Slurm and munge are installed from Debian's or Ubuntu's packages if missing.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}

skip() { echo "test-slurm: SKIPPED, nothing was tested: $*" >&2; exit 0; }
fail() { echo "test-slurm: $*" >&2; tail -n 20 "$work"/*.log >&2; exit 1; }

[ "$(uname)" = Linux ] || skip "Slurm runs on Linux"
[ "$(id -u)" = 0 ] || skip "starting a Slurm of its own takes root"
missing=
for program in munged slurmctld slurmd sbatch; do command -v $program >/dev/null || missing=$program; done
if [ "$missing" ]; then
    command -v apt-get >/dev/null || skip "Slurm is not installed, and there is no apt-get to install it with"
    echo "test-slurm: installing slurm-wlm and munge"
    export DEBIAN_FRONTEND=noninteractive
    packages="-y -qq --no-install-recommends slurm-wlm munge"
    # shellcheck disable=SC2086
    apt-get install $packages >/dev/null 2>&1 || { apt-get update -qq && apt-get install $packages >/dev/null; }
fi

work=$(mktemp -d)
export SLURM_CONF="$work/slurm.conf"
pids=
finish() {
    set +e
    if [ "$(sinfo -h -o %t 2>/dev/null)" ]; then # no job outlives its Slurm
        scancel --user=root 2>/dev/null || true
        for _ in $(seq 60); do [ "$(squeue -h 2>/dev/null)" ] || break; sleep 0.5; done
    fi
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    for pid in $pids; do
        for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" 2>/dev/null || break; sleep 0.5; done
        kill -9 "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP PIPE

free_port() { "$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }
host=$(hostname -s)
mkdir "$work/state" "$work/spool"
dd if=/dev/urandom of="$work/munge.key" bs=128 count=1 2>/dev/null
chmod 600 "$work/munge.key"
chmod 755 "$work"

# cred_expire is also how long a job that is queued again has to wait.
cat >"$work/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket,cred_expire=5
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=3
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN)
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
END

munged --foreground --force --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munged.pid" \
    --log-file="$work/munged.log" --seed-file="$work/munged.seed" >"$work/munged.out.log" 2>&1 &
pids="$!"
for _ in $(seq 50); do [ -S "$work/munge.socket" ] && break; sleep 0.1; done
slurmctld -D -i >"$work/slurmctld.out.log" 2>&1 &
pids="$! $pids"
slurmd -D >"$work/slurmd.out.log" 2>&1 &
pids="$! $pids"
for _ in $(seq 100); do [ "$(sinfo -h -o %t 2>/dev/null)" = idle ] && break; sleep 0.2; done
[ "$(sinfo -h -o %t 2>/dev/null)" = idle ] || fail "Slurm did not come up"

# Every job imports torch, some ten times in all: compiled once, that is half a minute less.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$work/pycache" PYTHONPATH="$PWD"
"$PYTHON" tests/slurm/drive.py "$work" || fail "failed"
"$PYTHON" tests/slurm/shared.py "$work" || fail "failed"
