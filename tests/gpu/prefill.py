"""tests/gpu/prefill.py - the prefill of a random-weight Gemma 4 12B (or Gemma 3 12B) against transformers on the same GPU, and bit by bit against itself.

    python3 tests/gpu/prefill.py --layers 6 --format bf16 --prompt 2048 --decode 16 [--model gemma-3-12b] [--kv fp8]
    python3 tests/gpu/prefill.py --layers 6 --format fp8 --rule token      (as tests/gpu/logits.py has them)

Residual stream, K and V after a prompt are compared with transformers in f32 on the same weights (for FP8 and FP4: on the dequantised ones), beside
transformers' own bf16 error, which is the yardstick; then the decode step goes on over the prefilled pages and its logits are compared likewise.
Then the same text in other chunks, beside other sequences and over a ring that wraps: residual, K and V must have the same bits, and so must the
hidden states of last rows, alone through the last layer or with all others. The first decode step begins with such a state.
--kv fp8: transformers' attention gets keys and values rounded to E4M3, too; sixteen texts at once are more than the kernels expand at a time.
Exit 0 pass, 1 fail, 77 no GPU."""
import argparse
import ctypes as c
import sys
import time

import torch

import backend as b
import logits as l

ROWS_MAX, WINDOW = 2048, 1024
RING_PAGES = (WINDOW - 1 + ROWS_MAX + 31) // 32
E_RANGE = -6


class Span(c.Structure):
    _fields_ = [("seq", c.c_uint32), ("first_position", c.c_uint32), ("first_row", c.c_uint32), ("rows", c.c_uint32), ("leaves_state", c.c_uint32)]


class Prefill:
    """A prefill handle over the weights, pools and page tables of a backend.Model."""

    def __init__(self, model, whole=True):
        self.model, self.lib, self.handle = model, model.lib, c.c_void_p()
        self.lib.cuda_prefill_residual.restype = c.c_void_p
        model.check(self.lib.cuda_prefill_open(c.byref(self.handle), c.byref(model.spec), c.byref(model.options), ROWS_MAX), "open")
        for (seq, kind), pages in model.tables.items():
            model.check(self.lib.cuda_prefill_pages(self.handle, seq, kind, 0, pages, len(pages)), "pages")
        if whole:
            self.residual = torch.as_tensor(b.DevicePointer(self.lib.cuda_prefill_residual(self.handle), (ROWS_MAX, model.spec.hidden), "<f4"), device="cuda")

    def launch(self, spans):
        """spans: list of (seq, first position, [tokens]). The return value of cuda_prefill_run."""
        tokens = [t for s in spans for t in s[2]]
        array, row = (Span * len(spans))(), 0
        for i, (seq, position, text) in enumerate(spans):
            array[i] = Span(seq, position, row, len(text), int(bool(text)))
            row += len(text)
        return self.lib.cuda_prefill_run(self.handle, array, len(spans), (c.c_uint32 * len(tokens))(*tokens))

    def run(self, spans):
        """Returns the residual of each span's rows."""
        torch.cuda.synchronize()
        self.model.check(self.launch(spans), "run")
        self.model.check(self.lib.cuda_prefill_wait(self.handle, 60000000), "wait")
        out, row = [], 0
        for _, _, text in spans:
            out.append(self.residual[row:row + len(text)].clone())
            row += len(text)
        return out

    def text(self, seq, tokens, sizes):
        """A whole text in chunks; the last size repeats. Returns the residual of all rows."""
        out, at, sizes = [], 0, list(sizes)
        while at < len(tokens):
            n = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            out += self.run([(seq, at, tokens[at:at + n])])
            at += n
        return torch.cat(out)

    def close(self):
        self.lib.cuda_prefill_close(self.handle)


def kv_of(model, seq, layer, first, end):
    """K and V of positions [first, end) from the pages: two tensors [heads, positions, d], bf16 or codes of E4M3."""
    spec, kind = model.spec.layer[layer], model.spec.layer[layer].type
    heads, d, table = model.spec.kv_heads[kind], model.spec.head_dim[kind], model.tables[seq, kind]
    pool = model.kv[kind].view(-1, model.spec.page_bytes[kind])
    where = torch.arange(first, end, device="cuda")
    pages = torch.tensor(list(table), device="cuda")[where // 32 % len(table)]
    out = []
    for at in (spec.k_offset, spec.v_offset):
        part = pool[:, at:at + heads * 32 * d * model.kv_bytes]
        part = (part.view(torch.bfloat16) if model.kv_bytes == 2 else part).view(-1, heads, 32, d)
        out.append(part[pages, :, where % 32].transpose(0, 1))
    return out


def kept(model, layer, tokens):
    """First position whose K and V are of use once `tokens` positions are there."""
    return max(0, tokens - (WINDOW - 1)) if model.spec.layer[layer].type == 0 else 0


def snapshot(model, seq, tokens):
    return [x.view(torch.int16 if model.kv_bytes == 2 else torch.uint8).clone() for i in range(model.spec.layers) for x in kv_of(model, seq, i, kept(model, i, tokens), tokens)]


def invariance(model, prefill, tokens):
    """The same text in several ways. Sequences 1.. hold it; sequence 0 is of another test, 7 holds other texts."""
    n, good = len(tokens), True
    other = [int(x) for x in torch.randint(0, 262144, (n,))]
    want = prefill.text(1, tokens, [ROWS_MAX])
    pages = snapshot(model, 1, n)

    def judge(name, got, seq):
        nonlocal good
        rows = torch.equal(got.view(torch.int32), want.view(torch.int32))
        kv = all(torch.equal(x, y) for x, y in zip(snapshot(model, seq, n), pages))
        good &= rows and kv
        print(f"  {name}: {'same bits' if rows and kv else 'DIFFERENT' + ('' if rows else ', first at position ' + str(int((got != want).any(dim=-1).nonzero()[0])))}", flush=True)

    judge("chunks of 512", prefill.text(2, tokens, [512]), 2)
    judge("odd chunks", prefill.text(3, tokens, [1, 17, 63, 145, 333, 64, 200, 31, 1000, 2, 777]), 3)
    got = []
    for at in range(0, n, 300):       # beside another sequence that stands elsewhere, before and behind it in turn
        mine, its = (4, at, tokens[at:at + 300]), (7, at // 2, other[at // 2:at // 2 + 150])
        flip = at % 600 == 0
        got.append(prefill.run([its, mine] if flip else [mine, its])[1 if flip else 0])
    judge("beside another sequence", torch.cat(got), 4)
    if model.kv_bytes == 1:
        got = []
        for at in range(0, n, 128):
            got.append(prefill.run([(8 + i, at, tokens[at:at + 128]) for i in range(16)])[7])
        judge("sixteen at once", torch.cat(got), 15)
    return good


def states_of_last_rows(model, whole, tokens):
    """Each prompt's last row alone through the last layer, several at once, against all rows of the layer; and logits from a state against a step's."""
    alone, good = Prefill(model, whole=False), True
    lengths = {1: 1, 2: 4, 3: 65, 4: 300, 5: 777, 7: min(len(tokens), 1100)}
    want = {}
    for seq, n in lengths.items():
        whole.run([(seq, 0, tokens[:n])])
        want[seq] = model.state(seq, n - 1).clone()
    model.states.fill_(float("nan"))
    model.check(alone.launch([(seq, 0, tokens[:n]) for seq, n in lengths.items() if n < 1000]), "run")
    model.check(alone.lib.cuda_prefill_wait(alone.handle, 60000000), "wait")
    model.check(alone.launch([(7, 0, tokens[:lengths[7] - 3])]), "run")
    model.check(alone.lib.cuda_prefill_wait(alone.handle, 60000000), "wait")
    model.check(alone.launch([(7, lengths[7] - 3, tokens[lengths[7] - 3:lengths[7]])]), "run")
    model.check(alone.lib.cuda_prefill_wait(alone.handle, 60000000), "wait")
    for seq, n in lengths.items():
        same = torch.equal(model.state(seq, n - 1).view(torch.int32), want[seq].view(torch.int32))
        good &= same
        if not same:
            print(f"  the state of a prompt of {n}: {int((model.state(seq, n - 1) != want[seq]).sum())} elements differ")
    model.step([(seq, n, [tokens[n]]) for seq, n in lengths.items()])          # their states come from the step, so do these logits
    first = [model.logits[i].clone() for i in range(len(lengths))]
    states = [model.state(seq, n).clone() for seq, n in lengths.items()]
    model.step([(seq, n, [tokens[n]]) for seq, n in lengths.items()], from_states=True)
    for i, (seq, n) in enumerate(lengths.items()):
        same = torch.equal(model.logits[i].view(torch.int32), first[i].view(torch.int32)) and torch.equal(model.state(seq, n), states[i])
        good &= same
        if not same:
            print(f"  logits by the state of position {n}: {int((model.logits[i] != first[i]).sum())} differ")
    alone.close()
    print(f"  states of last rows: {'same bits' if good else 'DIFFERENT'}", flush=True)
    return good


def refusals(prefill):
    """What is wrong is refused and nothing is launched."""
    wrong = {"no token": [(0, 0, [])], "a token that is not in the vocabulary": [(0, 0, [prefill.model.spec.vocab])], "a sequence twice": [(0, 0, [1]), (0, 1, [2])],
             "a sequence that is not there": [(99, 0, [1])], "past the context": [(0, prefill.model.options.context_max, [1])],
             "more rows than agreed": [(0, 0, [1] * (ROWS_MAX + 1))]}
    bad = [name for name, spans in wrong.items() if prefill.launch(spans) != E_RANGE]
    print(f"  refusals: {'as they should be' if not bad else 'ACCEPTED: ' + ', '.join(bad)}")
    return not bad


class Reference:
    """transformers' hidden states, K, V and logits of a text."""

    def __init__(self, model, tokens, prompt):
        kept_rows = []
        hook = model.model.layers[-1].register_forward_hook(lambda m, i, o: kept_rows.append((o[0] if isinstance(o, tuple) else o).detach().float()))
        with torch.no_grad():
            out = model(torch.tensor([tokens[:prompt]], device="cuda"), use_cache=True, logits_to_keep=1)
            self.residual = kept_rows[0].view(prompt, -1)
            self.kv = [(x.keys[0].float(), x.values[0].float()) for x in out.past_key_values.layers]
            hook.remove()
        self.logits = l.reference_logits(model, tokens, prompt - 1)


def report(name, ours, low, want):
    """Relative errors per row of ours and of transformers' bf16; ours may be a fifth above."""
    e, y = l.relative(ours, want), l.relative(low, want)
    good = bool(torch.isfinite(e).all()) and float(e.max()) < 1.2 * float(y.max()) and float(e.mean()) < 1.2 * float(y.mean())
    print(f"  {name}: ours {e.mean():.2e} mean {e.max():.2e} max, transformers bf16 {y.mean():.2e} mean {y.max():.2e} max{'' if good else '  FAIL'}", flush=True)
    return good


def accuracy(model, scales, prefill, reference, args, tokens):
    """Sequence 0: the prompt by prefill, the first step from the state it leaves, as the pipeline does it."""
    residual = prefill.text(0, tokens[:args.prompt], [ROWS_MAX])
    rows = [model.step([(0, args.prompt - 1, [tokens[args.prompt - 1]])], from_states=True) and model.logits[0].clone()]
    widen = lambda x: x.float() if model.kv_bytes == 2 else x.contiguous().view(torch.float8_e4m3fn).float()
    kv = [[widen(x) for x in kv_of(model, 0, i, kept(model, i, args.prompt), args.prompt)] for i in range(model.spec.layers)]
    for at in range(args.prompt, len(tokens)):
        model.step([(0, at, [tokens[at]])])
        rows.append(model.logits[0].clone())
    got, keep = torch.stack(rows), torch.ones(model.spec.vocab, dtype=torch.bool, device="cuda")
    keep[list(model.spec.suppress)[:model.spec.suppress_count]] = False
    low, want = l.yardsticks(reference, model, args, scales, lambda m: Reference(m, tokens, args.prompt))
    good = report("residual", residual, low.residual, want.residual)
    flat = lambda x: (x if args.kv == "bf16" else l.as_cached(x)).transpose(0, 1).flatten(1)        # [positions, heads * d]
    for i in range(model.spec.layers):
        if i not in (0, 1, 5, model.spec.layers // 2, model.spec.layers - 1):
            continue
        for j, name in enumerate(("K", "V")):
            first = want.kv[i][j].shape[1]               # transformers keeps a window of the sliding layers
            good &= report(f"layer {i} {name}", flat(kv[i][j][:, -first:]), flat(low.kv[i][j]), flat(want.kv[i][j]))
    good &= report(f"logits of {len(rows)} decode steps behind it", got[:, keep], low.logits[:, keep], want.logits[:, keep])
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=6)
    l.add_format_options(parser)
    parser.add_argument("--model", choices=list(b.SHAPES), default="gemma-4-12b")
    parser.add_argument("--kv", choices=["bf16", "fp8"], default="bf16")
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--long", type=int, default=3500, help="length of the text of the bit test; 0: none")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("skip: no GPU")
        return 77
    torch.manual_seed(12)
    began = time.time()
    tokens = [int(x) for x in torch.randint(0, 262144, (max(args.prompt + args.decode, args.long, 1101),))]
    print(f"prefill: {args.model}, {args.layers} layers, {args.format}, KV {args.kv}, rule {args.rule}, {args.prompt} prompt + {args.decode} decode, bits of {args.long}", flush=True)
    reference = l.make_reference(args.layers, args.kv, shape=args.model)
    model, scales = l.make_ours(reference, args, tokens[:args.prompt], seqs=8 if args.kv == "bf16" else 24,
                                context=(len(tokens) + 1023) // 1024 * 1024, ring_pages=RING_PAGES, shape=args.model, kv=args.kv)
    prefill = Prefill(model)
    good = refusals(prefill) & states_of_last_rows(model, prefill, tokens)
    if args.long:
        good &= invariance(model, prefill, tokens[:args.long])
    good &= accuracy(model, scales, prefill, reference, args, tokens[:args.prompt + args.decode])
    prefill.close()
    model.close()
    print(f"{'ok' if good else 'FAIL'} ({time.time() - began:.0f} s)", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
