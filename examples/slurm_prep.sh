#!/bin/bash
# Prepares one corpus on many nodes: each task of the array makes one part, and one more job joins them.
#
#   sbatch examples/slurm_prep.sh
#
# A task that dies is started again with `sbatch --array=<its number> examples/slurm_prep.sh`: it goes on where it
# stopped. `amcli data merge` refuses to run while a part is missing, damaged or made with other settings.
#SBATCH --job-name=amcli-prep
#SBATCH --array=0-15
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

corpus=${CORPUS:-fineweb}
max_tokens=${MAX_TOKENS:-10B}
output=${OUTPUT:-data/$corpus}
parts=${SLURM_ARRAY_TASK_COUNT:-16}
index=${SLURM_ARRAY_TASK_ID:-0}

# The number of tokens is that of the whole; every part takes its share of it.
amcli prep "$corpus" --max-tokens "$max_tokens" --partition "$index/$parts" \
    --num-workers "${SLURM_CPUS_PER_TASK:-8}" --output-dir "$output-parts"

# The first task leaves the merge behind, which Slurm starts when all tasks have succeeded.
if [ "$index" -eq 0 ] && [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
    sbatch --job-name=amcli-merge --dependency="afterok:$SLURM_ARRAY_JOB_ID" --cpus-per-task=2 --time=02:00:00 \
        --wrap "amcli data merge '$output-parts'/part-* --output '$output'"
fi
