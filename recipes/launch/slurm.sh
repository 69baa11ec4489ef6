#!/usr/bin/env bash
# Pretraining on a SLURM cluster, longer than one time limit:
#
#   sbatch --nodes 4 recipes/launch/slurm.sh --config recipes/presets/imagenet-vit-b16.toml --data.path DIR --output runs/big
#
# Five minutes before the time limit, SLURM sends SIGUSR1 to every process; on preemption too, if the cluster sets
# PreemptParameters=send_user_signal. They save a checkpoint together and exit; the job then requeues itself and
# resumes from it. --output must be on a file system that all machines share.
# LAUNCH=FILE selects another Accelerate configuration, GPUS=N another number of GPUs per machine.
#SBATCH --job-name=mpp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail

output=""
for ((i = 1; i < $#; i++)); do
  [[ ${!i} == --output ]] && j=$((i + 1)) && output=${!j}
done
if [[ -z $output ]]; then
  echo "error: --output is missing; give --output DIR, the run's folder, so that the job can resume in it" >&2
  exit 2
fi

export GPUS=${GPUS:-8} LAUNCH=${LAUNCH:-recipes/launch/many-nodes-fsdp2.yaml}
HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER=${HOSTS%%$'\n'*} # the first (`| head -n 1` can close the pipe early, and pipefail would end this script)
export MASTER PORT=$((20000 + SLURM_JOB_ID % 20000)) # a port per job: several jobs may share a machine

if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then # since Slurm 22.05 srun does not inherit it: all would get one core
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi
# One launcher per machine. It ignores SIGUSR1, which would end it; the training processes catch the signal themselves.
srun bash -c '
  trap "" USR1
  exec accelerate launch --config_file "$LAUNCH" --num_machines "$SLURM_NNODES" \
    --num_processes $((SLURM_NNODES * GPUS)) --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MASTER" --main_process_port "$PORT" mpp/pretrain.py "$@" --resume
' launch "$@"

if [[ ! -f $output/result.json ]]; then # stopped with a checkpoint (after an error, set -e ends this script above)
  scontrol requeue "$SLURM_JOB_ID"
fi
