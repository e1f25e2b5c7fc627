"""A small Gemma 3 with a SigLIP tower whose weights follow from their names, with the demo's tokenizer and a chat template in Gemma 3's manner.

`make(directory)` writes such a checkpoint; answers mean nothing, but they are the same for everybody who computes as Gemma 3 does.
tests/oracle/make_seeing_gemma3_golden.py lets transformers do so. Python's standard library only."""
import json
import math
import os
import struct
import sys

from seeing import DEMO, bf16, demo_config, hashed

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD, LAYERS, PATTERN, WINDOW = 64, 96, 4, 2, 32, 6, 3, 48
IMAGE, PATCH, V_HIDDEN, V_INNER, V_HEADS, V_LAYERS, TOKENS = 112, 14, 48, 80, 4, 2, 16
TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{{- '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' -}}
{%- if message.content is string -%}{{- message.content | trim -}}
{%- else -%}{%- for part in message.content -%}
{%- if part.type in ['image', 'image_url'] -%}{{- '<|image>' -}}{%- elif part.type == 'text' -%}{{- part.text | trim -}}{%- endif -%}
{%- endfor -%}{%- endif -%}
{{- '<turn|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|turn>model\n' -}}{%- endif -%}
"""


def config(demo):
    types = ["full_attention" if (i + 1) % PATTERN == 0 else "sliding_attention" for i in range(LAYERS)]
    text = {"model_type": "gemma3_text", "vocab_size": demo["text_config"]["vocab_size"], "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "layer_types": types,
            "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "query_pre_attn_scalar": HEAD, "sliding_window": WINDOW, "max_position_embeddings": 4096,
            "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "dtype": "bfloat16",
            "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}, "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0}}}
    vision = {"model_type": "siglip_vision_model", "hidden_size": V_HIDDEN, "intermediate_size": V_INNER, "num_hidden_layers": V_LAYERS, "num_attention_heads": V_HEADS, "image_size": IMAGE,
              "patch_size": PATCH, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": False}
    return {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "dtype": "bfloat16", "tie_word_embeddings": True, "eos_token_id": [1, 106], "image_token_index": demo["image_token_id"],
            "boi_token_index": demo["boi_token_id"], "eoi_token_index": demo["eoi_token_id"], "mm_tokens_per_image": TOKENS, "text_config": text, "vision_config": vision}


def tensors(vocab):
    """Name, shape, amplitude, middle. Norms of the text are stored as w - 1."""
    def matrix(name, rows, k):
        return name + ".weight", (rows, k), 2.0 / math.sqrt(k), 0.0

    yield "model.language_model.embed_tokens.weight", (vocab, HIDDEN), 0.3, 0.0
    for i in range(LAYERS):
        at = f"model.language_model.layers.{i}."
        yield matrix(at + "self_attn.q_proj", HEADS * HEAD, HIDDEN)
        yield matrix(at + "self_attn.k_proj", KV_HEADS * HEAD, HIDDEN)
        yield matrix(at + "self_attn.v_proj", KV_HEADS * HEAD, HIDDEN)
        yield matrix(at + "self_attn.o_proj", HIDDEN, HEADS * HEAD)
        yield matrix(at + "mlp.gate_proj", INTERMEDIATE, HIDDEN)
        yield matrix(at + "mlp.up_proj", INTERMEDIATE, HIDDEN)
        yield matrix(at + "mlp.down_proj", HIDDEN, INTERMEDIATE)
        for norm in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"):
            yield at + norm + ".weight", (HIDDEN,), 0.25, 0.0
        yield at + "self_attn.q_norm.weight", (HEAD,), 0.25, 0.25
        yield at + "self_attn.k_norm.weight", (HEAD,), 0.25, 0.25
    yield "model.language_model.norm.weight", (HIDDEN,), 0.25, 0.0
    tower = "model.vision_tower.vision_model."
    yield tower + "embeddings.patch_embedding.weight", (V_HIDDEN, 3, PATCH, PATCH), 2.0 / math.sqrt(3 * PATCH * PATCH), 0.0
    yield tower + "embeddings.patch_embedding.bias", (V_HIDDEN,), 0.125, 0.0
    yield tower + "embeddings.position_embedding.weight", ((IMAGE // PATCH) ** 2, V_HIDDEN), 0.5, 0.0
    for i in range(V_LAYERS):
        at = f"{tower}encoder.layers.{i}."
        for name in ("q", "k", "v", "out"):
            yield matrix(f"{at}self_attn.{name}_proj", V_HIDDEN, V_HIDDEN)
            yield f"{at}self_attn.{name}_proj.bias", (V_HIDDEN,), 0.125, 0.0
        yield matrix(at + "mlp.fc1", V_INNER, V_HIDDEN)
        yield at + "mlp.fc1.bias", (V_INNER,), 0.125, 0.0
        yield matrix(at + "mlp.fc2", V_HIDDEN, V_INNER)
        yield at + "mlp.fc2.bias", (V_HIDDEN,), 0.125, 0.0
        for norm in ("layer_norm1", "layer_norm2"):
            yield f"{at}{norm}.weight", (V_HIDDEN,), 0.25, 1.0
            yield f"{at}{norm}.bias", (V_HIDDEN,), 0.125, 0.0
    yield tower + "post_layernorm.weight", (V_HIDDEN,), 0.25, 1.0
    yield tower + "post_layernorm.bias", (V_HIDDEN,), 0.125, 0.0
    yield "model.multi_modal_projector.mm_input_projection_weight", (V_HIDDEN, HIDDEN), 2.0 / math.sqrt(V_HIDDEN), 0.0
    yield "model.multi_modal_projector.mm_soft_emb_norm.weight", (V_HIDDEN,), 0.25, 0.0


def make(directory):
    """Writes the checkpoint into an existing, empty directory; returns it."""
    demo = demo_config()
    own = config(demo)
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as f:
        json.dump(own, f, indent=2)
    with open(os.path.join(directory, "chat_template.json"), "w", encoding="utf-8") as f:  # as the exports of Gemma 3 have it
        json.dump({"chat_template": TEMPLATE}, f)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        os.symlink(os.path.join(DEMO, name), os.path.join(directory, name))
    header, data = {}, bytearray()
    for name, shape, amplitude, base in tensors(own["text_config"]["vocab_size"]):
        part = bf16([base + amplitude * v for v in hashed(name, math.prod(shape))])
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(directory, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)
    return directory


if __name__ == "__main__":
    print(make(sys.argv[1]))
