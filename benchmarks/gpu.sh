#!/usr/bin/env bash
# Everything that wants an NVIDIA GPU, in one go: bash benchmarks/gpu.sh [FOLDER]
# Writes the card and versions, the machine's floors, the tests on CuPy, decoding and training speed to FOLDER.
# With two GPUs and mpiexec, training on both by NCCL too.
# Needs minillama with CuPy in the Python that PYTHON names (default .venv/bin/python, as `make test` makes it).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
python="${PYTHON:-.venv/bin/python}"
out="${1:-benchmarks/results/gpu}"
mkdir -p "$out"
failed=0

nvidia-smi | tee "$out/card.txt" || { echo "gpu.sh: no NVIDIA GPU here" >&2; exit 1; }
"$python" -c 'import cupy; cupy.show_config()' | tee -a "$out/card.txt" || exit 1
"$python" -m benchmarks.floor --device cuda --json "$out/floor.json" || failed=1
"$python" -m pytest -q -rs -k "cupy or reference or smollm2 or cuda" | tee "$out/tests.txt" || failed=1
"$python" -m minillama bench decode smollm2 --device cuda | tee "$out/decode.txt" || failed=1
"$python" -m minillama generate smollm2 --device cuda --temperature 0 --max-new-tokens 64 \
  --prompt "The capital of France is" | tee "$out/text.txt" || failed=1
"$python" -m minillama pretrain --preset mini --steps 100 --device cuda --overwrite --out "$out/mini" 2>&1 |
  tee "$out/train.txt" || failed=1
if [ "$(nvidia-smi --list-gpus | wc -l)" -gt 1 ] && command -v mpiexec >/dev/null; then
  mpiexec -n 2 "$python" -m minillama pretrain --preset mini --steps 100 --device cuda --overwrite --out "$out/ranks" 2>&1 |
    tee "$out/train_ranks.txt" || failed=1
fi
exit $failed
