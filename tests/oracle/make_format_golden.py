#!/usr/bin/env python3
"""Makes tests/golden/formats: small random checkpoints written by the packages that own the formats, and what they compute.

Run:  python tests/oracle/make_format_golden.py                writes tests/golden/formats
      python tests/oracle/make_format_golden.py --demo OUT     writes the demo model in every format below OUT, for measuring accuracy
      python tests/oracle/make_format_golden.py --check OUT    asks the packages whether they take what `sluice quantize` wrote of the demo
                                                               model to OUT/fp8-row, OUT/fp8-dynamic, ... (the names of its formats)

Needs torch, transformers 5.17, torchao 0.18, llmcompressor 0.14 with compressed-tensors 0.20, nvidia-modelopt 0.47; a CPU is enough.
None of our own quantizing is used here. Each case is the checkpoint as the package saves it, and

  rows.u32        positions whose logits are stored; the prompt is tokens(count, vocab) below
  weights.logits  [rows, vocab] f32: transformers in float32 on the codes of the file times their scales, activations as they are
  rule.logits     the same with the format's activation rule, in float32 (only where there is one)
  oracle.logits   the package's own forward pass in bfloat16: compressed-tensors as transformers runs it, ModelOpt's simulated
                  FP8; torchao multiplies rows of FP8, ModelOpt simulates FP4 on a GPU only
  tensors.txt     for every quantized module the CRC-32 of the dequantized float32 matrix: no bit of it is a matter of taste
"""
import argparse
import contextlib
import copy
import json
import os
import pathlib
import shutil
import sys
import tempfile
import zlib

import numpy as np
import safetensors.torch
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import make_forward_golden as forward  # noqa: E402

OUT = HERE.parent / "golden" / "formats"
DEMO = HERE.parent.parent / "model" / "demo"
COUNT = 40
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def tokens(count, vocab):
    return [(7 * i * i + 3 * i + 2) % vocab for i in range(count)]


# ---- the random models ----

def small_gemma4(**over):
    config = json.loads((DEMO / "config.json").read_text())
    text = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"],
                num_attention_heads=2, num_key_value_heads=1, num_global_key_value_heads=1, head_dim=32, global_head_dim=64, sliding_window=16)
    text.update(over)
    config["text_config"].update(text)
    for key in list(config):
        if key.endswith(("token_id", "token_index")) and key != "eos_token_id":
            config[key] = 3 + len(key) % 40
    config["eos_token_id"] = [1]
    return config


def small_gemma3():
    text = forward.gemma3(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                          head_dim=32, sliding_window=16, query_pre_attn_scalar=32, layer_types=["sliding_attention", "full_attention"])
    config = json.loads(text.to_json_string(use_diff=False))
    config["architectures"] = ["Gemma3ForCausalLM"]
    config["eos_token_id"] = [1]
    config["dtype"] = "bfloat16"
    config.pop("transformers_version", None)
    return config


def model_class(config):
    return getattr(transformers, config["architectures"][0])


def stem(name):
    return name.removeprefix("model.language_model.").removeprefix("model.")


def save_random(config, folder):
    """A BF16 checkpoint whose weights are the hashes of make_forward_golden, with a few rows eight times as large."""
    model = model_class(config)(transformers.AutoConfig.for_model(**config)).to(torch.float32)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        new = forward.synthetic(stem(name), tuple(value.shape), config["model_type"].startswith("gemma3"))
        if name.endswith("_proj.weight"):
            new[::29] *= 8
        with torch.no_grad():
            value.copy_(new)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))


# ---- the packages ----

def load(folder, **more):
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    return model_class(config).from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager", **more).eval()


def prompt(folder):
    """What calibrates and what is scored: random tokens for the random models, questions for the demo model."""
    if (pathlib.Path(folder) / "tokenizer.json").exists():
        tok = transformers.AutoTokenizer.from_pretrained(folder)
        questions = json.loads((DEMO.parent / "train" / "heldout.json").read_text())[:40]
        text = "".join(tok.apply_chat_template(q["messages"], tokenize=False, add_generation_prompt=True) for q in questions)
        return tok(text, return_tensors="pt", add_special_tokens=False).input_ids[:, :2048]
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    return torch.tensor([tokens(COUNT, config.get("text_config", config)["vocab_size"])])


@torch.no_grad()
def logits_of(model, ids):
    return model(input_ids=ids, use_cache=False).logits[0].float()


def torchao_rows(source, out):
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow
    import torchao.float8.inference as inference
    import torchao.quantization.quant_api as api
    for module in (inference, api):  # it asks for a GPU of 8.9 before it rounds weights, which a CPU can do
        module._check_hardware_support = lambda *a, **k: None
    preference = sys.modules["torchao.quantization.quantize_.common.kernel_preference"].KernelPreference.TORCH
    config = transformers.TorchAoConfig(Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), kernel_preference=preference))
    load(source, quantization_config=config, device_map="cpu").save_pretrained(out)


def compressed(scheme):
    def write(source, out):
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier
        model = load(source)
        oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"]))
        model.save_pretrained(out, save_compressed=True)
        return logits_of(load(out), prompt(out))
    return write


def modelopt(name, kv):
    def write(source, out):
        import modelopt.torch.quantization as mtq
        from modelopt.torch.export import export_hf_checkpoint
        from modelopt.torch.quantization.utils import update_quant_cfg_with_kv_cache_quant
        recipe = copy.deepcopy(getattr(mtq, name))
        if kv:
            recipe = update_quant_cfg_with_kv_cache_quant(recipe, mtq.FP8_KV_CFG["quant_cfg"])
        ids = prompt(source)
        model = mtq.quantize(load(source), recipe, lambda m: logits_of(m, ids))
        logits = None if "NVFP4" in name else logits_of(model, ids)  # it simulates FP4 in groups on a GPU only
        export_hf_checkpoint(model, export_dir=str(out))
        return logits
    return write


CASES = {
    "torchao_row": (small_gemma4(), torchao_rows),
    "compressed_dynamic": (small_gemma3(), compressed("FP8_DYNAMIC")),
    "compressed_nvfp4a16": (small_gemma4(), compressed("NVFP4A16")),
    "modelopt_static": (small_gemma4(), modelopt("FP8_DEFAULT_CFG", False)),
    "modelopt_block128": (small_gemma4(hidden_size=128, intermediate_size=160, head_dim=64, num_key_value_heads=2, global_head_dim=96),
                          modelopt("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", True)),
    "modelopt_nvfp4_mlp": (small_gemma4(), modelopt("NVFP4_MLP_ONLY_CFG", True)),
}

# ---- what the files mean, in float32 ----

def dequantize(tensors):
    """Every tensor as float32 under its plain name, and the activation rule of each quantized module: None, "token" or a scale."""
    plain, rules, quantized = {}, {}, []
    for name, t in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind in ("_weight_qdata", "weight_packed") or (kind == "weight" and t.dtype in (torch.float8_e4m3fn, torch.uint8)):
            quantized.append(module)
        elif kind not in ("_weight_scale", "weight_scale", "weight_scale_2", "weight_global_scale", "input_scale", "k_scale", "v_scale"):
            plain[name] = t.float()
    for m in quantized:
        get = lambda kind: tensors.get(f"{m}.{kind}")
        if get("_weight_qdata") is not None:
            value, rules[m] = get("_weight_qdata").float() * get("_weight_scale"), "token"
        elif get("weight_packed") is not None or get("weight").dtype == torch.uint8:
            packed = get("weight_packed") if get("weight_packed") is not None else get("weight")
            codes = torch.stack((packed & 15, packed >> 4), -1).flatten(1)
            value = E2M1[codes.long()] * get("weight_scale").float().repeat_interleave(16, 1)
            value = value / get("weight_global_scale") if get("weight_packed") is not None else value * get("weight_scale_2")
            rules[m] = None
        else:
            codes, scale = get("weight").float(), get("weight_scale").float()
            if scale.dim() == 4:
                scale = scale[:, 0, :, 0].repeat_interleave(128, 0).repeat_interleave(128, 1)[:codes.shape[0], :codes.shape[1]]
            value = codes * scale
            rules[m] = get("input_scale").item() if get("input_scale") is not None else "token" if scale.dim() == 2 and scale.shape[1] == 1 else None
        plain[m + ".weight"] = value
    return plain, rules


def round_e4m3(x, rule):
    if rule == "token":
        scale = (x.abs().amax(-1, keepdim=True) / 448).clamp(min=1 / (448 * 512))
        return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
    inverse = torch.tensor(1.0) / torch.tensor(rule, dtype=torch.float32)
    return (x * inverse).clamp(-448, 448).to(torch.float8_e4m3fn).float() * rule


def reference(folder):
    """A float32 model on the dequantized tensors, and the rules of its modules."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    plain, rules = dequantize(safetensors.torch.load_file(folder / "model.safetensors"))
    made = transformers.AutoConfig.for_model(**config)
    made._attn_implementation = "eager"
    model = model_class(config)(made).to(torch.float32).eval()
    missing, unexpected = model.load_state_dict(plain, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    model.tie_weights()
    inner = getattr(model.model, "language_model", model.model)
    inner.embed_tokens.embed_scale = inner.embed_tokens.embed_scale.to(torch.bfloat16).float()
    return model, plain, rules


def make_case(name, folder):
    config, write = CASES[name]
    torch.manual_seed(0)
    save_random(config, folder / "bf16")
    with contextlib.redirect_stdout(sys.stderr):
        own = write(folder / "bf16", folder / "out")
    target = OUT / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in ("config.json", "hf_quant_config.json", "model.safetensors"):
        if (folder / "out" / file).exists():
            (target / file).write_bytes((folder / "out" / file).read_bytes())
    ids = prompt(target)
    rows = [0, 1, 7, 15, 16, 17, 30, COUNT - 1]
    model, plain, rules = reference(target)
    result = {"weights": logits_of(model, ids)}
    modules = dict(model.named_modules())
    for m, rule in rules.items():
        if rule is not None:
            modules[m].register_forward_pre_hook(lambda mod, args, rule=rule: (round_e4m3(args[0], rule),))
    if any(rule is not None for rule in rules.values()):
        result["rule"] = logits_of(model, ids)
    if own is not None:
        result["oracle"] = own
    np.array(rows, dtype="<u4").tofile(target / "rows.u32")
    for kind, logits in result.items():
        logits[rows].numpy().astype("<f4").tofile(target / f"{kind}.logits")
    sums = {m: zlib.crc32(plain[m + ".weight"].contiguous().numpy().astype("<f4").tobytes()) for m in sorted(rules)}
    (target / "tensors.txt").write_text("".join(f"{stem(m)} {v:08x}\n" for m, v in sums.items()))
    distance = {k: float((v - result["weights"]).norm() / result["weights"].norm()) for k, v in result.items()}
    print(name, len(rules), "modules quantized; relative distance of logits from weights-only in float32:", {k: f"{v:.2g}" for k, v in distance.items()})


# ---- the other way round: our files, their readers ----

WRITTEN = {"fp8-row": "torchao_row", "fp8-dynamic": "compressed_dynamic", "nvfp4a16": "compressed_nvfp4a16", "fp8-static": "modelopt_static",
           "fp8-block128": "modelopt_block128"}


def check_written(folder, scratch):
    """The package reads the same numbers; ModelOpt has no reader here: its own file of the same model must have the same tensors."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    plain, rules = dequantize(tensors)
    case = WRITTEN[folder.name]
    if case.startswith("modelopt"):
        CASES[case][1](DEMO, scratch / case)
        theirs = safetensors.torch.load_file(scratch / case / "model.safetensors")
        # ModelOpt also rounds the projection of sounds, which quantize copies: it is not text
        shapes = lambda ts: {n: (str(t.dtype), tuple(t.shape)) for n, t in ts.items() if not n.endswith(("k_scale", "v_scale")) and ".embed_audio." not in n}
        assert shapes(tensors) == shapes(theirs), "other tensors than ModelOpt writes"
        keys = lambda f, d: set(json.loads((d / f).read_text()).get("quantization_config", json.loads((d / f).read_text())))
        for file in ("config.json", "hf_quant_config.json"):
            assert keys(file, folder) == keys(file, scratch / case) - {"kv_cache_scheme"}, f"{file}: other fields than ModelOpt writes"
        return f"{len(rules)} modules, names, types and shapes as ModelOpt writes them"
    model, info = model_class(json.loads((folder / "config.json").read_text())).from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(info.values()), info
    logits_of(model.eval(), prompt(DEMO)[:, :8]) if case != "torchao_row" else None  # compressed-tensors widens at the first call
    modules, worst = dict(model.named_modules()), 0.0
    for m in rules:
        got = modules[m].weight.dequantize() if case == "torchao_row" else modules[m].weight
        want = plain[m + ".weight"]
        worst = max(worst, float(((got.float() - want).abs() / want.abs().clamp(min=1e-30)).max()))
    assert worst <= 2**-8, f"weights differ by {worst}"  # the package rounds to bfloat16
    return f"{len(rules)} modules, weights as we read them (largest relative difference {worst:.1e})"


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--demo", type=pathlib.Path)
    p.add_argument("--check", type=pathlib.Path)
    p.add_argument("cases", nargs="*", default=[])
    args = p.parse_args()
    torch.set_num_threads(1)
    for name in WRITTEN if args.check else ():
        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
            said = check_written(args.check / name, pathlib.Path(scratch))
        print(f"{name}: {said}")
    for name in () if args.check else args.cases or CASES:
        if args.demo:
            out = args.demo / name
            with contextlib.redirect_stdout(sys.stderr):
                CASES[name][1](DEMO, out)
            for file in filter(pathlib.Path.is_file, DEMO.iterdir()):
                if not (out / file.name).exists() and file.name != "README.md":
                    shutil.copy(file, out / file.name)
            continue
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "bf16").mkdir()
            make_case(name, pathlib.Path(folder))


if __name__ == "__main__":
    sys.exit(main())
