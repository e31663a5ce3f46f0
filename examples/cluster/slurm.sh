#!/bin/bash
# Training over several hosts under SLURM, from the root of the repository, which all hosts must see:
#
#     sbatch examples/cluster/slurm.sh configs/imagenet32.yaml runs/imagenet32
#
#SBATCH --job-name=cdrl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
# Three minutes before the time is up: training writes a checkpoint and ends. Typed again, the command goes on from there.
#SBATCH --signal=TERM@180
#SBATCH --open-mode=append
#SBATCH --output=cdrl-%j.log

set -euo pipefail
if [ $# -ne 2 ]; then
    echo "usage: sbatch examples/cluster/slurm.sh CONFIG RUN" >&2
    exit 2
fi
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
main=${hosts%%$'\n'*}  # not by head, which may end first: scontrol would fail with it

exec srun torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc_per_node "$SLURM_GPUS_ON_NODE" \
    --rdzv_id "$SLURM_JOB_ID" \
    --rdzv_backend c10d \
    --rdzv_endpoint "$main:29500" \
    --max-restarts 3 \
    run.py train "$1" --run-folder "$2"
