#!/usr/bin/env python3
"""Writes draft_vocab.json, the tokens of a model in the order of how often they occur: what `sluice serve --draft-vocab N` lets a drafter propose (model/draft_vocab.h).

    python3 draft_vocab.py --server http://127.0.0.1:8080 --vocab 262144 --out DRAFTER/draft_vocab.json TEXT...
    python3 draft_vocab.py --demo 20000 --vocab 2048 --out ../demo/assistant/draft_vocab.json

Counts the tokens of text files (answers rather than questions: a drafter proposes what the model says), as a running server's POST /tokenize cuts them; or of so many of the demo model's training
answers, which needs the package `tokenizers`. Tokens that do not occur follow in the order of their numbers. Prints how much of the text the first N cover. Fails with the server's words.
"""
import argparse
import collections
import itertools
import json
import urllib.request

PIECE_BYTES = 1 << 16


def of_texts(server, paths):
    for path in paths:
        with open(path, encoding="utf-8") as f:
            while piece := "".join(f.readlines(PIECE_BYTES)):
                body = json.dumps({"prompt": piece, "add_special_tokens": False}).encode()
                with urllib.request.urlopen(urllib.request.Request(server + "/tokenize", body, {"Content-Type": "application/json"})) as answer:
                    yield json.load(answer)["tokens"]


def of_demo(count):
    import generate
    return (completion for _, completion in itertools.islice(generate.examples(1), count))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--server", default="http://127.0.0.1:8080")
    p.add_argument("--demo", type=int, default=0, help="count so many training answers of the demo model instead of texts")
    p.add_argument("--vocab", type=int, required=True, help="tokens of the model")
    p.add_argument("--out", required=True)
    p.add_argument("text", nargs="*")
    args = p.parse_args()
    if bool(args.demo) == bool(args.text):
        p.error("either texts or --demo")
    seen = collections.Counter()
    for tokens in of_demo(args.demo) if args.demo else of_texts(args.server, args.text):
        seen.update(tokens)
    ranked = sorted(range(args.vocab), key=lambda t: (-seen[t], t))
    with open(args.out, "w") as f:
        json.dump(ranked, f, separators=(",", ":"))
        f.write("\n")
    total = sum(seen.values())
    print(f"{total} tokens, {len(seen)} different ones")
    for n in (64 << i for i in range(16)):
        if n < args.vocab:
            print(f"the first {n}: {100 * sum(seen[t] for t in ranked[:n]) / total:.2f} %")


if __name__ == "__main__":
    main()
