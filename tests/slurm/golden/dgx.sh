#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=16
#SBATCH --dependency=afterok:7
#SBATCH --error=/home/me/run/logs/001/%j_0_log.err
#SBATCH --gpus-per-node=8
#SBATCH --job-name=pretrain
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=0
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/home/me/run/logs/001/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1440
#SBATCH --wckey=submitit

# setup
# notes each attempt; after a crash or the time limit queues the job again while it makes progress
env --chdir=/home/me/run/code/HASH OMP_NUM_THREADS=16 TORCH_NCCL_ASYNC_ERROR_HANDLING=3 PYTHON -m slurm.attempts begin /home/me/run/logs/001 || exit
again() {
  for try in 1 2 3 4 5; do  # the controller may be restarting
    scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}" && exec sleep 600
    sleep 30
  done
}
ended() {
  code=$?
  env --chdir=/home/me/run/code/HASH OMP_NUM_THREADS=16 TORCH_NCCL_ASYNC_ERROR_HANDLING=3 PYTHON -m slurm.attempts end /home/me/run/logs/001 $code $SECONDS && exit 0
  [ $? -ne 75 ] || again
  exit $code
}
trap ended EXIT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /home/me/run/logs/001/%j_%t_log.out --error /home/me/run/logs/001/%j_%t_log.err --cpus-per-task=16 --kill-on-bad-exit=1 env --chdir=/home/me/run/code/HASH OMP_NUM_THREADS=16 TORCH_NCCL_ASYNC_ERROR_HANDLING=3 PYTHON -u -m submitit.core._submit /home/me/run/logs/001

