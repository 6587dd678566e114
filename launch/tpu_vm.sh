#!/bin/bash
# One run on a Cloud TPU pod slice of TPU VMs: `streamjax train` on every host, from your machine.
#
#     TPU=my-pod ZONE=us-west4-a bash launch/tpu_vm.sh RECIPE [key=value ...] [--run FOLDER]
#     TPU=my-pod ZONE=us-west4-a bash launch/tpu_vm.sh --stop
#
# Assumes: gcloud is set up here (its project); `streamjax[tpu]` is installed on all hosts in
# ~/venv, by, once:
#
#     gcloud compute tpus tpu-vm ssh $TPU --zone=$ZONE --worker=all \
#         --command="python3 -m venv ~/venv && ~/venv/bin/pip install 'streamjax[tpu]'"
#
# and the run's folder lies where every host sees it (a bucket that gcsfuse mounts, Filestore). The
# hosts find each other by the TPU's metadata (JAX_NUM_PROCESSES=auto: jax.distributed looks).
#
# What the hosts say comes here; keep this in tmux, for a broken connection ends the run (its newest
# checkpoint stays, and the same command goes on from it). --stop sends SIGTERM to the first host:
# all finish the step and save. A pod that was taken away is made anew by its queued resource; then
# start the same command again.
set -euo pipefail

if [ $# -eq 0 ] || [ -z "${TPU:-}" ] || [ -z "${ZONE:-}" ]; then
    echo "usage: TPU=name ZONE=zone bash launch/tpu_vm.sh RECIPE [key=value ...] | --stop" >&2
    exit 2
fi

on() { # WORKERS COMMAND
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$2"
}

if [ "$1" = --stop ]; then
    # The brackets keep pkill from finding the shell that runs it.
    on 0 "pkill --signal TERM --full '[s]treamjax train'"
    exit
fi

on all "exec env JAX_NUM_PROCESSES=auto ~/venv/bin/streamjax train $(printf '%q ' "$@")"
