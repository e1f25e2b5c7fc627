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

import scenes
import sounds
import tasks_about
import tasks_facts
import tasks_formats
import tasks_media
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
CANVAS_BLOCKS = {(96, 96): (8, 8), (128, 96): (9, 7), (96, 128): (7, 9)}      # (width, height) -> columns, rows of blocks in a budget of 70
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


# ---- pictures and sounds -----------------------------------------------------------------------

EMPTY_THOUGHT = "<|channel>thought\n<channel|>"
MEDIA_TOKENS = {"image": ("<|image>", "<|image|>", "<image|>"), "audio": ("<|audio>", "<|audio|>", "<audio|>")}
CHECKED = 20                # conversations of each worker that are compared with the template


def shown_is_held_out(shown):
    """As is_held_out: one picture or sound in 40, chosen by what is to be seen or heard."""
    return int.from_bytes(hashlib.blake2b(shown.key.encode(), digest_size=8).digest(), "big") % HELD_OUT_ONE_IN == 0


def draw_shown(r, picture_share, count=None):
    """A conversation about a picture or a sound, held out or not; count: of its questions."""
    return tasks_media.picture(r, count) if r.random() < picture_share else tasks_media.sound(r, count)


def shown_texts(shown):
    """[(text, is it learned?)]: what the template writes for the conversation, cut where the model begins and ends to speak."""
    out = [("<bos>" + ("<|turn>system\n<|think|>\n<turn|>\n" if shown.thinking else ""), False)]
    last = len(shown.questions) - 1
    for i, q in enumerate(shown.questions):
        content = q.question
        if i == 0:
            parts = (MEDIA_TOKENS[shown.what][1], q.question)
            content = "".join(parts[::-1] if shown.text_first else parts)
        out.append(("<|turn>user\n" + content + "<turn|>\n<|turn>model\n" + (EMPTY_THOUGHT if i == last and not shown.thinking else ""), False))
        thought = f"<|channel>thought\n{shown.thought}\n<channel|>" if shown.thinking else ""
        out.append((thought + q.answer + TURN_END, True))
        if i < last:
            out.append(("\n", False))
    return out


def check_texts(render, shown):
    item = Item(shown.messages(), shown.questions[-1].answer, shown.thought, thinking=shown.thinking)
    *said, (last, _) = shown_texts(shown)
    assert "".join(text for text, _ in said) == render.prompt(item) and last == render.completion(item), said


class ShownEncoder:
    """A conversation about a picture or sound as (ids, learned?, place of the first soft token)."""

    def __init__(self, tok):
        self.tok = tok
        self.tokens = {what: [tok.token_to_id(t) for t in names] for what, names in MEDIA_TOKENS.items()}

    def encode(self, shown, soft_count):
        ids, learn, place = [], [], None
        begin, soft, end = self.tokens[shown.what]
        for text, learned in shown_texts(shown):
            new = self.tok.encode(text).ids
            if soft in new:
                at = new.index(soft)
                place = len(ids) + at + 1
                new = new[:at] + [begin] + [soft] * soft_count + [end] + new[at + 1:]
            ids += new
            learn += [learned] * len(new)
        return ids, learn, place


def medium_of(shown):
    """(array, soft tokens): the picture uint8 [height, width, 3], or frames of sound int16 [count, 640]."""
    if shown.what == "image":
        scene = shown.medium
        columns, rows = CANVAS_BLOCKS[scene.width, scene.height]
        return scenes.draw(scene), columns * rows
    frames = sounds.frames(sounds.to_int16(sounds.samples(shown.medium)))
    return frames, len(frames)


def shown_examples(seed, picture_share):
    """(ids, learned?, place of the first soft token, medium) for training, without end."""
    import tokenizers
    encoder = ShownEncoder(tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json")))
    render, r, left = Renderer(), random.Random(seed), CHECKED
    while True:
        shown = draw_shown(r, picture_share)
        if shown_is_held_out(shown):
            continue
        if left:
            check_texts(render, shown)
            left -= 1
        medium, count = medium_of(shown)
        yield *encoder.encode(shown, count), medium


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
