#!/usr/bin/env python3
"""tests/gpu/coldstart.py - from exec to ready with a 12B checkpoint in the page cache.

    SLUICE_BUILD=build/dist python3 tests/gpu/coldstart.py [DIR]      (default: a directory of its own in /dev/shm, removed at the end)

Writes a BF16 checkpoint of Gemma 4 12B's shapes with random weights (24 GB, in shards; kept and used again when DIR is given), serves it as it is and rounded
to FP8 (FORMAT=fp8-row|fp8-block128|nvfp4a16: writes one in that format, as its writer would, and serves that), kills the keeper on the way once, and prints seconds from exec to ready, seconds and GB/s of loading, and whether the same request gives the same bytes after a second start.
Needs a Hopper GPU, 24 GB of memory for the files, and the standard library only.
"""
import asyncio
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
from server import Server, wait_until  # noqa: E402
from workload import bodies  # noqa: E402
from wsclient import run  # noqa: E402

HIDDEN, INTERMEDIATE, VOCAB, LAYERS, SHARD_LAYERS = 3840, 15360, 262144, 48, 12
BLOCK = 64 << 20
CONFIG = {
    "architectures": ["Gemma4UnifiedForConditionalGeneration"], "model_type": "gemma4_unified", "tie_word_embeddings": True, "eos_token_id": [1, 106],
    "text_config": {
        "model_type": "gemma4_unified_text", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 1, "head_dim": 256, "global_head_dim": 512, "attention_k_eq_v": True,
        "sliding_window": 1024, "sliding_window_pattern": 6, "max_position_embeddings": 262144, "rms_norm_eps": 1e-6, "final_logit_softcapping": 30.0,
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                            "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}}}}


FORMAT = os.environ.get("FORMAT", "bf16")
QUANTIZATION = {
    "fp8-row": {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": {
        "targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
        "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}}}},
    "fp8-block128": {"quant_method": "modelopt", "quant_algo": "fp8_pb_wo"},
    "nvfp4a16": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {"group_0": {
        "targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True, "dynamic": False},
        "input_activations": None}}},
}
BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}


def random_blocks():
    """What fills a tensor, by its type: BF16 of both signs between 2^-7 and 2^-6, near the deviation of a trained matrix of this size; E4M3 codes below 2; pairs of E2M1."""
    bits = int.from_bytes(random.Random(3).randbytes(BLOCK), "little")
    keep, exponent = (int.from_bytes(struct.pack("<H", x) * (BLOCK // 2), "little") for x in (0x807F, 0x3C00))
    small, positive = (int.from_bytes(bytes([x]) * BLOCK, "little") for x in (0xBF, 0x3F))
    return {"BF16": (bits & keep | exponent).to_bytes(BLOCK, "little"), "F8_E4M3": (bits & small).to_bytes(BLOCK, "little"), "U8": bits.to_bytes(BLOCK, "little"),
            "scale": (bits & positive | int.from_bytes(b"\x08" * BLOCK, "little")).to_bytes(BLOCK, "little")}


def matrix_tensors(name, rows, k):
    """Name, type, shape and content of the tensors that make one matrix: a number is what every F32 in it is."""
    if FORMAT == "fp8-row":
        return [(name + ".weight", "F8_E4M3", [rows, k], None), (name + ".weight_scale", "F32", [rows, 1], 0.02)]
    if FORMAT == "fp8-block128":
        return [(name + ".weight", "F8_E4M3", [rows, k], None), (name + ".weight_scale", "F32", [rows // 128, 1, k // 128, 1], 0.02)]
    if FORMAT == "nvfp4a16":
        return [(name + ".weight_packed", "U8", [rows, k // 2], None), (name + ".weight_scale", "F8_E4M3", [rows, k // 16], "scale"), (name + ".weight_global_scale", "F32", [1], 100.0)]
    return [(name + ".weight", "BF16", [rows, k], None)]


def layer_tensors(i):
    full = i % 6 == 5
    q, kv, dim = (8192, 512, 512) if full else (4096, 2048, 256)
    at = f"model.language_model.layers.{i}."
    matrices = [("self_attn.q_proj", q, HIDDEN), ("self_attn.k_proj", kv, HIDDEN), ("self_attn.o_proj", HIDDEN, q), ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
                ("mlp.up_proj", INTERMEDIATE, HIDDEN), ("mlp.down_proj", HIDDEN, INTERMEDIATE)] + ([] if full else [("self_attn.v_proj", kv, HIDDEN)])
    for name, rows, k in matrices:
        yield from matrix_tensors(at + name, rows, k)
    yield from ((at + n + "_layernorm.weight", "BF16", [HIDDEN], None) for n in ("input", "post_attention", "pre_feedforward", "post_feedforward"))
    yield from ((at + f"self_attn.{n}_norm.weight", "BF16", [dim], None) for n in "qk")
    yield at + "layer_scalar", "BF16", [1], None


def write_shard(path, tensors, blocks):
    """blocks None: matrices are holes in the file."""
    header, at, tensors = {}, 0, sorted(tensors, key=lambda t: -BYTES[t[1]])  # as writers do: every type is aligned then
    for name, dtype, shape, _ in tensors:
        size = BYTES[dtype]
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, dtype, shape, content in tensors:
            begin, end = header[name]["data_offsets"]
            if dtype == "F32":
                f.write(struct.pack("<f", content) * ((end - begin) // 4))
                continue
            if len(shape) == 1:
                f.write(struct.pack("<H", 0x3F80) * shape[0])  # norms and scalars are 1
                continue
            if blocks is None:
                f.seek(end - begin, os.SEEK_CUR)
                continue
            view, left = memoryview(blocks[content or dtype]), end - begin
            while left:
                left -= f.write(view[:min(left, BLOCK)])
        f.truncate(8 + len(text) + at)
    return [t[0] for t in tensors]


def write_checkpoint(where, holes=False):
    demo, blocks, weight_map = os.path.join(ROOT, "model", "demo"), None if holes else random_blocks(), {}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(os.path.join(demo, name), where)
    with open(os.path.join(where, "config.json"), "w", encoding="utf-8") as f:
        json.dump({**CONFIG, **({"quantization_config": QUANTIZATION[FORMAT]} if FORMAT != "bf16" else {})}, f)
    shards = [[t for i in range(first, first + SHARD_LAYERS) for t in layer_tensors(i)] for first in range(0, LAYERS, SHARD_LAYERS)]
    shards[-1] += [("model.language_model.embed_tokens.weight", "BF16", [VOCAB, HIDDEN], None), ("model.language_model.norm.weight", "BF16", [HIDDEN], None)]
    for i, tensors in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        weight_map.update({name: file for name in write_shard(os.path.join(where, file), tensors, blocks)})
    with open(os.path.join(where, "model.safetensors.index.json"), "w", encoding="utf-8") as f:
        json.dump({"metadata": {}, "weight_map": weight_map}, f)


def memory_used():
    """Of the whole GPU, in words; the KV cache takes what is left beside weights and scratch memory unless it is limited."""
    smi = shutil.which("nvidia-smi")
    out = subprocess.run([smi, "--query-gpu=memory.used", "--format=csv,noheader"], capture_output=True, text=True, timeout=10, check=False).stdout if smi else ""
    return out.strip().splitlines()[0] + " of GPU memory in use" if out.strip() else "GPU memory in use unknown"


def start(where, dtype):
    begin = time.perf_counter()
    with Server("--device", "cuda", "--weights-dtype", dtype, "--max-context", "32768", "--kv-cache-mib", "4096", model=where, log_level="warn") as s:
        ready, load = time.perf_counter() - begin, s.status()["device"]["load"]
        outcome = asyncio.run(run(s, bodies(1)[0])).outcome()
        line = next(x for x in s.out().splitlines() if "serving" in x)
        print(f"     {FORMAT}, {dtype}: {ready:.2f} s from exec to ready (client's view); {load['bytes'] / 1e9:.1f} GB read in {load['seconds']:.2f} s: {load['gb_per_s']:.1f} GB/s; {memory_used()}; {line}", flush=True)
    return outcome


def kill_while_loading(where, dtype, wanted):
    """SIGKILL of the keeper in mid-load: the next one loads into the same memory, and the bytes are the same."""
    with Server("--device", "cuda", "--weights-dtype", dtype, "--max-context", "32768", model=where, log_level="warn", wait=False) as s:
        wait_until("the keeper loads", lambda: (st := s.try_status()) and st["device"]["load"]["bytes"] > st["device"]["load"]["bytes_total"] / 10, 60, 0.002)
        before = s.status()
        assert not before["device"]["load"]["done"], "it loads too fast to be killed on the way"
        s.signal("keeper", signal.SIGKILL)
        s.wait_ready()
        assert s.restarts()["keeper"] == 1, s.restarts()
        assert asyncio.run(run(s, bodies(1)[0])).outcome() == wanted, "another output than without the kill"
        print(f"     the keeper was killed after {before['device']['load']['bytes'] / 1e9:.1f} GB: the next one loaded them, the same bytes", flush=True)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a time limit: our server goes with us
    if not os.path.exists("/dev/nvidiactl"):
        print("skip: no GPU")
        return 77
    where = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="sluice-12b-", dir="/dev/shm")
    try:
        if not os.path.exists(os.path.join(where, "model.safetensors.index.json")):
            begin = time.perf_counter()
            write_checkpoint(where)
            print(f"     checkpoint written in {time.perf_counter() - begin:.1f} s", flush=True)
        for dtype in ("bf16", "fp8") if FORMAT == "bf16" else ("auto",):
            outcome = start(where, dtype)
            assert start(where, dtype) == outcome, f"{dtype}: two starts, two outputs"
        if FORMAT == "bf16":
            kill_while_loading(where, dtype, outcome)
    finally:
        if len(sys.argv) <= 1:
            shutil.rmtree(where)
    print("coldstart: passed", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
