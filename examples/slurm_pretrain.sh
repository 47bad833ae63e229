#!/bin/bash
# Trains on several machines under Slurm: one launcher per machine, one process per GPU, all meeting at the first.
#
#   CONFIG=my.yaml sbatch --nodes=4 examples/slurm_pretrain.sh
#
# Three minutes before the time is up, or when the job is pre-empted, Slurm sends SIGTERM: the run saves and ends with
# exit code 6, the job is put back into the queue, and continues from there, on as many machines as it then gets.
#SBATCH --job-name=amcli-pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

config=${CONFIG:?CONFIG=my.yaml sbatch ...}
root=${CHECKPOINTS:-checkpoints}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
ranks=(--nproc-per-node gpu --nnodes "$SLURM_NNODES" --rdzv-endpoint "$first:29500" --max-restarts 3)

srun --kill-on-bad-exit=1 amcli pretrain -c "$config" --resume auto --set "checkpoint.checkpoint_dir=$root" "${ranks[@]}"
status=$?

# 6: stopped by a signal (or by --max-time), with its checkpoint saved.
if [ "$status" -eq 6 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
