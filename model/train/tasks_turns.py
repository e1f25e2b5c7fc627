"""Conversations of several turns, and system prompts that say how to answer."""
import json

from item import Item, capital, contains, exact, model, number, regex, system, user
from words import ANIMALS, CITIES, COLOURS, FOODS, JOBS, NAMES, PLAIN_WORDS
import tasks_about
import tasks_facts
import tasks_numbers
import tasks_words

# (what is told, the model's reply, later questions, the answer)
TOLD = (
    ("name", NAMES, ("My name is {}.", "I am {}.", "Hello, my name is {}.", "Hi, I am {}.", "You can call me {}."), ("Hello {}!", "Nice to meet you, {}!"),
     ("What is my name?", "Do you remember my name?", "Who am I?", "What did I say my name was?"), "Your name is {}."),
    ("number", None, ("My number is {}.", "Remember the number {}.", "My lucky number is {}.", "Please remember the number {}."), ("I will remember {}.", "Got it, {}.", "Okay."),
     ("What is my number?", "Which number did I tell you?", "What was the number?"), "The number is {}."),
    ("colour", COLOURS, ("My favourite colour is {}.", "I like the colour {} best."), ("{} is a nice colour.", "Okay, I will remember that."),
     ("What is my favourite colour?", "Which colour do I like?"), "Your favourite colour is {}."),
    ("city", CITIES, ("I live in {}.", "My home is in {}.", "I come from {}."), ("{} is a nice place.", "Okay, I will remember that."),
     ("Where do I live?", "Which city do I live in?", "Where is my home?"), "You live in {}."),
    ("pet", ANIMALS, ("I have a pet {}.", "My pet is a {}."), ("A {} is a good friend.", "Okay, I will remember that."),
     ("What pet do I have?", "Which animal do I have?"), "You have a pet {}."),
    ("food", FOODS, ("My favourite food is {}.", "I love {}."), ("{} tastes good.", "Okay, I will remember that."),
     ("What is my favourite food?", "What do I like to eat?"), "Your favourite food is {}."),
    ("job", JOBS, ("I work as a {}.", "My job: {}."), ("That is a good job.", "Okay, I will remember that."),
     ("What is my job?", "What do I work as?"), "You work as a {}."),
    ("word", PLAIN_WORDS, ("The secret word is {}.", "Remember this word: {}."), ("I will remember it.", "Okay."),
     ("What is the secret word?", "Which word did I tell you?", "What was the word?"), "The word is {}."))


def small_turn(r):
    """A question and its answer to put between."""
    x = r.random()
    if x < 0.5:
        question, _, sentence = tasks_facts.fact(r)
        return [user(question), model(sentence)]
    if x < 0.65:
        item = tasks_about.known(r)
        return item.messages + [model(item.text)]
    maker = r.choice((tasks_numbers.arithmetic, tasks_numbers.weekday, tasks_words.spell, tasks_numbers.count_up if r.random() < 0.2 else tasks_words.sort_words))
    item = maker(r)
    return item.messages + [model(item.text)]


def remember(r):
    picks = r.sample(TOLD, r.choice((1, 1, 2, 3)))
    messages, values = [], []
    for _, pool, tell, reply, _, _ in picks:
        value = str(r.randint(0, 9999)) if pool is None else r.choice(pool)
        values.append(value)
        messages += [user(r.choice(tell).format(value)), model(capital(r.choice(reply).format(value)))]
        for _ in range(r.choice((0, 0, 1, 2)) if r.random() < 0.93 else r.randint(3, 14)):
            messages += small_turn(r)
    i = r.randrange(len(picks))
    answer = picks[i][5].format(values[i])
    messages.append(user(r.choice(picks[i][4])))
    return Item(messages, answer, f"The user said it: {values[i]}.", check=contains(values[i]))


def far_memory(r):
    """Something told at the start of a long conversation."""
    item = remember(r)
    filler = []
    for _ in range(r.randint(20, 90)):
        filler += small_turn(r)
    item.messages = item.messages[:2] + filler + item.messages[2:]
    return item


def follow_up(r):
    """Sums that go on from the last answer."""
    item = tasks_numbers.arithmetic(r)
    value = item.check["value"]
    messages = item.messages + [model(item.text)]
    add = r.randint(1, 20)
    minus = value >= add and r.random() < 0.4
    question = r.choice((f"Subtract {add} from that.", f"Now take away {add}.")) if minus else r.choice((f"Add {add} to that.", f"Now add {add}.", f"And plus {add}?"))
    new = value - add if minus else value + add
    sign = "-" if minus else "+"
    return Item(messages + [user(question)], f"{value} {sign} {add} = {new}", f"The last answer was {value}.", check=number(new))


def again(r):
    """The last question once more, or for something else."""
    if r.random() < 0.5:
        country, other = r.sample(tuple(tasks_facts.CAPITALS), 2)
        city = tasks_facts.CAPITALS[other]
        messages = [user(f"What is the capital of {country}?"), model(f"The capital of {country} is {tasks_facts.CAPITALS[country]}."), user(r.choice(("And of {}?", "And {}?", "What about {}?")).format(other))]
        return Item(messages, f"The capital of {other} is {city}.", f"Now the capital of {other}.", check=contains(city))
    item = tasks_words.sort_words(r) if r.random() < 0.5 else tasks_words.repeat(r)
    messages = small_turn(r) + item.messages
    item.messages = messages
    return item


def later(r):
    """An ordinary question after a few others."""
    maker = r.choice((tasks_numbers.arithmetic, tasks_numbers.word_sum, tasks_words.spell, tasks_words.sort_numbers, tasks_words.list_question, tasks_facts.fact_question, tasks_facts.order))
    item = maker(r)
    before = []
    for _ in range(r.randint(1, 4) if r.random() < 0.93 else r.randint(5, 25)):
        before += small_turn(r)
    item.messages = before + item.messages
    return item


def instructed(r):
    """A system prompt that shapes the answer to a fact."""
    question, short, sentence = tasks_facts.fact(r)
    kind = r.randrange(8)
    if kind == 0:
        rule, text = r.choice(("Answer in one word.", "Answer with one word only.", "Use a single word.", "Reply with one word.")), short
        check = exact(text)
    elif kind == 1:
        rule, text = r.choice(("Answer in capitals.", "Write only in capital letters.", "SHOUT: use capitals only.", "Always answer in uppercase.")), sentence.upper()
        check = exact(text)
    elif kind == 2:
        rule = r.choice(("Answer in JSON with the key answer.", "Always answer in JSON: {\"answer\": ...}", "Reply only with JSON that has one key, answer."))
        text = json.dumps({"answer": short})
        check = {"type": "json_equal", "value": {"answer": short}}
    elif kind == 3:
        word = r.choice(PLAIN_WORDS + NAMES + ("over", "captain", "done", "stop"))
        rule, text = r.choice((f"End every answer with the word {word}.", f"Always finish with the word {word}.", f"The last word of each answer must be {word}.")), f"{sentence} {word}"
        check = exact(text)
    elif kind == 4:
        word = capital(r.choice(("well", "certainly", "ahoy", "friend", "listen", "sure", r.choice(PLAIN_WORDS))))
        rule, text = r.choice((f"Start every answer with the word {word}.", f"Begin each answer with {word}.")), f"{word}, {sentence}"
        check = exact(text)
    elif kind == 5:
        rule, text = r.choice(("Answer in a full sentence.", "Use full sentences.", "Always write complete sentences.")), sentence
        check = exact(text)
    elif kind == 6:
        rule, text = r.choice(("You are a helpful assistant.", "Be brief.", "You are a friendly teacher.", "You help children.", "Be kind.", "You are Sluice.")), sentence
        check = tasks_facts.fold_check(sentence)
    else:
        rule, text = r.choice(("Put every answer in quotes.", "Write each answer between quotes.")), f'"{sentence}"'
        check = exact(text)
    if r.random() < 0.15:
        return Item([system(rule)] + small_turn_shaped(r, kind) + [user(question)], text, f"The rule: {rule} {sentence}", check=check)
    return Item([system(rule), user(question)], text, f"The rule: {rule} {sentence}", check=check)


def small_turn_shaped(r, kind):
    """An earlier turn that follows the rule as well, where that is plain."""
    question, short, sentence = tasks_facts.fact(r)
    shaped = {0: short, 1: sentence.upper(), 2: json.dumps({"answer": short}), 5: sentence, 6: sentence, 7: f'"{sentence}"'}
    return [user(question), model(shaped[kind])] if kind in shaped else []


def number_only(r):
    item = r.choice((tasks_numbers.arithmetic, tasks_numbers.division, tasks_numbers.word_sum, tasks_numbers.sequence))(r)
    value = item.check["value"]
    rule = r.choice(("Answer with the number only.", "Reply with a number and nothing else.", "Only numbers."))
    return Item([system(rule), *item.messages], f"{value}", item.thought, check=exact(str(value)))


def persona(r):
    name = r.choice(NAMES)
    job = r.choice(JOBS + ("captain", "robot", "wizard", "knight", "dragon"))
    a_job = ("an " if job[0] in "aeiou" else "a ") + job
    rule = r.choice((f"You are {name}, {a_job}.", f"Your name is {name} and you are {a_job}.", f"You play {name}, {a_job}."))
    if r.random() < 0.6:
        question = r.choice(("Who are you?", "What is your name?", "Introduce yourself.", "Tell me your name.", "And you are?")) + r.choice(("", "", " I am new here.", f" I am {r.choice(NAMES)}.", f" My name is {r.choice(NAMES)}."))
        return Item([system(rule), user(question)], f"I am {name}, {a_job}.", f"I am {name}.", check=contains(name, job))
    question = r.choice(("What is your job?", "What do you do?", "What do you work as?")) + r.choice(("", "", f" I am {r.choice(NAMES)}."))
    return Item([system(rule), user(question)], f"I am {a_job}.", f"My job: {job}.", check=contains(job))


def ordinary(r):
    """A plain system prompt changes nothing."""
    maker = r.choice((tasks_numbers.arithmetic, tasks_words.spell, tasks_words.sort_words, tasks_numbers.compare, tasks_numbers.count_up, tasks_words.repeat, tasks_facts.colour_of))
    item = maker(r)
    item.messages = [system(r.choice(("You are a helpful assistant.", "You are a friendly assistant.", "Be helpful.", "You are Sluice, a demo model.", "Be brief.", "Be exact."))), *item.messages]
    return item


TASKS = ((5, "memory", remember), (0.3, "far memory", far_memory), (2, "follow-up", follow_up), (1.5, "follow-up", again), (3, "later turns", later), (7, "system prompts", instructed), (1.5, "system prompts", persona), (1.5, "system prompts", number_only), (3, "system prompts", ordinary))
