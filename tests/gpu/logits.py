"""tests/gpu/logits.py - the whole step on a random-weight Gemma 4 12B (or Gemma 3 12B) against transformers on the same GPU.

    python3 tests/gpu/logits.py --layers 6 --format bf16 --prompt 1100 --decode 64 [--kv fp8] [--model gemma-3-12b]
    python3 tests/gpu/logits.py --layers 6 --format fp8 --rule token       (static; formats: bf16 fp8 block fp4 fp4-mlp)

Builds transformers' Gemma4UnifiedForCausalLM (Gemma3ForCausalLM) with random weights in bf16, hands its weights to libsluice_cuda.so by pointer, feeds a random
text in blocks of 8 rows (the prompt) and then one token at a time, and compares the logits of every position with transformers in f32 on the
same weights (for FP8 and FP4: on the dequantised ones; with --rule transformers rounds what its linear layers get to E4M3, by token or by scales measured
before), beside transformers' own bf16 error, which is the yardstick: the same
rounding level is expected, f32 sums and an f32 residual make ours smaller. Greedy tokens must agree wherever the f32 margin
exceeds twice the rounding error. --kv fp8: transformers' attention gets keys and values rounded to E4M3, too. Then batch invariance: bits of the logits alone, in blocks of 8, beside other sequences, 16 rows.
Exit 0 pass, 1 fail, 77 no GPU."""
import argparse
import ctypes as c
import sys

import torch

import backend as b


def as_cached(x):
    """As an FP8 cache gives it back: E4M3 without a scale, at most 448 in size."""
    return x.float().clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype)


def round_keys(modeling):
    """Attention gets keys and values out of such a cache."""
    plain = modeling.eager_attention_forward

    def rounded(module, query, key, value, *args, **kwargs):
        return plain(module, query, as_cached(key), as_cached(value), *args, **kwargs)

    modeling.eager_attention_forward = rounded


def build(modeling, make, config):
    config._attn_implementation = "eager"
    old = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = make(config)
    torch.set_default_dtype(old)
    return model


def make_gemma_3(layers, kv):
    from transformers.models.gemma3 import configuration_gemma3 as conf
    from transformers.models.gemma3 import modeling_gemma3 as modeling

    if kv == "fp8":
        round_keys(modeling)
    config = conf.Gemma3TextConfig(
        vocab_size=262208, hidden_size=3840, intermediate_size=15360, num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=8, head_dim=256,
        query_pre_attn_scalar=256, sliding_window=1024, tie_word_embeddings=True, layer_types=["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)],
        rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}})
    model = build(modeling, modeling.Gemma3ForCausalLM, config)
    generator = torch.Generator(device="cuda").manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2:
                p.normal_(0.0, 0.02 if "embed" in name else p.shape[1] ** -0.5, generator=generator)
            else:                                    # stored as w - 1
                p.normal_(0.2 if "q_norm" in name or "k_norm" in name else 0.0, 0.1, generator=generator)
    return model.eval()


def make_reference(layers, kv="bf16", shape="gemma-4-12b"):
    if shape == "gemma-3-12b":
        return make_gemma_3(layers, kv)
    from transformers.models.gemma4_unified import configuration_gemma4_unified as conf
    from transformers.models.gemma4_unified import modeling_gemma4_unified as modeling

    if kv == "fp8":
        round_keys(modeling)
    config = conf.Gemma4UnifiedTextConfig(
        vocab_size=262144, hidden_size=3840, intermediate_size=15360, num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=8,
        head_dim=256, global_head_dim=512, num_global_key_value_heads=1, attention_k_eq_v=True, sliding_window=1024,
        final_logit_softcapping=30.0, use_bidirectional_attention=None, tie_word_embeddings=True)
    model = build(modeling, modeling.Gemma4UnifiedForCausalLM, config)
    generator = torch.Generator(device="cuda").manual_seed(5)
    with torch.no_grad():
        for name, p in list(model.named_parameters()) + [x for x in model.named_buffers() if "layer_scalar" in x[0]]:
            if p.dim() == 2:
                p.normal_(0.0, 0.02 if "embed" in name else p.shape[1] ** -0.5, generator=generator)
            elif "q_norm" in name or "k_norm" in name:
                p.normal_(0.3, 0.03, generator=generator)       # scores of deviation 1..2: softmax neither flat nor a single key
            elif "layer_scalar" in name:
                p.normal_(0.9, 0.05, generator=generator)
            else:
                p.normal_(1.0, 0.1, generator=generator)
    return model.eval()


NAMES = [("self_attn.q_proj", b.Q), ("self_attn.k_proj", b.K), ("self_attn.v_proj", b.V), ("self_attn.o_proj", b.O), ("mlp.gate_proj", b.GATE),
         ("mlp.up_proj", b.UP), ("mlp.down_proj", b.DOWN), ("input_layernorm", b.INPUT_NORM), ("post_attention_layernorm", b.POST_ATTENTION_NORM),
         ("pre_feedforward_layernorm", b.PRE_FF_NORM), ("post_feedforward_layernorm", b.POST_FF_NORM), ("self_attn.q_norm", b.Q_NORM),
         ("self_attn.k_norm", b.K_NORM)]


FORMATS = {"bf16": (b.BF16, b.BF16), "fp8": (b.FP8, b.FP8), "block": (b.FP8_BLOCK, b.FP8_BLOCK), "fp4": (b.FP4, b.FP4), "fp4-mlp": (b.BF16, b.FP4)}   # attention, MLP
RULES = {"none": 0, "token": 1, "static": 2}     # enum stored_activation
LINEAR = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
E4M3_MAX = 448.0


def add_format_options(parser):
    parser.add_argument("--format", choices=list(FORMATS), default="bf16")
    parser.add_argument("--rule", choices=list(RULES), default="none", help="activations in FP8: each token by its own scale, or by one that was measured; with fp8 only")


def linears(reference, layer):
    """The linear layers of a layer, numbered as enum cuda_tensor; None for a v that is not there."""
    at = reference.model.layers[layer]
    for name in LINEAR:
        part, name = name.split(".")
        yield getattr(getattr(at, part), name, None)


def measure_scales(reference, tokens, layers):
    """What a static scale is: the largest input of each linear layer on a text / 448; one for q, k, v, one for gate and up."""
    scales, hooks = [[0.0] * 8 for _ in range(layers)], []
    for i in range(layers):
        for j, linear in enumerate(linears(reference, i)):
            def note(module, args, i=i, j=j):
                scales[i][j] = max(scales[i][j], float(args[0].abs().max()) / E4M3_MAX)
            if linear is not None:
                hooks.append(linear.register_forward_pre_hook(note))
    reference_logits(reference, tokens, len(tokens) - 1)
    for hook in hooks:
        hook.remove()
    for row in scales:
        row[b.K] = row[b.V] = row[b.Q]
        row[b.UP] = row[b.GATE]
    return [[c.c_float(x).value for x in row] for row in scales]


def add_rule(reference, rule, scales, layers):
    """From now on its linear layers get E4M3 numbers times their scale. Clones of the model made later have it, too."""
    def rounded(x, scale):
        wide = x.float()
        s = (wide.abs().amax(dim=-1, keepdim=True) / E4M3_MAX).clamp(min=1 / (448 * 512)) if scale is None else scale
        return ((wide / s).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float() * s).to(x.dtype)

    for i in range(layers):
        for j, linear in enumerate(linears(reference, i)):
            if linear is not None and rule != "none":
                linear.register_forward_pre_hook(lambda module, args, s=scales[i][j] if rule == "static" else None: (rounded(args[0], s),))


def make_ours(reference, args, tokens, **options):
    """Our model in the format asked for, its weights the reference's or, where only a format's writer could make them, random ones; and the rule's scales."""
    attention, mlp = FORMATS[args.format]
    scales = measure_scales(reference, tokens, args.layers) if args.rule == "static" else None

    def change(spec):
        for i in range(args.layers):
            for t in range(b.Q, b.DOWN + 1):
                spec.layer[i].format[t] = mlp if t >= b.GATE else attention
                spec.layer[i].activation[t] = RULES[args.rule]
                spec.layer[i].input_scale[t] = scales[i][t] if scales else 0.0

    ours = b.Model(args.layers, attention, change=change, **options)
    given = args.format in ("bf16", "fp8")
    if not given:
        ours.fill(21)
    hand_over(reference, ours, given)
    return ours, scales


def yardsticks(reference, ours, args, scales, run):
    """run(model) with transformers in bf16 and in f32, on the values that our weights stand for."""
    low = None
    if args.format == "bf16":                    # bf16 on the same weights
        low = run(reference)
    frequencies = {n: x.clone() for n, x in reference.named_buffers() if "inv_freq" in n}
    full = reference.float()
    full.model.embed_tokens.embed_scale.fill_(62.0)      # what the bf16 model multiplies by: sqrt(3840) rounded to bf16
    add_rule(full, args.rule, scales, args.layers)
    if args.format != "bf16":
        with torch.no_grad():
            dequantise(full, ours)
    want = run(full)
    if low is None:
        half = full.to(torch.bfloat16)            # rounds the dequantised weights too: an upper yardstick
        for name, x in half.named_buffers():
            if name in frequencies:
                x.data = frequencies[name]
        low = run(half)
    return low, want


def hand_over(reference, ours, matrices=True):
    weights = reference.state_dict()
    for i in range(ours.spec.layers):
        for name, tensor in NAMES:
            key = f"model.layers.{i}.{name}.weight"
            if key in weights and (matrices or tensor > b.DOWN):
                ours.load(tensor, i, weights[key])
        scalar = f"model.layers.{i}.layer_scalar"
        ours.load(b.LAYER_SCALAR, i, weights[scalar] if scalar in weights else torch.ones(1, dtype=torch.bfloat16, device="cuda"))
    ours.load(b.EMBED, 0, weights["model.embed_tokens.weight"])
    ours.load(b.FINAL_NORM, 0, weights["model.norm.weight"])


def dequantise(reference, ours):
    """The f32 reference gets the values that the packed weights stand for."""
    weights = reference.state_dict()
    for i in range(ours.spec.layers):
        get = lambda name: weights[f"model.layers.{i}.{name}.weight"]
        q, k = get("self_attn.q_proj"), get("self_attn.k_proj")
        v = weights.get(f"model.layers.{i}.self_attn.v_proj.weight")
        rows = q.shape[0] + k.shape[0] + (v.shape[0] if v is not None else 0)
        qkv = ours.unpack(b.Q, i, rows, 3840)
        q.copy_(qkv[:q.shape[0]])
        k.copy_(qkv[q.shape[0]:q.shape[0] + k.shape[0]])
        if v is not None:
            v.copy_(qkv[q.shape[0] + k.shape[0]:])
        both = ours.unpack(b.GATE, i, 30720, 3840).view(1920, 2, 8, 3840)
        get("mlp.gate_proj").copy_(both[:, 0].reshape(15360, 3840))
        get("mlp.up_proj").copy_(both[:, 1].reshape(15360, 3840))
        for name, tensor in (("self_attn.o_proj", b.O), ("mlp.down_proj", b.DOWN)):
            w = get(name)
            w.copy_(ours.unpack(tensor, i, w.shape[0], w.shape[1]))


def relative(x, y):
    return ((x - y).norm(dim=-1) / y.norm(dim=-1))


def reference_logits(model, tokens, start):
    with torch.no_grad():
        return model(torch.tensor([tokens], device="cuda"), use_cache=False, logits_to_keep=len(tokens) - start).logits[0].float()


def run_ours(ours, tokens, prompt, seq=0):
    """Logits of positions prompt-1.. as decoded one by one, after a prompt fed in blocks of 8."""
    rows, picked = [], []
    for at in range(0, prompt, 8):
        block = tokens[at:min(at + 8, prompt)]
        token = ours.step([(seq, at, block)])
    rows.append(ours.logits[len(block) - 1].clone())
    picked.append(token[len(block) - 1])
    for at in range(prompt, len(tokens)):
        picked.append(ours.step([(seq, at, [tokens[at]])])[0])
        rows.append(ours.logits[0].clone())
    return torch.stack(rows), picked


def compare(ours, scales, reference, args, tokens):
    start = args.prompt - 1
    got, picked = run_ours(ours, tokens, args.prompt)
    keep = torch.ones(ours.spec.vocab, dtype=torch.bool, device="cuda")
    keep[list(ours.spec.suppress)[:ours.spec.suppress_count]] = False
    low, want = yardsticks(reference, ours, args, scales, lambda model: reference_logits(model, tokens, start))
    error = relative(got[:, keep], want[:, keep])
    print(f"  ours against f32: relative error mean {error.mean():.2e} max {error.max():.2e}, largest difference {(got - want)[:, keep].abs().max():.4f}")
    yard = relative(low[:, keep], want[:, keep])
    print(f"  transformers bf16 against f32:     mean {yard.mean():.2e} max {yard.max():.2e}, largest difference {(low - want)[:, keep].abs().max():.4f}")
    want[:, ~keep] = -float("inf")
    top = want.topk(2, dim=-1)
    margin, rounding = top.values[:, 0] - top.values[:, 1], 2 * (got - want)[:, keep].abs().amax(dim=-1)
    sure = margin > rounding
    wrong = sum(int(sure[i]) and picked[i] != int(top.indices[i, 0]) for i in range(len(picked)))
    agree = sum(picked[i] == int(top.indices[i, 0]) for i in range(len(picked)))
    print(f"  greedy: {agree} of {len(picked)} equal, {int(sure.sum())} with a margin above rounding, {wrong} of those wrong")
    return bool(torch.isfinite(error).all()) and float(error.max()) < 1.2 * float(yard.max()) and wrong == 0


def invariance(ours, tokens, start):
    """The same 40 tokens behind a text of `start` tokens in seven ways; the logits of each position must have the same bits."""
    n, other = start + 40, [int(x) for x in torch.randint(0, 262144, (start + 40,))]
    text, ways = (tokens + other)[:n], {}
    uses_text = lambda s: s in (1, 2, 4, 5, 6, 10, 11)
    for at in range(0, start, 8):
        for pair in range(0, 16, 2):
            ours.step([(s, at, (text if uses_text(s) else other)[at:min(at + 8, start)]) for s in (pair, pair + 1)])
    rows = []
    for at in range(start, n):
        ours.step([(1, at, [text[at]])])
        rows.append(ours.logits[0].clone())
    ways["alone"] = torch.stack(rows)
    for name, block in (("blocks of 2", 2), ("blocks of 3", 3), ("blocks of 4", 4), ("blocks of 8", 8)):
        rows = []
        for at in range(start, n, block):
            part = text[at:at + block]
            ours.step([(2 + block, at, part)])
            rows += [ours.logits[j].clone() for j in range(len(part))]
        ways[name] = torch.stack(rows)
    rows = []
    for at in range(start, n, 8):
        ours.step([(3, at, other[at:at + 8]), (2, at, text[at:at + 8])])
        rows += [ours.logits[8 + j].clone() for j in range(8)]
    ways["16 rows, two blocks of 8"] = torch.stack(rows)
    rows = []
    for at in range(start, n):
        ours.step([(s, at, [text[at] if s == 11 else other[(at + s) % n]]) for s in range(16)])
        rows.append(ours.logits[11].clone())
    ways["16 sequences"] = torch.stack(rows)
    good = True
    for name, x in ways.items():
        equal = torch.equal(x.view(torch.int32), ways["alone"].view(torch.int32))
        good &= equal
        print(f"  {name}: {'same bits' if equal else 'DIFFERENT, first at position ' + str(int((x != ways['alone']).any(dim=-1).nonzero()[0]))}")
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=6)
    add_format_options(parser)
    parser.add_argument("--model", choices=list(b.SHAPES), default="gemma-4-12b")
    parser.add_argument("--kv", choices=["bf16", "fp8"], default="bf16")
    parser.add_argument("--prompt", type=int, default=40)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--start", type=int, default=0, help="length of the text in front of the invariance test")
    parser.add_argument("--no-invariance", action="store_true")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("skip: no GPU")
        return 77
    torch.manual_seed(11)
    tokens = [int(x) for x in torch.randint(0, 262144, (args.prompt + args.decode,))]
    print(f"logits: {args.model}, {args.layers} layers, {args.format}, rule {args.rule}, KV {args.kv}, {args.prompt} prompt + {args.decode} decode", flush=True)
    reference = make_reference(args.layers, args.kv, args.model)
    ours, scales = make_ours(reference, args, tokens, context=(max(args.prompt + args.decode, args.start + 64) + 1023) // 1024 * 1024, kv=args.kv, shape=args.model)
    good = True
    if not args.no_invariance:
        good = invariance(ours, tokens, args.start)
    good &= compare(ours, scales, reference, args, tokens)
    ours.close()
    print("ok" if good else "FAIL", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
