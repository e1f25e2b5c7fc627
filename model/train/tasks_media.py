"""Questions about drawn pictures and simple sounds.

A conversation here is about one picture or one sound: the first message shows it and asks, later messages ask more. Nothing here does input or output.
"""
import dataclasses

import scenes
import sounds
from item import a, capital, listed, user
from words import ANIMALS, FRUITS, RHYMES, THINGS, in_words

SIGN_WORDS = tuple(sorted({w for w in (*ANIMALS, *FRUITS, *THINGS, *" ".join(RHYMES).split()) if 2 <= len(w) <= 5}))
ONE_QUESTION_SHARE = 0.4        # of conversations; the others ask up to MOST_QUESTIONS
MOST_QUESTIONS = 6
THINKING_SHARE = 0.08           # of conversations with one question
TRIES_EACH = 50                 # draws for a question; many do not fit the scene
TEXT_FIRST_SHARE = 0.12         # the question stands before the picture or sound


@dataclasses.dataclass
class Question:
    family: str
    question: str
    answer: str
    check: dict


@dataclasses.dataclass
class Shown:
    """A picture or sound with everything that is asked about it. what: "image" or "audio"."""
    what: str
    medium: object              # scenes.Scene or sounds.Sound
    questions: list
    thought: str
    key: str
    thinking: bool = False
    text_first: bool = False

    def messages(self):
        """As the template takes them: all questions, and all answers but the last."""
        out = []
        for i, q in enumerate(self.questions):
            if i == 0:
                parts = [{"type": self.what}, {"type": "text", "text": q.question}]
                out.append({"role": "user", "content": parts[::-1] if self.text_first else parts})
            else:
                out.append(user(q.question))
            if i + 1 < len(self.questions):
                out.append({"role": "assistant", "content": q.answer})
        return out


def word_check(*values):
    return {"type": "regex", "pattern": r"(?i)" + "".join(rf"(?=.*\b{v}\b)" for v in values), "dotall": True}


def yes_no(truth):
    return {"type": "regex", "pattern": "^Yes" if truth else "^No"}


def count_check(n):
    return {"type": "regex", "pattern": rf"(?i)\b({'no|zero' if n == 0 else in_words(n)}|{n})\b"}


# ---- pictures ----------------------------------------------------------------------------------

def plural(shape):
    return "crosses" if shape == "cross" else shape + "s"


def only(things, **wanted):
    """The thing that alone has these properties, or None."""
    found = [t for t in things if all(getattr(t, k) == v for k, v in wanted.items())]
    return found[0] if len(found) == 1 else None


def ask_colour(r, scene):
    things = scene.things
    if len(things) == 1 and r.random() < 0.4:
        t = things[0]
        return Question("colour", r.choice(("What colour is it?", "Which colour do you see?", "What colour is the shape?")), f"It is {t.colour}.", word_check(t.colour))
    t = r.choice(things)
    if not only(things, shape=t.shape):
        return None
    question = r.choice(("What colour is the {}?", "Which colour does the {} have?", "Tell me the colour of the {}.", "The {} has which colour?", "what colour is the {}"))
    return Question("colour", question.format(t.shape), f"The {t.shape} is {t.colour}.", word_check(t.colour))


def ask_shape(r, scene):
    things = scene.things
    if len(things) == 1 and r.random() < 0.4:
        t = things[0]
        return Question("shape", r.choice(("What shape is it?", "What is this?", "What do you see?")), f"It is {a(t.colour)} {t.shape}.", word_check(t.shape))
    t = r.choice(things)
    if r.random() < 0.5 and only(things, colour=t.colour):
        question = r.choice(("Which shape is {}?", "What shape is the {} one?", "Which of the shapes is {}?"))
        return Question("shape", question.format(t.colour), f"The {t.shape} is {t.colour}.", word_check(t.shape))
    if len([x for x in things if x.place() == t.place()]) != 1:
        return None
    question = r.choice(("What is {}?", "Which shape is {}?", "What do you see {}?"))
    return Question("shape", question.format(t.place()), f"{capital(a(t.colour))} {t.shape}.", word_check(t.colour, t.shape))


def ask_place(r, scene):
    t = r.choice(scene.things)
    if only(scene.things, shape=t.shape) and r.random() < 0.6:
        name = t.shape
    elif only(scene.things, shape=t.shape, colour=t.colour):
        name = t.words()
    else:
        return None
    question = r.choice(("Where is the {}?", "In which part of the picture is the {}?", "Where do you see the {}?"))
    return Question("place", question.format(name), f"It is {t.place()}.", {"type": "regex", "pattern": rf"(?i)the {t.place().split(' the ')[1]}\.?$"})


def how_many(n, one, many):
    return "There are no " + many + "." if n == 0 else f"There is one {one}." if n == 1 else f"There are {in_words(n)} {many}."


def ask_count(r, scene):
    things, kind = scene.things, r.random()
    if kind < 0.3:
        question = r.choice(("How many shapes are there?", "How many shapes do you see?", "Count the shapes."))
        return Question("count", question, how_many(len(things), "shape", "shapes"), count_check(len(things)))
    if kind < 0.8:
        shape = things[0].shape if things and r.random() < 0.8 else r.choice(scenes.SHAPES)
        n = len([t for t in things if t.shape == shape])
        question = r.choice(("How many {} are there?", "How many {} do you see?", "Count the {}.", "How many {} are in the picture?"))
        return Question("count", question.format(plural(shape)), how_many(n, shape, plural(shape)), count_check(n))
    colour = r.choice(things).colour if things and r.random() < 0.8 else r.choice(tuple(scenes.COLOURS))
    n = len([t for t in things if t.colour == colour])
    question = r.choice(("How many {} shapes are there?", "How many shapes are {}?", "Count the {} shapes."))
    return Question("count", question.format(colour), how_many(n, f"{colour} shape", f"{colour} shapes"), count_check(n))


def ask_is_there(r, scene):
    things = scene.things
    if things and r.random() < 0.5:
        t = r.choice(things)
        shape, colour = t.shape, t.colour
    else:       # half of these name a colour and a shape that do occur, but not together
        shape = r.choice(things).shape if things and r.random() < 0.5 else r.choice(scenes.SHAPES)
        colour = r.choice(things).colour if things and r.random() < 0.5 else r.choice(tuple(scenes.COLOURS))
    if r.random() < 0.4:
        there, name = any(t.shape == shape for t in things), shape
    else:
        there, name = any(t.shape == shape and t.colour == colour for t in things), f"{colour} {shape}"
    question = r.choice(("Is there {}?", "Do you see {}?", "Does the picture show {}?")).format(a(name))
    return Question("is there", question, f"Yes, there is {a(name)}." if there else f"No, there is no {name}.", yes_no(there))


def ask_side(r, scene):
    named = [t for t in scene.things if only(scene.things, shape=t.shape)]
    if len(named) < 2:
        return None
    x, y = r.sample(named, 2)
    sideways = r.random() < 0.5
    if (x.column == y.column) if sideways else (x.row == y.row):
        return None
    word = r.choice(("left of", "right of") if sideways else ("above", "below"))
    truth = {"left of": x.column < y.column, "right of": x.column > y.column, "above": x.row < y.row, "below": x.row > y.row}[word]
    return Question("side", f"Is the {x.shape} {word} the {y.shape}?", f"{'Yes' if truth else 'No'}, it is{'' if truth else ' not'} {word} the {y.shape}.", yes_no(truth))


def ask_word(r, scene):
    if not scene.sign:
        return None
    kind = r.random()
    if kind < 0.12:
        return Question("colour", "What colour are the letters?", f"They are {scene.sign.colour}.", word_check(scene.sign.colour))
    if kind < 0.22:
        return Question("count", r.choice(("How many letters are there?", "How many letters does the word have?")),
                        f"There are {in_words(len(scene.sign.word))} letters.", count_check(len(scene.sign.word)))
    question = r.choice(("What does it say?", "What is written there?", "Which word do you see?", "Read the word.", "What does the sign say?", "Which word is in the picture?"))
    return Question("word", question, f'It says "{scene.sign.word}".', {"type": "contains", "values": [f'"{scene.sign.word}"']})


def all_of(scene):
    things = sorted(scene.things, key=lambda t: (t.row, t.column))
    return listed([a(t.words()) for t in things])


def ask_all(r, scene):
    if not 1 <= len(scene.things) <= 4 or scene.sign:
        return None
    question = r.choice(("Describe the picture.", "What is in the picture?", "What does the picture show?", "What do you see in the picture?"))
    names = [t.words() for t in scene.things]
    return Question("all of it", question, f"I see {all_of(scene)}.", word_check(*sorted(set(names))))


def picture_thought(scene):
    parts = [f"{a(t.words())} {t.place()}" for t in sorted(scene.things, key=lambda t: (t.row, t.column))]
    if scene.sign:
        parts.append(f'the word "{scene.sign.word}" {scenes.WORD_ROWS[scene.sign.row]}')
    return "I see " + listed(parts) + "."


ABOUT_MIXED = (ask_colour, ask_shape, ask_shape, ask_place, ask_place, ask_count, ask_is_there, ask_side, ask_all)
ABOUT_CROWD = (ask_count, ask_count, ask_count, ask_is_there, ask_shape, ask_all)
ABOUT_SIGN = (ask_word, ask_word, ask_word, ask_count, ask_colour, ask_shape, ask_is_there, ask_place)


def choose(r, makers, medium, count):
    """`count` different questions, or as many as can be found."""
    out, asked = [], set()
    for attempt in range(TRIES_EACH * count):
        maker = r.choice(makers)
        if medium.__class__ is scenes.Scene and not medium.things and maker not in (ask_word, ask_count, ask_is_there):
            continue
        q = maker(r, medium)
        if q and q.answer not in asked:
            asked.add(q.answer)
            out.append(q)
        if len(out) == count or out and attempt >= 6 * count:
            break
    return out


def question_count(r):
    return 1 if r.random() < ONE_QUESTION_SHARE else r.randint(3, MOST_QUESTIONS)


def picture(r, count=None):
    kind = r.random()
    if kind < 0.4:
        scene, makers = scenes.mixed(r), ABOUT_MIXED
    elif kind < 0.65:
        scene, makers = scenes.crowd(r), ABOUT_CROWD
    else:
        scene, makers = scenes.sign(r, SIGN_WORDS), ABOUT_SIGN
    questions = choose(r, makers, scene, count or question_count(r))
    thinking = len(questions) == 1 and count is None and r.random() < THINKING_SHARE
    return Shown("image", scene, questions, picture_thought(scene), scene.key(), thinking, r.random() < TEXT_FIRST_SHARE)


# ---- sounds ------------------------------------------------------------------------------------

HIGH_LOW = {"l": "low", "h": "high"}
SHORT_LONG = {"s": "short", "l": "long"}
NTH = ("first", "second", "third", "fourth")


def in_order(pattern, names):
    return ", ".join(names[c] for c in pattern)


def beep_count(r, n):
    question = r.choice(("How many beeps do you hear?", "How many beeps are there?", "Count the beeps.", "How many tones do you hear?"))
    return Question("beeps", question, "I hear one beep." if n == 1 else f"I hear {in_words(n)} beeps.", count_check(n))


def pattern_questions(r, pattern, names, family, which):
    """How many, in which order, and what one of them was."""
    out = [beep_count(r, len(pattern))]
    if len(pattern) > 1:
        answer = in_order(pattern, names)
        question = r.choice((f"Which beeps are {which}?", f"Write {which} for each beep.", f"In which order do you hear {which} beeps?"))
        out += [Question(family, question, capital(answer) + ".", {"type": "regex", "pattern": rf"(?i)^{answer}\.?$"})] * 2
    i = r.randrange(len(pattern))
    other = names[next(c for c in names if c != pattern[i])]
    ask_one = f"Is the beep {which}?" if len(pattern) == 1 else f"Is the {NTH[i] if i < 4 else 'last'} beep {which}?"
    if i < 4:
        out.append(Question(family, ask_one, f"It is {names[pattern[i]]}.", {"type": "regex", "pattern": rf"(?i)\b{names[pattern[i]]}\b(?!.*\b{other}\b)"}))
    return out


def sound(r, count=None):
    kind = r.random()
    if kind < 0.35:
        n = r.randint(1, 6)
        c = r.choice("lh")
        pattern = c * n if r.random() < 0.6 else "".join(r.choice("lh") for _ in range(n))
        medium = sounds.beeps(r, pattern)
        questions = [beep_count(r, n)] if n > 4 else pattern_questions(r, pattern, HIGH_LOW, "high or low", "high or low")
        thought = f"The beeps: {in_order(pattern, HIGH_LOW)}."
    elif kind < 0.55:
        pattern = "".join(r.choice("lh") for _ in range(r.randint(2, 4)))
        medium = sounds.beeps(r, pattern)
        questions = pattern_questions(r, pattern, HIGH_LOW, "high or low", "high or low")
        thought = f"The beeps: {in_order(pattern, HIGH_LOW)}."
    elif kind < 0.78:
        pattern = "".join(r.choice("sl") for _ in range(r.randint(1, 4)))
        medium = sounds.knocks(r, pattern)
        questions = pattern_questions(r, pattern, SHORT_LONG, "short or long", "short or long")
        thought = f"The beeps: {in_order(pattern, SHORT_LONG)}."
    else:
        direction = r.choice(("up", "down", "stays"))
        medium = sounds.slide(r, direction)
        answer = "The tone stays the same." if direction == "stays" else f"The tone goes {direction}."
        question = r.choice(("Does the tone go up or down?", "Does the tone rise or fall?", "In which direction does the tone go?", "What does the tone do?"))
        questions = [Question("up or down", question, answer, {"type": "regex", "pattern": rf"\b{'same' if direction == 'stays' else direction}\b"})]
        thought = answer
    r.shuffle(questions)
    chosen = []
    for q in questions:
        if q.question not in [c.question for c in chosen]:
            chosen.append(q)
    chosen = chosen[:count or question_count(r)]
    thinking = len(chosen) == 1 and count is None and r.random() < THINKING_SHARE
    return Shown("audio", medium, chosen, thought, medium.key(), thinking, r.random() < TEXT_FIRST_SHARE)
