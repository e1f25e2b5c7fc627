#!/bin/sh
# tests/gpu/run.sh - every test of the CUDA backend on this machine's GPU: builds here with nvcc, or takes what `make cuda` built elsewhere.
# With build/sluice the product too: its bytes and its deaths. Needs a Hopper GPU; logits.py, sampling.py and others need python3 with torch,
# numpy and transformers >= 5.17. Exit 0: all passed; 77: no GPU.
#   tests/gpu/run.sh [quick|full]     quick: 6 layers (a minute); full: all 48 layers as well (needs 130 GB of GPU memory)
set -u
cd "$(dirname "$0")/../.."
mode=${1:-quick}
command -v nvcc >/dev/null 2>&1 && make cuda
[ -f build/libsluice_cuda.so ] || { echo "build/libsluice_cuda.so is missing and there is no nvcc to build it"; exit 1; }
export SLUICE_CUDA_SO="$PWD/build/libsluice_cuda.so" PYTHONUNBUFFERED=1
bad=0 skipped=0
try() {
    "$@"
    rc=$?
    [ $rc -eq 77 ] && skipped=$((skipped + 1))
    [ $rc -ne 0 ] && [ $rc -ne 77 ] && { bad=$((bad + 1)); echo "FAILED ($rc): $*"; }
}
for t in build/tests/cuda_*; do try "$t"; done
[ -x build/tests/cuda_draft_test ] && try build/tests/cuda_draft_test --kv fp8
[ -x build/bench/cuda_dspark_bench ] && try build/bench/cuda_dspark_bench
try python3 tests/gpu/sampling.py
try python3 tests/gpu/many.py
try python3 tests/gpu/many.py --kv fp8
try python3 tests/gpu/logits.py --layers 6 --format bf16 --prompt 1100 --decode 64 --start 1100
try python3 tests/gpu/logits.py --layers 6 --format fp8 --prompt 40 --decode 64
for rule in token static; do try python3 tests/gpu/logits.py --layers 6 --format fp8 --rule $rule --prompt 40 --decode 24; done
for format in block fp4 fp4-mlp; do try python3 tests/gpu/logits.py --layers 6 --format $format --prompt 40 --decode 24 --no-invariance; done
try python3 tests/gpu/prefill.py --layers 6 --format fp8 --rule token --prompt 600 --decode 4 --long 1200
try python3 tests/gpu/logits.py --layers 6 --format bf16 --prompt 2600 --decode 16 --start 2600
try python3 tests/gpu/prefill.py --layers 6 --format bf16 --prompt 2048
try python3 tests/gpu/logits.py --model gemma-3-12b --layers 6 --format bf16 --prompt 2600 --decode 16 --start 2600
try python3 tests/gpu/prefill.py --model gemma-3-12b --layers 6 --format bf16 --prompt 2048
try python3 tests/gpu/logits.py --layers 6 --format bf16 --prompt 1130 --decode 40 --start 1130 --kv fp8
try python3 tests/gpu/prefill.py --layers 6 --format bf16 --prompt 2048 --decode 8 --long 7000 --kv fp8
try python3 tests/gpu/media.py --only kernels
try python3 tests/gpu/media.py --only kernels --model gemma-3-12b
try python3 tests/gpu/prefill.py --layers 6 --format fp8 --prompt 5000 --decode 4 --long 7000
if [ -x build/sluice ]; then
    try python3 tests/gpu/serve.py demo
    try env KV=fp8 python3 tests/gpu/serve.py demo
    try python3 tests/gpu/formats.py
    try python3 tests/gpu/prefix.py demo exact
    try python3 tests/gpu/media.py --only server
    try python3 tests/gpu/media.py --only gemma3
    try env MODEL=demo KILLS=4 python3 tests/gpu/faults.py
    try env PROMPTS=24 BLOWS=12 python3 tests/gpu/drafters.py
    [ "$mode" = full ] && try python3 tests/gpu/faults.py
    [ "$mode" = full ] && try env KILLS=1 python3 tests/gpu/faults.py apart
    [ "$mode" = full ] && try python3 tests/gpu/coldstart.py
    [ "$mode" = full ] && [ -x build/faulty/draft_forced ] && try python3 tests/gpu/draft.py
fi
if [ "$mode" = full ]; then
    try python3 tests/gpu/logits.py --layers 48 --format bf16 --prompt 40 --decode 64
    try python3 tests/gpu/logits.py --layers 48 --format fp8 --prompt 40 --decode 64
    try python3 tests/gpu/prefill.py --layers 48 --format bf16 --prompt 2048 --decode 64
    try python3 tests/gpu/prefill.py --layers 48 --format fp8 --prompt 2048 --decode 64
fi
[ $bad -ne 0 ] && { echo "$bad failed"; exit 1; }
[ $skipped -ne 0 ] && { echo "$skipped skipped: no GPU"; exit 77; }
echo "all passed"
