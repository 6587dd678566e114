#!/bin/bash
# A real Slurm of one node on this machine, and launch/slurm.sbatch on it: run, stopped by
# `scancel --signal=TERM`, requeued by itself, gone on to the end, compared with a run that nothing
# disturbed; then cancelled for good, and with one process killed. See README.md.
#
#     bash tests/cluster/slurm.sh [FOLDER]        (a fresh temporary one without)
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=${1:-$(mktemp -d /tmp/streamjax-slurm.XXXXXX)}
mkdir -p "$work"/{spool,state,munge,bin}
work=$(cd "$work" && pwd)
export SLURM_CONF=$work/slurm.conf

say() { printf '%4ss  %s\n' "$SECONDS" "$*"; }
fail() { say "FAILED: $*"; tail -n 20 "$work"/*.log "$work"/*.out 2> /dev/null || true; exit 1; }

for program in munged slurmctld slurmd sbatch scancel squeue scontrol srun; do
    PATH=$PATH:/usr/sbin command -v $program > /dev/null || {
        echo "no $program: apt-get install slurmctld slurmd slurm-client munge"; exit 2; }
done
[ "$(id -u)" = 0 ] || { echo "wanted: root"; exit 2; }
PATH=$PATH:/usr/sbin
python=${PYTHON:-python}
# What the job runs: the command of the README, from this checkout.
printf '#!/bin/sh\nexec %s -m streamjax "$@"\n' "$(command -v "$python")" > "$work/bin/streamjax"
chmod +x "$work/bin/streamjax"
export PATH=$work/bin:$PATH PYTHONPATH=$root JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2

pids=()
stop() {
    # What still runs ends before the daemons do, which would leave it behind.
    scancel --signal=KILL --full --user=root > /dev/null 2>&1 || true
    scancel --user=root > /dev/null 2>&1 || true
    for _ in $(seq 60); do
        [ -z "$(squeue --noheader 2> /dev/null)" ] && break
        sleep 0.5
    done
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do kill "${pids[i]}" 2> /dev/null || true; done
    wait || true
    say "Slurm stopped; what it wrote is in $work"
}
trap stop EXIT

# munged wants a key and folders that nobody else may write to.
dd if=/dev/urandom of="$work/munge/key" bs=1024 count=1 status=none
chmod 700 "$work/munge" && chmod 400 "$work/munge/key"
munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge/socket" \
    --pid-file="$work/munge/pid" --seed-file="$work/munge/seed" --log-file="$work/munge/log" \
    > "$work/munged.out" 2>&1 & pids+=($!)

host=$(hostname -s)
cat > "$SLURM_CONF" << EOF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
CredType=cred/munge
SlurmctldPort=26817
SlurmdPort=26818
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=30
SchedulerParameters=bf_interval=2,sched_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
EOF
slurmctld -D > "$work/slurmctld.out" 2>&1 & pids+=($!)
slurmd -D -N "$host" > "$work/slurmd.out" 2>&1 & pids+=($!)

for _ in $(seq 60); do
    sinfo --noheader --format=%T 2> /dev/null | grep -q idle && break
    sleep 0.5
done
sinfo --noheader --format=%T | grep -q idle || fail "the node did not come up"
say "Slurm $(sinfo --version | cut -d' ' -f2) is up: one node, two CPUs"

recipe=$root/tests/launch/recipe.py
submit() { # RUN [more] -> the job's number
    local run=$1; shift
    (cd "$work" && sbatch --parsable --ntasks-per-node=2 --gpus-per-node=0 --cpus-per-task=1 \
        --time=120 "$root/launch/slurm.sbatch" "$recipe" --run "$work/$run" "$@")
}
rows() { wc -l 2> /dev/null < "$work/$1/metrics.jsonl" || echo 0; }
until_rows() { # RUN ROWS
    for _ in $(seq 3000); do [ "$(rows "$1")" -ge "$2" ] && return; sleep 0.2; done
    fail "$1 did not come to $2 rows"
}
until_gone() { # JOB
    for _ in $(seq 3000); do [ -z "$(squeue --noheader --jobs="$1" 2> /dev/null)" ] && return; sleep 0.5; done
    fail "job $1 did not end: $(squeue --noheader --jobs="$1")"
}
inside() { (cd "$1" && echo *); }
requeues() { scontrol show job "$1" | grep -o 'Restarts=[0-9]*' | cut -d= -f2; }

# An undisturbed run for the comparison.
job=$(submit whole)
say "job $job: the run that nothing disturbs"
until_gone "$job"
[ "$(rows whole)" = 30 ] || fail "30 steps wanted, $(rows whole) found"
scontrol show job "$job" | grep -q 'JobState=COMPLETED' || fail "$(scontrol show job "$job")"

job=$(submit stopped pause=0.1)
until_rows stopped 4
say "job $job: $(rows stopped) rows, scancel --signal=TERM"
scancel --signal=TERM "$job"
# A requeued job waits two minutes by Slurm's rule (its begin time); here it may go on at once.
for _ in $(seq 1500); do
    squeue --noheader --format=%T --jobs="$job" 2> /dev/null | grep -q PENDING && break
    sleep 0.2
done
squeue --noheader --format=%T --jobs="$job" | grep -q PENDING || fail "job $job was not requeued"
at=$(rows stopped)
[ -d "$work/stopped/checkpoints/$at" ] || fail "no checkpoint of step $at"
[ "$at" -lt 30 ] || fail "the run had ended before the signal"
grep -q "stopped at step $at of 30 and saved it" "$work/streamjax-$job.log" || fail "nothing said"
say "job $job: stopped at step $at, checkpoint there, requeued (restarts=$(requeues "$job"))"
scontrol update jobid="$job" starttime=now
until_gone "$job"
[ "$(requeues "$job")" = 1 ] || fail "restarts=$(requeues "$job"), wanted 1"
grep -q "step $at of 30, compiling" "$work/streamjax-$job.log" || fail "it did not go on at $at"

"$python" - "$work/whole/metrics.jsonl" "$work/stopped/metrics.jsonl" << 'EOF' || fail "other numbers"
import json, sys

told = "step loss grad_norm lr share tp fp fn skipped".split()  # the rest are clocks
runs = [[json.loads(line) for line in open(file)] for file in sys.argv[1:]]
whole, stopped = ([{key: row[key] for key in told} for row in run] for run in runs)
assert [row["step"] for row in whole] == [*range(1, 31)]
assert stopped == whole, [pair for pair in zip(stopped, whole) if pair[0] != pair[1]][0]
EOF
say "job $job: went on to step 30; all 30 rows are those of the undisturbed run, bit for bit"

job=$(submit cancelled pause=0.3)
until_rows cancelled 2
say "job $job: $(rows cancelled) rows, scancel"
scancel "$job"
until_gone "$job"
sleep 3
[ -z "$(squeue --noheader --jobs="$job" 2> /dev/null)" ] || fail "a cancelled job came back"
scontrol show job "$job" | grep -q 'JobState=CANCELLED' || fail "$(scontrol show job "$job")"
[ "$(requeues "$job")" = 0 ] || fail "a cancelled job was requeued"
say "job $job: cancelled, and stayed so; in checkpoints/: $(inside "$work/cancelled/checkpoints")"

job=$(submit killed pause=0.1 checkpoint.every=2)
until_rows killed 4
for pid in $(pgrep -f "^$(command -v "$python") -m streamjax train .*$work/killed"); do
    tr '\0' '\n' < "/proc/$pid/environ" | grep -qx SLURM_PROCID=1 && kill -KILL "$pid" && break
done
began=$SECONDS
until_gone "$job"
scontrol show job "$job" | grep -q 'JobState=FAILED' || fail "$(scontrol show job "$job")"
[ "$(requeues "$job")" = 0 ] || fail "a job whose process was killed was requeued"
say "job $job: one process killed, the job failed after $((SECONDS - began)) s and stayed so;" \
    "in checkpoints/: $(inside "$work/killed/checkpoints")"
say "passed"
