"""tests/gpu/media.py - pictures and sound on the GPU: the prefill of Gemma 4 12B's shapes against transformers and bit by bit against itself, and a whole server
against the CPU's.

    python3 tests/gpu/media.py [--layers 6] [--only kernels|server|gemma3|first] [--picture FILE] [--model gemma-3-12b]

kernels: a text with pictures in it, one of them across the edge of the window, small ones, and rows of sound; their soft rows are random. Residual stream,
K and V are compared with transformers in f32 given the same embeddings and its own masks for pictures, beside transformers' bf16 error, which is the
yardstick; then the same in other chunks and beside another sequence: the same bits. server: the checkpoint of tests/e2e/seeing.py answers as
transformers does, and gives the CPU server's very tokens. gemma3: that of tests/e2e/seeing_gemma3.py; its tower computes in bf16 on a GPU, so log
probabilities are compared with a bound. first: only when asked for: the time to the first token of Gemma 4 12B (or --model) with random weights (FP8),
with one picture (--picture, a JPEG of 1920 x 1080 say) and with as many tokens of text.
Environment: SLUICE_BUILD as for the end-to-end tests. Exit 0 pass, 1 fail, 77 no GPU."""
import argparse
import asyncio
import ctypes as c
import json
import os
import sys
import time

import torch

import backend as b
import logits as l
import prefill as p

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
TEXT = 1900
PICTURES = [(10, 280), (300, 1), (302, 3), (400, 64), (500, 65), (1000, 264), (1270, 256), (1600, 270)]  # first position, soft tokens
SOUNDS = [(700, 50), (1560, 33)]


class Piece(c.Structure):
    _fields_ = [("first_row", c.c_uint32), ("rows", c.c_uint32), ("sees_ahead", c.c_uint32), ("soft", c.c_void_p),
                ("data", c.c_void_p), ("columns", c.c_uint32)]


class SeeingPrefill(p.Prefill):
    """Feeds spans of one text whose soft rows lie in `soft`, f32 [TEXT][hidden] on the host."""

    def __init__(self, model, soft):
        model.options.soft_rows = 1
        super().__init__(model)
        self.soft = soft.contiguous()

    def see(self, spans):
        """spans: (seq, first, tokens); those of sequences below 8 hold the pictures."""
        pieces, row = [], 0
        for seq, first, tokens in spans:
            end = first + len(tokens)
            for kind, items in ((1, PICTURES), (0, SOUNDS)):
                for at, n in items if seq < 7 else []:
                    low, high = max(at, first), min(at + n, end)
                    if low < high:
                        assert kind == 0 or (low == at and high == at + n), "a test must not cut a picture"
                        pieces.append(Piece(row + low - first, high - low, kind, self.soft[low:].data_ptr()))
            row += len(tokens)
        if pieces:
            self.model.check(self.lib.cuda_prefill_soft(self.handle, (Piece * len(pieces))(*pieces), len(pieces)), "soft")

    def run(self, spans):
        self.see(spans)
        return super().run(spans)


def cuts(sizes):
    """Chunk sizes, made shorter or longer so that no picture is cut."""
    out, at = [], 0
    sizes = list(sizes)
    while at < TEXT:
        n = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        end = min(at + n, TEXT)
        for first, count in PICTURES:
            if first < end < first + count:
                end = first if first > at else first + count
        out.append(end - at)
        at = end
    return out


def reference_of(model, tokens, soft):
    """transformers' residual stream, K and V, given the same embeddings and its own masks for pictures."""
    if "Gemma3" in type(model).__name__:
        from transformers.models.gemma3.modeling_gemma3 import create_masks_for_vision_model
    else:
        from transformers.models.gemma4_unified.modeling_gemma4_unified import create_masks_for_vision_model
    kept_rows = []
    hook = model.model.layers[-1].register_forward_hook(lambda m, i, o: kept_rows.append((o[0] if isinstance(o, tuple) else o).detach().float()))
    ids = torch.full((1, TEXT), -1, device="cuda")
    for i, (first, count) in enumerate(PICTURES):
        ids[0, first:first + count] = i
    with torch.no_grad():
        embeds = model.model.embed_tokens(torch.tensor([tokens], device="cuda"))
        for first, count in PICTURES + SOUNDS:
            embeds[0, first:first + count] = soft[first:first + count].cuda().to(embeds.dtype)
        positions = torch.arange(TEXT, device="cuda")[None]
        masks = create_masks_for_vision_model(model.config, embeds, None, None, positions, ids)
        model.model(inputs_embeds=embeds, attention_mask=masks, position_ids=positions, use_cache=False)
    hook.remove()
    return kept_rows[0].view(TEXT, -1)


def kernels(layers, shape):
    torch.manual_seed(21)
    tokens = [int(x) for x in torch.randint(0, 262144, (TEXT,))]
    soft = torch.randn(TEXT, 3840).to(torch.bfloat16).float()
    reference = l.make_reference(layers, shape=shape)
    if shape == "gemma-4-12b":
        reference.config.use_bidirectional_attention = "vision"
    model = b.Model(layers, b.BF16, seqs=8, context=2048, ring_pages=p.RING_PAGES, shape=shape)
    l.hand_over(reference, model)
    eyes = SeeingPrefill(model, soft)
    want = eyes.text(1, tokens, [p.ROWS_MAX])
    pages, good = p.snapshot(model, 1, TEXT), True

    def judge(name, got, seq):
        nonlocal good
        same = torch.equal(got.view(torch.int32), want.view(torch.int32)) and all(torch.equal(x, y) for x, y in zip(p.snapshot(model, seq, TEXT), pages))
        good &= same
        print(f"  {name}: {'same bits' if same else 'DIFFERENT, first at position ' + str(int((got != want).any(dim=-1).nonzero()[0]) if (got != want).any() else -1)}", flush=True)

    judge("chunks of about 512", eyes.text(2, tokens, cuts([512])), 2)
    judge("odd chunks", eyes.text(3, tokens, cuts([1, 17, 63, 145, 333, 64, 200, 31, 1000, 2, 77])), 3)
    other, got, at = [int(x) for x in torch.randint(0, 262144, (TEXT,))], [], 0
    for i, n in enumerate(cuts([300])):
        mine, its = (4, at, tokens[at:at + n]), (7, at // 2, other[at // 2:at // 2 + 150])
        got.append(eyes.run([its, mine] if i % 2 else [mine, its])[i % 2])
        at += n
    judge("beside another sequence", torch.cat(got), 4)
    plain = p.Prefill.run(eyes, [(5, 0, tokens[:64])])[0]        # text again, after pictures
    good &= torch.equal(plain[:10].view(torch.int32), want[:10].view(torch.int32))
    low = reference_of(reference, tokens, soft)
    full = reference.float()
    full.model.embed_tokens.embed_scale.fill_(62.0)
    high = reference_of(full, tokens, soft)
    good &= p.report("residual", want, low, high)
    rows = torch.tensor([first + i for first, count in PICTURES for i in range(count)])
    good &= p.report("residual of the pictures' rows", want[rows], low[rows], high[rows])
    eyes.close()
    model.close()
    return good


def server():
    import test_media as t
    from server import Server
    from wsclient import gather_limited, run
    with open(os.path.join(t.GOLDEN, "media", "seeing.json"), encoding="utf-8") as f:
        cases = json.load(f)
    with t.serve() as s:
        if not t.takes_video_files(s):
            print("  this build decodes no video files: those are left out", flush=True)
            cases = {name: case for name, case in cases.items() if not name.startswith("video file")}
    bodies = []
    for case in cases.values():
        files = [t.golden_part(n, t.input_part) for n in case["files"]]
        bodies += [t.input_body(files, case["question"]), t.input_body(files, case["question"], temperature=1.0, seed=7, max_output_tokens=40, ignore_eos=True)]
    outcomes, good = {}, True
    for device in ("cpu", "cuda"):
        with Server("--device", device, "--kv-cache-dtype", "f32", model=t.model()) as s:
            assert s.status()["device"]["name"] == device, s.log()
            results = asyncio.run(gather_limited(4, [run(s, x) for x in bodies]))
            outcomes[device] = [r.outcome() for r in results]
            right = sum(r.response["token_ids"] == case["answer"] and r.response["prompt_token_ids"] == case["prompt"] for r, case in zip(results[::2], cases.values()))
            print(f"  {device}: {right} of {len(cases)} answers are transformers'", flush=True)
            good &= right == len(cases)
    same = sum(x == y for x, y in zip(*outcomes.values()))
    print(f"  {same} of {len(bodies)} responses are the same on both", flush=True)
    return good and same == len(bodies)


def gemma3():
    import test_gemma3 as t
    good = True
    with t.serve("--device", "cuda") as s:
        assert s.status()["device"]["name"] == "cuda", s.log()
        for name, case in t.cases().items():
            if name.startswith("pieces"):
                continue
            status, answer = t.post(s, "/v1/chat/completions", t.chat_body(t.parts(case), case["question"], logprobs=True, top_logprobs=10))
            assert status == 200 and answer["prompt_token_ids"] == case["prompt"], (name, answer)
            choice = answer["choices"][0]
            got = [x["logprob"] for x in choice["logprobs"]["content"][0]["top_logprobs"]]
            worst = max(abs(a - b) for a, b in zip(got, case["logprobs"]))
            good &= worst < (3e-2 if case["files"] else 5e-5)      # soft tokens of bf16 operands
            print(f"  {name}: log probabilities off by {worst:.2g}, answer {'the same' if choice['token_ids'] == case['answer'] else 'another'}", flush=True)
    return good


def first_token(path, shape):
    import statistics
    import test_media as t
    from server import Server
    from wsclient import http
    picture = open(path, "rb").read()

    async def ask(s, body):
        began = time.perf_counter()
        status, _, answer = await http(s, "POST", "/v1/chat/completions", body)
        assert status == 200, answer
        return json.loads(answer), (time.perf_counter() - began) * 1e3

    def body(i, parts, text):
        return t.chat_body(parts, f"{i} {text}", max_tokens=2, ignore_eos=True)

    with Server("--device", "cuda", "--random-weights", shape, "--weights-dtype", "fp8", "--max-context", "8192", "--media-cache-mib", "64") as s:
        whole = asyncio.run(ask(s, body(0, [t.chat_part(picture)], "What is this?")))[0]
        count = whole["usage"]["prompt_tokens"]
        text = " ".join(["the"] * 40)
        while asyncio.run(ask(s, body(0, [], text)))[0]["usage"]["prompt_tokens"] < count:
            text += " the red house"
        # another picture each time: one byte behind the file's end, which no decoder reads
        kinds = {"a picture": lambda i: body(i, [t.chat_part(picture + bytes([i]))], "What is this?"), "a picture again": lambda i: body(i, [t.chat_part(picture)], "What is this?"),
                 "text": lambda i: body(i, [], text)}
        for name, make in kinds.items():
            got = [asyncio.run(ask(s, make(i))) for i in range(12)][2:]
            stages = {k: statistics.median(a["sluice"]["stage_ms"][k] for a, _ in got) for k in ("tokenize", "prefill")}
            print(f"  {name}: {got[0][0]['usage']['prompt_tokens']} tokens, first token after {statistics.median(a['sluice']['ttft_ms'] for a, _ in got):.1f} ms "
                  f"(vision and tokenize {stages['tokenize']:.1f}, prefill {stages['prefill']:.1f}); whole answer of 2 tokens {statistics.median(ms for _, ms in got):.1f} ms", flush=True)
    return True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--only", choices=["kernels", "server", "gemma3", "first"])
    parser.add_argument("--picture", default="")
    parser.add_argument("--model", choices=list(b.SHAPES), default="gemma-4-12b")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("skip: no GPU")
        return 77
    began, good = time.time(), True
    if args.only == "first":
        return 0 if first_token(args.picture, args.model) else 1
    if args.only in (None, "kernels"):
        print(f"media: {args.layers} layers of {args.model}'s shape, {len(PICTURES)} pictures, {len(SOUNDS)} sounds", flush=True)
        good &= kernels(args.layers, args.model)
    if args.only in (None, "gemma3"):
        print("media: Gemma 3's tower in a server on the GPU", flush=True)
        good &= gemma3()
    if args.only in (None, "server"):
        print("media: a server on the GPU and one on the CPU", flush=True)
        good &= server()
    print(f"{'ok' if good else 'FAIL'} ({time.time() - began:.0f} s)", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
