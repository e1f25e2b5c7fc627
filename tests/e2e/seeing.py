"""The demo model with eyes and ears that were never trained: its text weights, and for pictures and sound weights that follow from their names.

`make(directory)` writes such a checkpoint, with the demo's tokenizer and template; what it "sees" is noise, but the same noise for
everybody who computes as Gemma 4 does. tests/oracle/make_seeing_golden.py lets transformers do so. Python's standard library only."""
import array
import json
import math
import os
import struct
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEMO = os.path.join(ROOT, "model", "demo")
DIM, POSITIONS, FRAME, PATCH, BUDGET = 32, 80, 640, 6912, 70
M64 = (1 << 64) - 1


def fnv1a(text):
    h = 0xCBF29CE484222325
    for c in text.encode():
        h = ((h ^ c) * 0x100000001B3) & M64
    return h


def hashed(name, count):
    """Numbers in [-1, 1): a function of name and index (as tests/synthetic.h)."""
    seed = fnv1a(name)
    for i in range(count):
        z = (i * 0x9E3779B97F4A7C15 + seed) & M64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
        yield (((z ^ (z >> 31)) >> 40) - (1 << 23)) * 2.0**-23


def bf16(values):
    """Rounded to nearest even, as bytes."""
    out = array.array("H")
    for (bits,) in struct.iter_unpack("<I", array.array("f", values).tobytes()):
        out.append(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) & 0xFFFF)
    return out.tobytes()


def tensors(hidden):
    vision = "model.vision_embedder."
    yield vision + "patch_ln1.weight", (PATCH,), 0.25, 1.0
    yield vision + "patch_ln1.bias", (PATCH,), 0.125, 0.0
    yield vision + "patch_dense.weight", (DIM, PATCH), 2.0 / math.sqrt(PATCH), 0.0
    yield vision + "patch_dense.bias", (DIM,), 0.125, 0.0
    yield vision + "patch_ln2.weight", (DIM,), 0.25, 1.0
    yield vision + "patch_ln2.bias", (DIM,), 0.125, 0.0
    yield vision + "pos_embedding", (POSITIONS, 2, DIM), 0.5, 0.0
    yield vision + "pos_norm.weight", (DIM,), 0.25, 1.0
    yield vision + "pos_norm.bias", (DIM,), 0.125, 0.0
    yield "model.embed_vision.embedding_projection.weight", (hidden, DIM), 2.0 / math.sqrt(DIM), 0.0
    yield "model.embed_audio.embedding_projection.weight", (hidden, FRAME), 2.0 / math.sqrt(FRAME), 0.0


def write_tensors(path, hidden):
    header, data = {}, bytearray()
    for name, shape, amplitude, base in tensors(hidden):
        count = math.prod(shape)
        part = bf16([base + amplitude * v for v in hashed(name, count)])
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)
    return list(header)


def copy_text(source, to):
    """The tensors of the language model alone; their names."""
    with open(source, "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        begin = f.tell()
        kept, data = {}, bytearray()
        for name, t in header.items():
            if "language_model" not in name:
                continue
            f.seek(begin + t["data_offsets"][0])
            part = f.read(t["data_offsets"][1] - t["data_offsets"][0])
            kept[name] = {**t, "data_offsets": [len(data), len(data) + len(part)]}
            data += part
    text = json.dumps(kept).encode()
    text += b" " * (-len(text) % 8)
    with open(to, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)
    return list(kept)


def demo_config():
    with open(os.path.join(DEMO, "config.json"), encoding="utf-8") as f:
        return json.load(f)


def link_others(directory):
    """What is the same in every one of these checkpoints."""
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        os.symlink(os.path.join(DEMO, name), os.path.join(directory, name))


def make_blind(directory):
    """The demo without eyes and ears, as a model of text alone is stored, into an existing, empty directory; returns it."""
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as f:
        json.dump({**demo_config(), "vision_config": None, "audio_config": None}, f, indent=2)
    link_others(directory)
    copy_text(os.path.join(DEMO, "model.safetensors"), os.path.join(directory, "model.safetensors"))
    return directory


def make(directory):
    """Writes the checkpoint into an existing, empty directory; returns it."""
    config = demo_config()
    config["vision_config"] = {"model_type": "gemma4_unified_vision", "patch_size": 16, "pooling_kernel_size": 3, "model_patch_size": 48, "mm_embed_dim": DIM, "output_proj_dims": DIM,
                               "mm_posemb_size": POSITIONS, "num_soft_tokens": BUDGET, "rms_norm_eps": 1e-6}
    config["audio_config"] = {"model_type": "gemma4_unified_audio", "audio_embed_dim": FRAME, "audio_samples_per_token": FRAME, "hidden_size": FRAME, "output_proj_dims": FRAME, "rms_norm_eps": 1e-6}
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f, indent=2)
    with open(os.path.join(directory, "processor_config.json"), "w", encoding="utf-8") as f:
        json.dump({"image_processor": {"max_soft_tokens": BUDGET}}, f)
    link_others(directory)
    text, senses = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    names = copy_text(os.path.join(DEMO, "model.safetensors"), os.path.join(directory, text))
    own = write_tensors(os.path.join(directory, senses), config["text_config"]["hidden_size"])
    places = {**{n: text for n in names}, **{n: senses for n in own}}
    with open(os.path.join(directory, "model.safetensors.index.json"), "w", encoding="utf-8") as f:
        json.dump({"metadata": {}, "weight_map": places}, f)
    return directory


if __name__ == "__main__":
    print(make(sys.argv[1]))
