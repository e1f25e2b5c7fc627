"""Requests for tests whose subject is not what the model says: many shapes, always the same ones.

Each body fixes its output by temperature 0 or a seed. Most ignore the end of the turn, so that outputs have a known
length whatever the model knows; token ids are asked for, so that outcomes are compared token by token.
"""
import random

WORDS = ("river stone lamp green seven garden clock paper north violin bread winter signal forest copper window island "
         "thread morning engine silver pocket harbour letter circle music shadow orange ladder feather").split()
SAID = ("Tell me a short story about a {a} and a {b}.", "What is {n} plus {m}?", "List the letters of the word {a}.",
        "Sort these words: {a}, {b}, {c}.", "Make a JSON object with {a} {n} and {b} {m}.", "Repeat after me: {a} {b} {a} {b} {a} {b}.",
        "How many words are in: {a} {b} {c}?", "Write {a} backwards.")
TOOL = {"type": "function", "name": "get_weather", "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Name of the city."}}, "required": ["city"]}}


def said(r):
    a, b, c = r.sample(WORDS, 3)
    return r.choice(SAID).format(a=a, b=b, c=c, n=r.randrange(100), m=r.randrange(100))


def long_text(r, words):
    return " ".join(r.choice(WORDS) for _ in range(words))


def body(index, least=40, most=120, seed=1):
    """Request number `index` of the endless list `seed`: between `least` and `most` output tokens."""
    r = random.Random(f"{seed}/{index}")
    tokens = r.randint(least, most)
    kind = index % 8
    b = {"input": said(r), "max_output_tokens": tokens, "ignore_eos": True, "return_token_ids": True, "temperature": 0}
    if kind in (1, 3, 5):
        b.update(temperature=1.0, top_p=0.95, top_k=64, seed=r.randrange(1 << 40))
    if kind == 2:  # longer than the sliding window
        b["input"] = said(r) + " " + long_text(r, 320)
    if kind == 3:
        b["input"] = [{"role": "user", "content": said(r)}, {"role": "assistant", "content": long_text(r, 12)}, {"role": "user", "content": said(r)}]
        b["instructions"] = "Answer in one sentence."
    if kind == 4:  # a text that repeats itself: drafts are often right
        b["input"] = "Repeat: " + " ".join([long_text(r, 6)] * 12)
    if kind == 5:
        b.update(presence_penalty=0.5, frequency_penalty=0.25, min_p=0.02)
    if kind == 6:
        b["chat_template_kwargs"] = {"enable_thinking": True}
    if kind == 7:  # ends where the model ends it
        b["ignore_eos"] = False
        b["tools"] = [TOOL]
        b["input"] = f"What is the weather in {r.choice(('Oslo', 'Cairo', 'Lima', 'Kyoto'))}?"
        if index % 16 == 15:  # the answer begins in the middle of a call
            b["tool_choice"] = "required"
    return b


def bodies(count, **kind):
    return [body(i, **kind) for i in range(count)]


def as_chat(b):
    """The same request for /v1/chat/completions."""
    out = {k: v for k, v in b.items() if k not in ("input", "instructions", "max_output_tokens", "tools")}
    messages = [{"role": "system", "content": b["instructions"]}] if "instructions" in b else []
    messages += [{"role": "user", "content": b["input"]}] if isinstance(b["input"], str) else b["input"]
    out.update(messages=messages, max_tokens=b["max_output_tokens"])
    if "tools" in b:
        out["tools"] = [{"type": "function", "function": {k: v for k, v in t.items() if k != "type"}} for t in b["tools"]]
    return out
