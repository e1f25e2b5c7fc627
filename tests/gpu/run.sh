#!/bin/sh
# tests/gpu/run.sh - every test of the CUDA backend on this machine's GPU: builds here with nvcc, or takes what `make cuda` built elsewhere (SLUICE_PREBUILT=1).
# With build/sluice (or a `make dist` folder named by SLUICE_BUILD) the product too: its bytes and its deaths. Needs a Hopper GPU; logits.py,
# sampling.py and others need python3 with torch, numpy and transformers >= 5.17. Exit 0: all passed; 77: some were skipped (no GPU, no cuobjdump).
#   tests/gpu/run.sh [quick|full] [kernels|oracle|product|deep]...
# quick: 6 layers (a minute); full: all 48 layers as well (needs 130 GB of GPU memory). The parts (all of them unless named): kernels: the test
# programs; oracle: logits and prompts against transformers; product: the server; deep: 48 layers. Without "deep" nothing needs more than 60 GB.
set -u
cd "$(dirname "$0")/../.."
mode=quick
case "${1:-}" in quick | full) mode=$1; shift ;; esac
parts=${*:-kernels oracle product deep}
for p in $parts; do
    case $p in kernels | oracle | product | deep) ;; *) echo "run.sh knows no part '$p'; there are kernels, oracle, product, deep"; exit 2 ;; esac
done
[ -z "${SLUICE_PREBUILT:-}" ] && command -v nvcc >/dev/null 2>&1 && make cuda
[ -f build/libsluice_cuda.so ] || { echo "build/libsluice_cuda.so is missing and there is no nvcc to build it"; exit 1; }
export SLUICE_CUDA_SO="$PWD/build/libsluice_cuda.so" PYTHONUNBUFFERED=1
bad=0 skipped=0
try() {
    "$@"
    rc=$?
    [ $rc -eq 77 ] && skipped=$((skipped + 1))
    [ $rc -ne 0 ] && [ $rc -ne 77 ] && { bad=$((bad + 1)); echo "FAILED ($rc): $*"; }
}
kernels() {
    for t in build/tests/cuda_*; do try "$t"; done
    [ -x build/tests/cuda_draft_test ] && try build/tests/cuda_draft_test --kv fp8
    [ -x build/bench/cuda_dspark_bench ] && try build/bench/cuda_dspark_bench
    try python3 tests/gpu/sampling.py
    try python3 tests/gpu/arrivals.py
    try python3 tests/gpu/many.py
    try python3 tests/gpu/many.py --kv fp8
}
oracle() {
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
}
product() {
    [ -x build/sluice ] || [ -n "${SLUICE_BUILD:-}" ] || { echo "no build/sluice here: the product's tests are left out"; return; }
    try python3 tests/gpu/serve.py demo
    try env KV=fp8 python3 tests/gpu/serve.py demo
    try python3 tests/gpu/formats.py
    try python3 tests/gpu/prefix.py demo exact
    try python3 tests/gpu/media.py --only server
    try python3 tests/gpu/media.py --only gemma3
    try env MODEL=demo KILLS=4 python3 tests/gpu/faults.py
    try env PROMPTS=24 BLOWS=12 python3 tests/gpu/drafters.py
    [ "$mode" = full ] || return
    try python3 tests/gpu/faults.py
    try env KILLS=1 python3 tests/gpu/faults.py apart
    try python3 tests/gpu/coldstart.py
    [ -x "${SLUICE_BUILD:-build}/faulty/draft_forced" ] && try python3 tests/gpu/draft.py
}
deep() {
    [ "$mode" = full ] || return
    for format in bf16 fp8; do
        try python3 tests/gpu/logits.py --layers 48 --format $format --prompt 40 --decode 64
        try python3 tests/gpu/prefill.py --layers 48 --format $format --prompt 2048 --decode 64
    done
}
for p in $parts; do $p; done
[ $bad -ne 0 ] && { echo "$bad failed"; exit 1; }
[ $skipped -ne 0 ] && { echo "$skipped skipped: their last lines say why"; exit 77; }
echo "all passed"
