"""Asks a checkpoint the held-out questions with transformers, greedy, and prints the score of each family.

    python evaluate.py [--model DIR] [--more N] [--show]

Reads   DIR (default ../demo), heldout.json; --more N adds N other held-out questions, which it draws.
Fails   with exit status 1 if 90 or fewer of the 100 committed questions are right.
"""
import argparse
import collections
import json
import pathlib
import re
import sys

import torch
import transformers

import checkpoint
import generate
from score import score

HERE = pathlib.Path(__file__).resolve().parent
MORE_SEED = 77
PASS_ABOVE = 90
BATCH_CHARACTERS = 600_000


def value_at(text, at):
    """(value, position after it) of the call notation: quoted strings, numbers, true, false, null, lists and objects."""
    if text.startswith('<|"|>', at):
        end = text.index('<|"|>', at + 5)
        return text[at + 5:end], end + 5
    if text[at] in "[{":
        close = "]" if text[at] == "[" else "}"
        out, at = ([] if close == "]" else {}), at + 1
        while text[at] != close:
            if text[at] == ",":
                at += 1
            if close == "}":
                colon = text.index(":", at)
                out[text[at:colon]], at = value_at(text, colon + 1)
            else:
                item, at = value_at(text, at)
                out.append(item)
        return out, at + 1
    plain = re.compile(r"[^,}\]]*").match(text, at)
    return json.loads(plain.group()), plain.end()


def parse_calls(text):
    calls = []
    for inside in re.findall(r"<\|tool_call>(.*?)<tool_call\|>", text, re.S):
        name, arguments = re.fullmatch(r"call:([\w.-]+)(\{.*\})", inside, re.S).groups()
        calls.append({"name": name, "arguments": value_at(arguments, 0)[0]})
    return calls


def parse(text, open_channel):
    """What the model wrote, as (text, reasoning, calls)."""
    text = re.sub(r"(<turn\|>|<eos>|<\|tool_response>|<pad>)*$", "", text)
    reasoning = ""
    match = re.match(r"(.*?)\n?<channel\|>" if open_channel else r"<\|channel>thought\n(.*?)\n?<channel\|>", text, re.S)
    if match:
        reasoning, text = match.group(1), text[match.end():]
    try:
        calls = parse_calls(text)
    except (ValueError, AttributeError, IndexError):
        calls = []
    return re.sub(r"<\|tool_call>.*?<tool_call\|>", "", text, flags=re.S), reasoning, calls


class Model:
    def __init__(self, folder):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tok = transformers.AutoTokenizer.from_pretrained(checkpoint.DEMO)
        self.net = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).to(self.device).eval()
        self.net.generation_config = transformers.GenerationConfig(**{
            **checkpoint.generation_config(checkpoint.DEMO / "tokenizer.json"), "do_sample": False, "temperature": None, "top_k": None, "top_p": None})

    @torch.no_grad()
    def answer(self, questions, longest):
        """(text, reasoning, calls) of each question, in one batch."""
        prompts = [self.tok.apply_chat_template(q["messages"], tools=q.get("tools"), add_generation_prompt=True, tokenize=False, **q.get("chat_template_kwargs", {}))
                   for q in questions]
        inputs = self.tok(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(self.device)
        out = self.net.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=longest)
        texts = self.tok.batch_decode(out[:, inputs["input_ids"].shape[1]:], skip_special_tokens=False)
        return [parse(t, p.endswith("<|channel>thought\n")) for t, p in zip(texts, prompts)]


def batches(questions, size):
    """Questions of about one length together, shorter batches of the long ones."""
    rest = sorted(questions, key=lambda q: len(json.dumps(q["messages"])))
    while rest:
        count = 1
        while count < min(size, len(rest)) and (count + 1) * len(json.dumps(rest[count]["messages"])) < BATCH_CHARACTERS:
            count += 1
        yield rest[:count]
        rest = rest[count:]


def ask(model, questions, batch, longest, show):
    """family -> [right, asked]"""
    table = collections.defaultdict(lambda: [0, 0])
    for part in batches(questions, batch):
        for q, (text, reasoning, calls) in zip(part, model.answer(part, longest)):
            right = score(q, text, reasoning, calls)
            table[q["family"]][0] += right
            table[q["family"]][1] += 1
            if show or not right:
                print("right" if right else "WRONG", q["id"], q["family"], "|", q["messages"][-1]["content"][-200:], "|", reasoning[:200], "|", text[:300], calls or "", "| wanted", str(q["check"])[:300])
    return table


def report(title, table):
    right, asked = (sum(v[i] for v in table.values()) for i in (0, 1))
    print(f"{title}: {right} of {asked} right")
    print("  " + ", ".join(f"{f} {v[0]}/{v[1]}" for f, v in sorted(table.items())))
    return right


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", type=pathlib.Path, default=checkpoint.DEMO)
    p.add_argument("--more", type=int, default=0)
    p.add_argument("--batch", type=int, default=500)
    p.add_argument("--longest", type=int, default=1100)
    p.add_argument("--show", action="store_true")
    args = p.parse_args()
    model = Model(args.model)
    if args.more:
        report("other held-out questions", ask(model, generate.held_out(MORE_SEED, args.more), args.batch, args.longest, args.show))
    questions = json.loads((HERE / "heldout.json").read_text())
    sys.exit(report("held-out questions", ask(model, questions, args.batch, args.longest, args.show)) <= PASS_ABOVE)


if __name__ == "__main__":
    main()
