#!/usr/bin/env bash
# Pretraining on a SLURM cluster, over nights and time limits:
#
#   sbatch --nodes 4 recipes/launch/slurm.sh --config recipes/presets/imagenet-vit-b16.toml --data.path DIR --output runs/big
#
# Five minutes before the time limit (and when the job is preempted, where the cluster says so with
# PreemptParameters=send_user_signal), every process gets SIGUSR1, saves a checkpoint together with the others and ends;
# the job then queues itself again and goes on from there. --output must be on a file system that all machines share.
# LAUNCH=FILE takes another configuration of Accelerate, GPUS=N another number a machine.
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
  echo "error: name the run's folder with --output DIR, so that the job can go on in it" >&2
  exit 2
fi

export GPUS=${GPUS:-8} LAUNCH=${LAUNCH:-recipes/launch/many-nodes-fsdp2.yaml}
HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER=${HOSTS%%$'\n'*} # the first (`| head -n 1` would end the pipe, and with it this script, on some days)
export MASTER PORT=$((20000 + SLURM_JOB_ID % 20000)) # several jobs may share a machine

if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then # since Slurm 22.05 srun no longer takes it from the job: one core for all
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi
# One launcher a machine. It leaves SIGUSR1 to the processes that train (which catch what it ignores), or would die of it.
srun bash -c '
  trap "" USR1
  exec accelerate launch --config_file "$LAUNCH" --num_machines "$SLURM_NNODES" \
    --num_processes $((SLURM_NNODES * GPUS)) --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MASTER" --main_process_port "$PORT" mpp/pretrain.py "$@" --resume
' launch "$@"

if [[ ! -f $output/result.json ]]; then # stopped with a checkpoint (an error would have ended this script above)
  scontrol requeue "$SLURM_JOB_ID"
fi
