"""The facts and word lists from which the training conversations are made.

Everything that the demo model can know stands here or in tasks_about.py. Lists are tuples, so that a seeded choice is stable.
"""

ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen").split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(n):
    """0..999 in English words."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + ("-" + ONES[n % 10] if n % 10 else "")
    return ONES[n // 100] + " hundred" + (" and " + in_words(n % 100) if n % 100 else "")


NAMES = tuple("""Anna Ben Clara David Emma Felix Grace Hugo Ida Jack Kate Leo Mia Noah Olive Paul Quinn Rosa Sam Tom Uma Vera Will Yara
Zoe Adam Bella Carl Dora Eli Fay Gus Hana Ivan Jane Karl Lily Max Nina Oscar Pia Ray Sara Theo Una Victor Wendy Alex Maria Peter Lucy
Omar Aisha Chen Ravi Sofia Diego Elena Marco Julia Simon Laura Martin Alice Bob Carol Frank Helen Henry Iris James Linda Mark Nora
Oliver Ruth Steve Tina""".split())

ANIMALS = tuple("""cat dog fox bear wolf lion tiger horse cow pig sheep goat duck hen owl crow frog fish mouse rabbit snake turtle bee ant
deer monkey elephant whale seal swan goose donkey camel eagle parrot penguin hamster hedgehog squirrel otter""".split())

SOUNDS = {"cat": "meow", "dog": "woof", "cow": "moo", "pig": "oink", "sheep": "baa", "duck": "quack", "hen": "cluck", "owl": "hoot",
          "crow": "caw", "frog": "croak", "mouse": "squeak", "snake": "hiss", "bee": "buzz", "lion": "roar", "wolf": "howl",
          "horse": "neigh", "donkey": "hee-haw", "goose": "honk"}

LEGS = {"cat": 4, "dog": 4, "cow": 4, "horse": 4, "pig": 4, "sheep": 4, "fox": 4, "duck": 2, "hen": 2, "owl": 2, "ant": 6, "bee": 6,
        "spider": 8, "snake": 0, "fish": 0, "goat": 4, "lion": 4, "crow": 2}

BABIES = {"cat": "kitten", "dog": "puppy", "cow": "calf", "horse": "foal", "sheep": "lamb", "goat": "kid", "duck": "duckling",
          "hen": "chick", "pig": "piglet", "bear": "cub", "lion": "cub", "deer": "fawn", "frog": "tadpole", "swan": "cygnet",
          "goose": "gosling", "owl": "owlet", "fox": "cub", "wolf": "pup"}

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "Austria": "Vienna",
    "Poland": "Warsaw", "Greece": "Athens", "Sweden": "Stockholm", "Norway": "Oslo", "Denmark": "Copenhagen", "Finland": "Helsinki",
    "Ireland": "Dublin", "Belgium": "Brussels", "Hungary": "Budapest", "Russia": "Moscow", "Ukraine": "Kyiv", "Turkey": "Ankara",
    "Egypt": "Cairo", "Kenya": "Nairobi", "Nigeria": "Abuja", "Morocco": "Rabat", "Ghana": "Accra", "Ethiopia": "Addis Ababa",
    "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "South Korea": "Seoul", "Thailand": "Bangkok", "Vietnam": "Hanoi",
    "Indonesia": "Jakarta", "Iran": "Tehran", "Iraq": "Baghdad", "Canada": "Ottawa", "Mexico": "Mexico City", "Cuba": "Havana",
    "Brazil": "Brasilia", "Argentina": "Buenos Aires", "Chile": "Santiago", "Peru": "Lima", "Colombia": "Bogota",
    "Australia": "Canberra", "New Zealand": "Wellington", "the United States": "Washington", "the United Kingdom": "London",
    "Iceland": "Reykjavik", "Croatia": "Zagreb", "Romania": "Bucharest", "Bulgaria": "Sofia", "Switzerland": "Bern"}

CONTINENTS = {
    "Europe": "France Germany Italy Spain Portugal Austria Poland Greece Sweden Norway Denmark Finland Ireland Belgium Hungary Iceland".split(),
    "Africa": "Egypt Kenya Nigeria Morocco Ghana Ethiopia".split(),
    "Asia": "Japan China India Thailand Vietnam Indonesia Iran Iraq".split(),
    "North America": "Canada Mexico Cuba".split(),
    "South America": "Brazil Argentina Chile Peru Colombia".split()}

OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "up": "down", "left": "right", "open": "closed", "day": "night", "black": "white",
    "happy": "sad", "rich": "poor", "old": "young", "long": "short", "high": "low", "wet": "dry", "full": "empty", "hard": "soft",
    "light": "dark", "loud": "quiet", "early": "late", "first": "last", "in": "out", "on": "off", "yes": "no", "true": "false",
    "clean": "dirty", "strong": "weak", "thick": "thin", "wide": "narrow", "near": "far", "push": "pull", "win": "lose",
    "buy": "sell", "start": "stop", "love": "hate", "always": "never", "above": "below", "inside": "outside", "heavy": "light",
    "sweet": "sour", "brave": "afraid", "deep": "shallow", "begin": "end", "give": "take", "north": "south", "east": "west"}

RHYMES = (
    "cat hat mat bat rat", "dog fog log frog", "sun run fun bun", "tree bee sea key", "house mouse", "light night right kite",
    "rain train plane chain", "book cook hook look", "ball tall wall fall", "king ring sing wing", "star car far jar", "moon spoon soon",
    "boat goat coat note", "red bed head bread", "snow go slow toe", "cake lake snake make", "pen ten hen men", "sky fly why pie",
    "bear chair hair pear", "fish dish wish", "hill mill pill", "rock clock sock", "sheep sleep deep", "four door more floor")

COLOURS = tuple("red blue green yellow black white orange purple pink brown grey".split())
SHAPES = {"triangle": 3, "square": 4, "rectangle": 4, "pentagon": 5, "hexagon": 6, "octagon": 8, "circle": 0}
MIXES = {("red", "yellow"): "orange", ("blue", "yellow"): "green", ("red", "blue"): "purple", ("red", "white"): "pink",
         ("black", "white"): "grey"}
THING_COLOURS = {"grass": "green", "snow": "white", "a banana": "yellow", "coal": "black", "a ripe tomato": "red", "the clear sky": "blue",
                 "a lemon": "yellow", "milk": "white", "a leaf in spring": "green", "chocolate": "brown", "a carrot": "orange",
                 "blood": "red", "the night": "black", "a cucumber": "green", "a flamingo": "pink", "an elephant": "grey"}

FRUITS = tuple("apple pear plum banana cherry grape lemon orange peach melon mango fig kiwi".split())
THINGS = tuple("""ball box cup book pen lamp chair table key coin hat bag bell boat car kite drum clock plate spoon stone shell ring
flower leaf bottle basket candle mirror pillow ticket button""".split())
PLACES = tuple("""forest river garden village mountain lake island town farm castle harbour valley meadow library market bridge
cave beach tower field""".split())
JOBS = tuple("baker doctor teacher farmer pilot painter nurse cook singer driver gardener writer builder sailor".split())
FOODS = tuple("bread soup cheese rice pasta cake pizza salad honey butter eggs beans noodles porridge pancakes".split())
CITIES = tuple(sorted({c for c in CAPITALS.values()})) + tuple(
    "Munich Hamburg Milan Lyon Porto Boston Chicago Toronto Sydney Mumbai Osaka Shanghai Dubai Lagos Zurich Geneva".split())

DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
MONTHS = tuple("January February March April May June July August September October November December".split())
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
SEASONS = {"winter": ("December", "January", "February"), "spring": ("March", "April", "May"),
           "summer": ("June", "July", "August"), "autumn": ("September", "October", "November")}

PLAIN_WORDS = tuple("""water fire earth wind stone river cloud storm bread table paper music school street window garden kitchen bridge
summer winter autumn spring morning evening silver golden simple little sudden gentle quick bright silent friend mother father sister
brother doctor animal flower forest island ocean planet rocket engine signal socket thread buffer memory process kernel server
client stream token model letter number answer question travel listen wonder remember different together tomorrow yesterday family
picture story corner market village castle dragon wizard knight queen prince teacher student pencil basket candle mirror pillow
ticket button pocket rabbit monkey turtle hammer ladder tunnel anchor compass lantern blanket chimney feather whisper thunder
lightning rainbow sunset sunrise shadow crystal diamond copper iron steel glass wood leather cotton velvet apple banana cherry
orange lemon pepper sugar butter cheese honey coffee""".split())

VOWELS = "aeiou"
CONSONANTS = "bcdfghjklmnpqrstvwxyz"
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
