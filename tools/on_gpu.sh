#!/usr/bin/env bash
# All that a GPU is needed for, in about six minutes: what is right first, then how fast it is.
#
#     PYTHON=python3 bash tools/on_gpu.sh [a folder for what it prints]
set -u
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python3} folder=${1:-build/gpu}
mkdir -p "$folder"
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"

# A name, how many seconds it may take, and a command.
part() {
  local name=$1 limit=$2
  shift 2
  timeout "$limit" "$@" >"$folder/$name.txt" 2>&1
  echo "$name: exit code $?, $(tail -n 1 "$folder/$name.txt")"
}

part graphs 60 "$python" -m pytest -q -n 8 tests/test_gpu_graph.py tests/test_gpu_matrices.py
part rows 60 env STEPRULE_GPU_ROWS=1 "$python" -m pytest -q -n 8 tests/test_gpu_rows.py
part engine 100 "$python" -m pytest -q -n 16 tests/test_gpu_engine.py tests/test_gpu_exact.py tests/test_gpu_kernels.py tests/test_matrix_gpu.py
part figures 180 "$python" benchmarks/gpu.py
part figures_of_squares 60 "$python" benchmarks/gpu.py squares
cp benchmarks/gpu.json "$folder"
