"""Short stories: an opening, a want, trouble, help and an end, put together from parts that fit each other."""
from item import ask, capital, polite, a
from words import ANIMALS, COLOURS, FOODS, FRUITS, JOBS, NAMES, PLACES, THINGS

OPENINGS = ("Once upon a time there was {an_animal} called {name}. {name} lived in a {adjective} {place}.",
            "In a {adjective} {place} lived {an_animal} whose name was {name}.",
            "Far away, near a {adjective} {place}, there lived {an_animal}. Everybody called it {name}.",
            "{name} was {an_animal} who lived in a {adjective} {place}.")
HABITS = ("Every morning {name} ate some {food} and looked at the sky.", "{name} liked {food} more than anything else.",
          "The other animals liked {name}, because {name} was always {mood}.", "In the evening {name} sang a song about {food}.")
TROUBLES = (
    ("One day {name} lost a {colour} {thing}.", "{name} looked under the bed, behind the door and in the garden, but the {thing} was not there.",
     "{friend}, an old {helper}, said: \"I saw something {colour} near the {second}.\"", "They went to the {second} together, and there lay the {thing}.",
     "{name} was so happy that they danced until the moon came up."),
    ("One day the wind blew very hard, and the roof flew away.", "{name} sat in the rain and was sad.",
     "Then {friend} the {helper} came along and said: \"Two can build faster than one.\"", "They worked all day, and in the evening there was a new {colour} roof.",
     "{name} made some {food} for both of them, and they laughed about the wind."),
    ("One day {name} wanted to see the {second}.", "The way was long, and a {colour} fog came down.",
     "\"Follow my light,\" said {friend} the {helper}, who carried a small lamp.", "Step by step they walked, and at last the fog was gone and they saw the {second}.",
     "It was more beautiful than {name} had dreamed."),
    ("One day {name} found a {colour} {thing} on the road.", "\"Whose is it?\" {name} asked everybody, but nobody knew.",
     "At last a {helper} called {friend} came running and cried: \"My {thing}! I was looking for it everywhere.\"", "{name} gave it back at once.",
     "{friend} was so glad that the two shared some {food}, and from that day they were friends."),
    ("One day {name} could not sleep, because there was a strange noise in the {second}.", "{name} took a lamp and went to look.",
     "There sat {friend}, a young {helper}, and cried, because it was lost.", "{name} showed {friend} the way home and gave it a {colour} {thing}.",
     "After that the nights were quiet again."))
ENDINGS = ("And they lived happily ever after.", "The end.", "From then on {name} was never alone.", "And if you go to the {place}, you can still hear them laugh.",
           "And {name} never forgot {friend}.")
REQUESTS = ("Tell me a story about {an_animal} named {name}.", "Write a short story about {an_animal} called {name}.", "Tell me a story about {name} the {animal}.",
            "Tell a story about {an_animal} named {name}.", "Make up a story about {name} the {animal}.", "I want a story about {an_animal} called {name}.",
            "Write a story with {an_animal} named {name} and {a_thing}.", "Tell me a story about {name}, {an_animal} who loves {food}.")
ADJECTIVES = "green quiet small old deep dark sunny little wide lonely".split()
MOODS = "kind happy brave funny honest patient".split()


HEROES = ANIMALS + ("dragon", "robot", "unicorn", "wizard", "princess", "knight", "ghost", "pirate", "boy", "girl", "king")
OPEN_REQUESTS = ("Tell me a story.", "Write a story.", "Tell me a short story.", "I want to hear a story.", "Make up a story.", "Write a short story.", "Once upon a time")
HERO_REQUESTS = ("Tell me a story about {an_animal}.", "Write a short story about {an_animal}.", "A story about {an_animal}.", "I want a story with {an_animal}.")
LATER = ("Some days later", "Next week", "A month later", "In the following winter", "Soon after that")


def story(r):
    name, friend = r.sample(NAMES, 2)
    animal, helper = r.choice(HEROES), r.choice(ANIMALS)
    place, second = r.sample(PLACES, 2)
    parts = {"name": name, "friend": friend, "animal": animal, "an_animal": a(animal), "helper": helper, "place": place, "second": second, "food": r.choice(FOODS),
             "thing": r.choice([t for t in THINGS if t != "shell"]), "colour": r.choice(COLOURS), "adjective": r.choice(ADJECTIVES), "mood": r.choice(MOODS)}
    parts["a_thing"] = a(parts["thing"])
    kind = r.random()
    request = r.choice(REQUESTS if kind < 0.65 else HERO_REQUESTS if kind < 0.85 else OPEN_REQUESTS)
    lines = [r.choice(OPENINGS)] + r.sample(HABITS, r.randint(1, 2))
    if "{food}" in request:
        lines = lines[:1] + [HABITS[1]]
    count = 1
    if "story" in request and "short" not in request and r.random() < 0.25:
        count = r.choice((2, 2, 3))
        request = request.replace("a story", "a long story" if count == 2 else "a very long story").replace("A story", "A long story" if count == 2 else "A very long story")
    with_thing = [t for t in TROUBLES if "{thing}" in "".join(t)]
    first = r.choice(with_thing if "{a_thing}" in request else TROUBLES)
    adventures = [first] + r.sample([t for t in TROUBLES if t is not first], count - 1)
    for i, adventure in enumerate(adventures):
        start = adventure[0] if i == 0 else adventure[0].replace("One day", r.choice(LATER), 1)
        lines += [start, *adventure[1:]]
    text = " ".join(lines + [r.choice(ENDINGS)]).format(**parts)
    wanted = [w for w, field in ((name, "{name}"), (animal, "animal}")) if field in request]
    check = {"type": "contains", "values": wanted, "least": 200 * count}
    return ask(polite(r, request.format(**parts)), text, check, f"A story about {name} the {animal}: a start, some trouble, help and a good end.")


def short_text(r):
    """Two or three sentences about a person, from what the request says."""
    name, job, city = r.choice(NAMES), r.choice(JOBS), r.choice(PLACES)
    food, animal = r.choice(FOODS), r.choice(ANIMALS)
    request = f"Write {r.choice(('two sentences', 'a few sentences', 'a short text'))} about {name}, {a(job)} with {a(animal)}."
    text = f"{name} is {a(job)} and lives near a {city}. " + r.choice((f"After work {name} plays with the {animal}.", f"The {animal} follows {name} everywhere.",
                                                                     f"{name} and the {animal} both like {food}."))
    return ask(request, text, {"type": "contains", "values": [name, job, animal]}, f"{name}, {job}, {animal}.")


def poem(r):
    animal = r.choice(ANIMALS)
    pairs = (("day", "play"), ("tree", "free"), ("night", "light"), ("hill", "still"), ("sun", "fun"), ("sky", "fly"))
    (x, y), (u, v) = r.sample(pairs, 2)
    made = {"day": "The {} wakes up to a sunny day,", "play": "and all it wants to do is play.", "tree": "The {} sits under the apple tree,", "free": "and feels so happy, warm and free.",
            "night": "The {} walks home in the quiet night,", "light": "and every star gives a little light.", "hill": "The {} runs up the windy hill,", "still": "and looks at the world, so wide and still.",
            "sun": "The {} lies down in the morning sun,", "fun": "because a rest is a lot of fun.", "sky": "The {} looks up at the deep blue sky,", "fly": "and dreams that one day it can fly."}
    text = "\n".join(made[w].format(animal) for w in (x, y, u, v))
    question = r.choice((f"Write a poem about {a(animal)}.", f"Write a short poem about {a(animal)}.", f"Make a little poem about {a(animal)}."))
    return ask(polite(r, question), text, {"type": "regex", "pattern": rf"^[^\n]*{animal}[^\n]*(\n[^\n]+){{3}}$"}, f"Four lines about {a(animal)}, with rhymes.")


TASKS = ((7, "stories", story), (1.5, "stories", short_text), (1.5, "stories", poem))
