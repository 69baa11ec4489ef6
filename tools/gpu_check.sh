#!/usr/bin/env bash
# Run the benchmark's GPU parts on one GPU in at most ten minutes, the most important first. Each part has its own time
# limit, so a slow part takes no time from the others. Results: OUT/*/benchmark.json, plots, OUT/log.txt with the tables.
#   pip install -e '.[test]' vit-pytorch && tools/gpu_check.sh [OUT]
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$out/inductor}" # a second call reuses the compiled kernels
measure() { # limit in seconds, name, options
    local limit=$1 name=$2
    shift 2
    echo "== $name"
    timeout "$limit" python tools/benchmark.py --out "$out/$name" "$@" || echo "$name ended with exit code $?"
}

{
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    measure 250 step-B --parts step --variant B --batch-size 128 --rounds 3
    measure 130 train-B --parts train --variant B --batch-size 256 --steps 120
    measure 50 batch-B --parts batch --variant B --batch-size 128 --rounds 2
    measure 80 step-L --parts step --variant L --batch-size 64 --rounds 3 --contenders ours
    measure 50 step-S --parts step --variant S --batch-size 256 --rounds 3 --contenders ours
    measure 40 size --parts size --quick
} 2>&1 | tee "$out/log.txt"
