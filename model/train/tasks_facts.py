"""Small facts, colours and shapes, simple reasoning about people and things."""
from item import Item, a, ask, capital, contains, exact, listed, made_up, regex, user
from words import (ANIMALS, BABIES, CAPITALS, CITIES, COLOURS, CONTINENTS, FOODS, FRUITS, JOBS, LEGS, MIXES, NAMES, OPPOSITES, PLACES, RHYMES, SHAPES,
                   SOUNDS, THING_COLOURS, THINGS, in_words)

CITIES_ONE_WORD = [c for c in CITIES if " " not in c]
COUNTRY_OF = {city: country for country, city in CAPITALS.items()}
CONTINENT_OF = {country: continent for continent, countries in CONTINENTS.items() for country in countries}
BOTH_WAYS = {**{v: k for k, v in OPPOSITES.items()}, **OPPOSITES}


def fact(r):
    """(question, short answer, sentence): used alone and inside other tasks."""
    kind = r.randrange(12)
    if kind <= 2:
        country = r.choice(tuple(CAPITALS))
        city = CAPITALS[country]
        question = r.choice(("What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}.", "What's the capital city of {}?",
                             "Do you know the capital of {}?", "Tell me the capital of {}.", "The capital of {} is?", "capital of {}"))
        return question.format(country), city, f"The capital of {country} is {city}."
    if kind == 3:
        country = r.choice(tuple(CAPITALS))
        city = CAPITALS[country]
        question = r.choice(("{} is the capital of which country?", "Which country has the capital {}?", "Of which country is {} the capital?"))
        return question.format(city), country, f"{city} is the capital of {country}."
    if kind == 4:
        country = r.choice(tuple(CONTINENT_OF))
        question = r.choice(("On which continent is {}?", "Which continent is {} in?", "Where in the world is {}?"))
        return question.format(country), CONTINENT_OF[country], f"{country} is in {CONTINENT_OF[country]}."
    if kind <= 6:
        word = r.choice(tuple(BOTH_WAYS))
        question = r.choice(("What is the opposite of {}?", "Name the opposite of {}.", 'What is the opposite of "{}"?', "Which word means the opposite of {}?",
                             "Give me the opposite of {}.", "opposite of {}"))
        return question.format(word), BOTH_WAYS[word], f"The opposite of {word} is {BOTH_WAYS[word]}."
    if kind == 7:
        animal = r.choice(tuple(SOUNDS))
        question = r.choice(("What sound does {} make?", "What does {} say?", "Which sound does {} make?", "How does {} sound?"))
        return question.format(a(animal)), SOUNDS[animal], f"{capital(a(animal))} says {SOUNDS[animal]}."
    if kind == 8:
        animal = r.choice(tuple(BABIES))
        question = r.choice(("What is a baby {} called?", "What do you call a young {}?", "What is the name for a baby {}?"))
        return question.format(animal), BABIES[animal], f"A baby {animal} is called {a(BABIES[animal])}."
    if kind == 9:
        animal = r.choice(tuple(LEGS))
        number = in_words(LEGS[animal])
        question = r.choice(("How many legs does {} have?", "How many legs has {}?", "Count the legs of {}."))
        return question.format(a(animal)), number, f"{capital(a(animal))} has {number if LEGS[animal] else 'no'} legs."
    if kind == 10:
        thing = r.choice(tuple(THING_COLOURS))
        question = r.choice(("What colour is {}?", "Which colour does {} have?", "Tell me the colour of {}."))
        return question.format(thing), THING_COLOURS[thing], f"{capital(thing)} is {THING_COLOURS[thing]}."
    if r.random() < 0.5:
        shape = r.choice(tuple(SHAPES))
        number = in_words(SHAPES[shape])
        question = r.choice(("How many sides does {} have?", "How many sides has {}?", "{} has how many sides?"))
        return capital(question.format(a(shape))), number, f"{capital(a(shape))} has {number if SHAPES[shape] else 'no'} sides."
    (x, y), mixed = r.choice(tuple(MIXES.items()))
    if r.random() < 0.5:
        x, y = y, x
    question = r.choice(("What colour do you get when you mix {} and {}?", "Mix {} and {}. Which colour is that?", "{} plus {} makes which colour?"))
    return capital(question.format(x, y)), mixed, f"{capital(x)} and {y} make {mixed}."


def fold_check(value):
    return {"type": "contains", "values": [value], "fold": True}


def fact_question(r):
    question, short, sentence = fact(r)
    if short == "zero":
        return ask(question, sentence, contains(" no "), "Zero, so none.")
    answer = r.choice((sentence, sentence, sentence, capital(short) + "."))
    return ask(question, answer, fold_check(short), sentence)


def rhyme(r):
    group = r.choice(RHYMES).split()
    word = r.choice(group)
    others = [w for w in group if w != word]
    if r.random() < 0.6 or len(others) < 2:
        question = r.choice((f"What rhymes with {word}?", f"Give me a word that rhymes with {word}.", f"Which word rhymes with {word}?", f"Find a rhyme for {word}."))
        other = r.choice(others)
        return ask(question, r.choice((f"{capital(other)} rhymes with {word}.", f"{capital(other)}.")), regex(r"(?i)\b(" + "|".join(others) + r")\b"), f"{capital(word)} sounds like {other}.")
    x, y = r.sample(group, 2)
    stranger = r.choice(r.choice([g for g in RHYMES if word not in g.split()]).split())
    if r.random() < 0.5:
        return ask(f"Do {x} and {y} rhyme?", f"Yes, {x} and {y} rhyme.", regex("^Yes"), "They end in the same sound.")
    return ask(f"Do {x} and {stranger} rhyme?", f"No, {x} and {stranger} do not rhyme.", regex("^No"), "They end in different sounds.")


def who_has(r):
    people = r.sample(NAMES, r.choice((2, 3)))
    things = [f"{r.choice(COLOURS)} {t}" for t in r.sample(THINGS, len(people))]
    text = " ".join(f"{p} has {a(t)}." for p, t in zip(people, things))
    i = r.randrange(len(people))
    if r.random() < 0.5:
        return ask(f"{text} Who has the {things[i]}?", r.choice((f"{people[i]} has the {things[i]}.", f"{people[i]}.")), contains(people[i]), f"The {things[i]} belongs to {people[i]}.")
    return ask(f"{text} What does {people[i]} have?", f"{people[i]} has {a(things[i])}.", contains(things[i]), f"{people[i]}: {things[i]}.")


def colour_of(r):
    shapes = r.sample(tuple(SHAPES) + THINGS, r.choice((2, 3, 4)))
    colours = r.sample(COLOURS, len(shapes))
    things = [f"{c} {s}" for c, s in zip(colours, shapes)]
    text = r.choice(("There is {}.", "I see {}.", "On the table lies {}.")).format(listed([a(t) for t in things]))
    i = r.randrange(len(shapes))
    if r.random() < 0.5:
        question = r.choice((f"{text} What colour is the {shapes[i]}?", f"{text} Which colour does the {shapes[i]} have?"))
        return ask(question, r.choice((f"The {shapes[i]} is {colours[i]}.", f"{capital(colours[i])}.")), fold_check(colours[i]), f"The {shapes[i]} is {colours[i]}.")
    return ask(f"{text} Which thing is {colours[i]}?", f"The {shapes[i]} is {colours[i]}.", contains(shapes[i]), f"{capital(colours[i])}: the {shapes[i]}.")


PAIRINGS = (
    # what the pairs are called, (keys, values), how a pair is written, how they are joined
    ("fruit", NAMES, FRUITS, "{k} has {v}", ", "), ("price", THINGS, None, "{k} {v}", ", "), ("room", NAMES, None, "{k} is in room {v}", ", "),
    ("colour", THINGS, COLOURS, "{k}: {v}", ", "), ("job", NAMES, JOBS, "{k} = {v}", "; "), ("food", NAMES, FOODS, "{k} likes {v}", ", "),
    ("animal", NAMES, ANIMALS, "{k}: {v}", "\n"), ("place", THINGS, PLACES, "{k} - {v}", "\n"), ("number", ANIMALS, None, "{k}={v}", " "),
    ("colour", ANIMALS, COLOURS, "{v} {k}", ", "), ("city", NAMES, tuple(CITIES_ONE_WORD), "{k} from {v}", ", "), ("key", None, None, "{k}: {v}", ", "))


def pairs_lookup(r):
    """Values by their keys, keys by their values, one or several."""
    word, keys, values, form, joint = r.choice(PAIRINGS)
    count = r.randint(2, 8)
    keys = r.sample(keys, count) if keys else [made_up(r, 2) for _ in range(count)]
    values = r.sample(values, count) if values else [str(n) for n in r.sample(range(1, 1000), count)]
    shown = joint.join(form.format(k=k, v=v) for k, v in zip(keys, values))
    between = "\n" if joint == "\n" else " "
    kind = r.random()
    if kind < 0.4:
        i = r.randrange(count)
        question = r.choice((f"What belongs to {keys[i]}?", f"Which {word} goes with {keys[i]}?", f"Look up {keys[i]}."))
        answer, wanted = values[i], exact(values[i])
    elif kind < 0.65:
        i = r.randrange(count)
        question = r.choice((f"Who or what goes with {values[i]}?", f"To whom or what does {values[i]} belong?"))
        answer, wanted = keys[i], exact(keys[i])
    else:
        picks = r.sample(range(count), r.randint(2, count))
        question = r.choice((f"Look up {listed([keys[i] for i in picks])}.", f"What belongs to {listed([keys[i] for i in picks])}?"))
        answer = ", ".join(f"{keys[i]} {values[i]}" for i in picks)
        wanted = exact(answer)
    return ask(f"{shown}.{between}{question}", answer, wanted, "I look at the pairs.")


def colours_of_all(r):
    things = r.sample(tuple(SHAPES) + THINGS, r.randint(2, 5))
    colours = r.sample(COLOURS, len(things))
    text = r.choice(("There is {}.", "I see {}.", "On the table lies {}.", "Here is {}.")).format(listed([a(f"{c} {t}") for c, t in zip(colours, things)]))
    order = list(zip(things, colours))
    r.shuffle(order)
    if r.random() < 0.5:
        question = f"What are the colours of the {listed([t for t, _ in order])}?"
        answer = listed([f"the {t} is {c}" for t, c in order])
    else:
        question = f"Which things are {listed([c for _, c in order])}?"
        answer = listed([f"{c} is the {t}" for t, c in order])
    return ask(f"{text} {question}", capital(answer) + ".", exact(capital(answer) + "."), "I look at each thing.")


ORDERS = (("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest"), ("stronger", "strongest", "weakest"))


def order(r):
    people = r.sample(NAMES, 3)
    more, most, least = r.choice(ORDERS)
    facts = [f"{people[0]} is {more} than {people[1]}.", f"{people[1]} is {more} than {people[2]}."]
    if r.random() < 0.5:
        facts.reverse()
    top = r.random() < 0.5
    who, word = (people[0], most) if top else (people[2], least)
    return ask(f"{' '.join(facts)} Who is the {word}?", r.choice((f"{who} is the {word}.", f"{who}.")), contains(who),
               f"From {most} to {least}: {', '.join(people)}.")


def position(r):
    shapes = r.sample(tuple(SHAPES), 2)
    colours = r.sample(COLOURS, 2)
    x, y = (f"{c} {s}" for c, s in zip(colours, shapes))
    where, back = r.choice((("left of", "right of"), ("above", "below"), ("in front of", "behind"), ("right of", "left of"), ("below", "above")))
    text = f"The {x} is {where} the {y}."
    if r.random() < 0.5:
        return ask(f"{text} What is {where} the {y}?", f"The {x} is {where} the {y}.", contains(x), f"{capital(where)} the {y} is the {x}.")
    return ask(f"{text} Where is the {y}?", f"The {y} is {back} the {x}.", contains(f"{back} the {x}"), f"The opposite of {where} is {back}.")


def place_of(r):
    name, other = r.sample(NAMES, 2)
    thing, second = r.sample(THINGS, 2)
    places = r.sample(("kitchen", "garden", "hall", "office", "cellar", "bathroom", "school", "shop", "library"), 3)
    text = f"{name} put the {thing} in the {places[0]}. {other} put the {second} in the {places[1]}."
    if r.random() < 0.5:
        text += f" Then {other} moved the {thing} to the {places[2]}."
        places[0] = places[2]
    what, where = r.choice(((thing, places[0]), (second, places[1])))
    return ask(f"{text} Where is the {what}?", r.choice((f"The {what} is in the {where}.", f"In the {where}.")), contains(where), f"Last place of the {what}: the {where}.")


def kind_of(r):
    kinds = (("an animal", ANIMALS), ("a fruit", FRUITS), ("a colour", COLOURS), ("a job", JOBS))
    i = r.randrange(4)
    word = r.choice(kinds[i][1])
    j = i if r.random() < 0.5 else r.randrange(4)
    if word in kinds[j][1]:
        return ask(f"Is {word} {kinds[j][0]}?", f"Yes, {word} is {kinds[j][0]}.", regex("^Yes"), f"{capital(word)} is {kinds[j][0]}.")
    return ask(f"Is {word} {kinds[j][0]}?", f"No, {word} is {kinds[i][0]}.", regex("^No"), f"{capital(word)} is {kinds[i][0]}.")


def fun_fact(r):
    _, short, sentence = fact(r)
    question = r.choice(("Tell me a fact", "Tell me something", "Tell me a fun fact", "Say something interesting", "Tell me something that you know")) + r.choice((".", "!", ", please.", " now.", " about the world."))
    return ask(question, sentence, regex(r"^[A-Z].*\.$"), "I choose a fact.")


def name_some(r):
    what, pool = r.choice((("animals", ANIMALS), ("fruits", FRUITS), ("colours", COLOURS), ("names", NAMES), ("jobs", JOBS)))
    count = r.randint(2, 6)
    shown = r.choice((str(count), in_words(count)))
    words = r.sample(pool, count)
    question = r.choice((f"Name {shown} {what}.", f"List {shown} {what}.", f"Give me {shown} {what}."))
    one = "(" + "|".join(pool) + ")"
    return ask(question, ", ".join(words), regex(rf"^{one}(, {one}){{{count - 1}}}$"), f"I choose {shown} {what}.")


TASKS = ((9, "facts", fact_question), (2, "rhymes", rhyme), (5, "reasoning", who_has), (7, "look-up", pairs_lookup), (6, "colours and shapes", colour_of), (5, "colours and shapes", colours_of_all), (2, "reasoning", order),
         (2, "colours and shapes", position), (6, "reasoning", place_of), (1.5, "facts", kind_of), (2, "lists", name_some), (0.5, "facts", fun_fact))
