"""One training conversation: what is asked, what the model should say, and how an answer is checked.

A task is a function of a seeded random.Random that returns an Item. Nothing here does input or output.
"""
import dataclasses


@dataclasses.dataclass
class Item:
    """`messages` end before the answer. The answer is `thought` (when thinking is on), then `calls` or `text`."""
    messages: list
    text: str = ""
    thought: str = ""
    calls: list | None = None       # [(name, arguments)]
    tools: list | None = None
    check: dict | None = None
    thinking: bool | None = None    # None: the generator decides
    family: str = ""

    def key(self):
        """What decides between training and held-out: everything the user says, and nothing else, so that no held-out question
        is seen in training under another system prompt or with thinking switched on."""
        said = [m["content"] for m in self.messages if m["role"] == "user"]
        said += [str(m["content"]) for m in self.messages if m["role"] == "tool"]
        return "\n".join(said)


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def model(text):
    return {"role": "assistant", "content": text}


def ask(question, text, check, thought="", **more):
    return Item([user(question)], text, thought, check=check, **more)


def number(value):
    return {"type": "number", "value": value}


def exact(value):
    return {"type": "exact", "value": value}


def contains(*values):
    return {"type": "contains", "values": list(values)}


def regex(pattern):
    return {"type": "regex", "pattern": pattern}


def listed(words, last="and"):
    """a, b and c"""
    words = list(words)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" {last} " + words[-1]


def a(word):
    """The word with its article."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def capital(text):
    return text[:1].upper() + text[1:]


def polite(r, text):
    """The same request in one of a few tones."""
    tone = r.random()
    low = text[0].lower() + text[1:]
    if tone < 0.7:
        return text
    if tone < 0.85:
        return "Please " + low
    if tone < 0.93:
        return text.rstrip(".") + ", please."
    return "Can you " + low.rstrip(".") + "?"


def made_up(r, syllables):
    """A word that does not exist but can be read."""
    from words import CONSONANTS, VOWELS
    out = ""
    for _ in range(syllables):
        out += r.choice(CONSONANTS) + r.choice(VOWELS) + (r.choice(CONSONANTS) if r.random() < 0.3 else "")
    return out
