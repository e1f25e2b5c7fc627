"""Writes the demo model's conversations: draws tasks, keeps the held-out ones apart, renders and tokenizes them.

Reads   ../demo/chat_template.jinja and ../demo/tokenizer.json.
Gives   examples() for training, held_out() for tests, texts() for building the tokenizer. All of it follows from a seed.
Fails   only if the template or a task does.

    python generate.py show 20          prints conversations
    python generate.py heldout          writes heldout.json
"""
import hashlib
import json
import pathlib
import random
import sys

import tasks_about
import tasks_facts
import tasks_formats
import tasks_numbers
import tasks_stories
import tasks_tools
import tasks_turns
import tasks_words
from item import Item
from template_check import DEMO, load_template

TASKS = tuple(t for m in (tasks_numbers, tasks_words, tasks_facts, tasks_about, tasks_stories, tasks_formats, tasks_tools, tasks_turns) for t in m.TASKS)
WEIGHTS = [t[0] for t in TASKS]
HELD_OUT_ONE_IN = 40
THINKING_SHARE = 0.2
LOOSE_SHARE = 0.15
HELD_OUT_SEED = 20261121
DRAWS_LEAST, DRAWS_EACH = 60_000, 120      # draws for a set of held-out questions
TURN_END, CALL_END = "<turn|>", "<|tool_response>"


def is_held_out(item):
    """One conversation in 40, chosen by what the user says; never one of the questions that everybody asks."""
    key = item.key()
    if key in tasks_about.CANONICAL:
        return False
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % HELD_OUT_ONE_IN == 0


LOWER = {"facts", "arithmetic", "dates", "rhymes", "long counting", "steps", "sequences", "comparison", "numbers in words", "long multiplication"}
LOOSE = LOWER | {"stories", "spelling", "lists", "word problems", "about itself", "about Sluice", "reasoning", "colours and shapes"}
HELLOS = ("Hi! ", "Hello! ", "Hey, ", "Hi, ", "ok, ", "Okay. ", "Now: ", "Next question: ", "Thanks! ")


def as_people_type(r, item):
    """Sometimes without capitals or the last mark, sometimes with a greeting in front."""
    message = dict(item.messages[-1])
    text, kind = message["content"], r.random()
    if kind < 0.3 and text[-1] in ".?" and not text.endswith("..."):
        text = text[:-1]
    if 0.2 < kind < 0.6 and item.family in LOWER:
        text = text.lower()
    elif 0.2 < kind < 0.7 and text[:2] != "I ":
        text = text[0].lower() + text[1:]
    elif kind > 0.7:
        text = r.choice(HELLOS) + text
    message["content"] = text
    item.messages = [*item.messages[:-1], message]


def draw(r):
    """Any conversation, held out or not."""
    _, family, task = r.choices(TASKS, WEIGHTS)[0]
    item = task(r)
    item.family = item.family or family
    if item.thinking is None:
        item.thinking = r.random() < THINKING_SHARE
    if item.family in LOOSE and r.random() < LOOSE_SHARE:
        as_people_type(r, item)
    return item


def value_text(value):
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def call_text(name, arguments):
    """A call as the model writes it; the template writes calls of earlier turns in the same way."""
    pairs = ",".join(f"{k}:{value_text(v)}" for k, v in sorted(arguments.items(), key=lambda kv: kv[0].lower()))
    return f"<|tool_call>call:{name}{{{pairs}}}<tool_call|>"


class Renderer:
    """A conversation as the prompt and what the model says to it."""

    def __init__(self):
        self.template = load_template()

    def prompt(self, item):
        return self.template(messages=item.messages, tools=item.tools, enable_thinking=item.thinking, add_generation_prompt=True)

    def completion(self, item):
        out = ""
        if item.thinking:
            after_result = item.messages[-1]["role"] == "tool"       # then the prompt has opened the channel already
            out = ("" if after_result else "<|channel>thought\n") + item.thought + "\n<channel|>"
        if item.calls:
            return out + "".join(call_text(*c) for c in item.calls) + CALL_END
        return out + item.text + TURN_END


def training_items(seed):
    """Conversations for training, without end."""
    r = random.Random(seed)
    while True:
        item = draw(r)
        if not is_held_out(item):
            yield item


def examples(seed):
    """(prompt ids, completion ids) for training, without end."""
    import tokenizers
    tok = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    render = Renderer()
    for item in training_items(seed):
        yield tok.encode(render.prompt(item)).ids, tok.encode(render.completion(item)).ids


def texts(seed, count):
    """What is said in `count` training conversations, for the tokenizer."""
    items = training_items(seed)
    render = Renderer()
    for _ in range(count):
        item = next(items)
        yield render.prompt(item) + render.completion(item)


def as_question(item, number):
    """As a client asks it: results of tools are text on the wire."""
    messages = [{**m, "content": json.dumps(m["content"])} if m["role"] == "tool" and not isinstance(m["content"], str) else m for m in item.messages]
    out = {"id": f"q{number:03d}", "family": item.family, "messages": messages}
    if item.tools:
        out["tools"] = item.tools
    if item.thinking:
        out["chat_template_kwargs"] = {"enable_thinking": True}
    out["check"] = item.check
    return out


def held_out(seed, count):
    """Questions that training never sees, as many from each family as possible."""
    r = random.Random(seed)
    found = {}
    for _ in range(max(DRAWS_LEAST, DRAWS_EACH * count)):
        item = draw(r)
        if is_held_out(item):
            found.setdefault(item.family, {}).setdefault(item.key(), item)
    chosen = []
    families = {family: list(items.values()) for family, items in sorted(found.items())}
    while len(chosen) < count:
        for items in families.values():
            if items:
                chosen.append(items.pop(0))
    chosen = chosen[:count]
    return [as_question(item, i + 1) for i, item in enumerate(chosen)]


def main():
    command = sys.argv[1] if len(sys.argv) > 1 else "show"
    if command == "heldout":
        path = pathlib.Path(__file__).resolve().parent / "heldout.json"
        path.write_text(json.dumps(held_out(HELD_OUT_SEED, 100), indent=1, ensure_ascii=False) + "\n")
    else:
        items, render = training_items(int(sys.argv[3]) if len(sys.argv) > 3 else 7), Renderer()
        for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 10):
            item = next(items)
            print(f"--- {item.family}\n{render.prompt(item)}>>>{render.completion(item)}")


if __name__ == "__main__":
    main()
