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


def story(r):
    name, friend = r.sample(NAMES, 2)
    animal, helper = r.sample(ANIMALS, 2)
    place, second = r.sample(PLACES, 2)
    parts = {"name": name, "friend": friend, "animal": animal, "an_animal": a(animal), "helper": helper, "place": place, "second": second, "food": r.choice(FOODS),
             "thing": r.choice([t for t in THINGS if t != "shell"]), "colour": r.choice(COLOURS), "adjective": r.choice(ADJECTIVES), "mood": r.choice(MOODS)}
    parts["a_thing"] = a(parts["thing"])
    request = r.choice(REQUESTS)
    lines = [r.choice(OPENINGS)] + r.sample(HABITS, r.randint(1, 2))
    troubles = [t for t in TROUBLES if ("{thing}" in t[0]) == ("{a_thing}" in request)] if "{a_thing}" in request else list(TROUBLES)
    lines += list(r.choice(troubles)) + [r.choice(ENDINGS)]
    if "{food}" in request:
        lines[1] = HABITS[1]
        lines = [l for i, l in enumerate(lines) if i < 2 or l not in HABITS]
    text = " ".join(lines).format(**parts)
    check = {"type": "contains", "values": [name, animal], "least": 200}
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
