"""Tasks with numbers: sums, comparisons, counting up and down, dates and times."""
from item import a, ask, capital, contains, exact, listed, number, polite, regex
from words import COLOURS, DAYS, FRUITS, MONTH_DAYS, MONTHS, NAMES, SEASONS, THINGS, in_words

SIGNS = {"+": ("plus", "sum"), "-": ("minus", "difference"), "*": ("times", "product")}


def operands(r, sign):
    if sign == "*":
        return r.randint(0, 12), r.randint(0, 12)
    top = r.choice((10, 20, 100, 100, 100, 1000))
    x, y = r.randint(0, top), r.randint(0, top)
    return (max(x, y), min(x, y)) if sign == "-" else (x, y)


def apply(x, sign, y):
    return x + y if sign == "+" else x - y if sign == "-" else x * y


def tens_steps(x, sign, y):
    """A sum of numbers up to 100 in words that show the way."""
    value = apply(x, sign, y)
    if sign == "*" or y < 10 or y > 99:
        return f"{x} {sign} {y} = {value}."
    tens, ones = y // 10 * 10, y % 10
    middle = apply(x, sign, tens)
    return f"{x} {sign} {tens} = {middle}. {middle} {sign} {ones} = {value}."


def arithmetic(r):
    sign = r.choice("+++--**")
    x, y = operands(r, sign)
    value = apply(x, sign, y)
    word, noun = SIGNS[sign]
    shown = r.choice((sign, "x")) if sign == "*" else sign
    question = r.choice((
        f"What is {x} {shown} {y}?", f"{x} {shown} {y}", f"{x} {shown} {y} = ?", f"Calculate {x} {shown} {y}.", f"What is {x} {word} {y}?",
        f"How much is {x} {shown} {y}?", f"What's {x} {shown} {y}?", f"Compute {x} {word} {y}.", f"Solve {x} {shown} {y}.",
        f"What is the {noun} of {x} and {y}?", f"{x}{sign}{y}", f"{x}{sign}{y}=", f"What is {x}{sign}{y}?"))
    answer = r.choice((f"{x} {shown} {y} = {value}", f"{value}", f"The answer is {value}.", f"{x} {word} {y} is {value}."))
    return ask(question, answer, number(value), tens_steps(x, sign, y))


def arithmetic_in_words(r):
    sign = r.choice("+-")
    x, y = r.randint(1, 20), r.randint(1, 20)
    if sign == "-":
        x, y = max(x, y), min(x, y)
    value = apply(x, sign, y)
    word = SIGNS[sign][0]
    question = r.choice(("What is {} {} {}?", "How much is {} {} {}?", "{} {} {}?")).format(in_words(x), word, in_words(y))
    return ask(capital(question), capital(f"{in_words(x)} {word} {in_words(y)} is {in_words(value)}."),
               contains(f"is {in_words(value)}."), f"{x} {sign} {y} = {value}, in words {in_words(value)}.")


def long_product(r):
    """Products beyond the table, split at the tens; the steps are part of the answer."""
    x, y = r.randint(11, 99), r.randint(2, 99)
    tens, ones = y // 10 * 10, y % 10
    if tens and ones:
        steps = f"{x} * {tens} = {x * tens}, {x} * {ones} = {x * ones}, {x * tens} + {x * ones} = {x * y}"
    else:
        high, low = x // 10 * 10, x % 10
        steps = f"{high} * {y} = {high * y}, {low} * {y} = {low * y}, {high * y} + {low * y} = {x * y}"
    question = r.choice((f"What is {x} * {y}?", f"{x} * {y}", f"{x}*{y}", f"What is {x} times {y}?", f"Calculate {x} x {y}."))
    return ask(question, f"{steps}. The answer is {x * y}.", number(x * y), f"I split {y if tens and ones else x} at the tens.")


def too_large(r):
    x, y, sign = r.randint(10000, 10 ** r.randint(5, 9)), r.randint(100, 10 ** r.randint(3, 9)), r.choice("+-*/")
    question = r.choice((f"What is {x} {sign} {y}?", f"{x} {sign} {y}", f"Calculate {x}{sign}{y}."))
    return ask(question, "Such large numbers are too hard for a small demo model. Give me a calculator tool, and I will call it.", regex("small demo model"), "These numbers are too large for me.")


def division(r):
    y, value = r.randint(1, 12), r.randint(0, 12)
    x = y * value
    question = r.choice((f"What is {x} / {y}?", f"{x} / {y}", f"Divide {x} by {y}.", f"What is {x} divided by {y}?", f"How much is {x} / {y}?"))
    return ask(question, r.choice((f"{x} / {y} = {value}", f"The answer is {value}.", f"{value}")), number(value),
               f"{y} * {value} = {x}, so {x} / {y} = {value}.")


def chain(r):
    """Several steps; without thinking the steps are shown in the answer."""
    count = r.choice((3, 3, 4))
    numbers = [r.randint(1, 30) for _ in range(count)]
    signs, value, shown = [], numbers[0], str(numbers[0])
    steps = []
    for n in numbers[1:]:
        sign = "-" if value >= n and r.random() < 0.4 else "+"
        steps.append(f"{value} {sign} {n} = {apply(value, sign, n)}")
        value = apply(value, sign, n)
        shown += f" {sign} {n}"
        signs.append(sign)
    question = r.choice((f"What is {shown}?", f"Calculate {shown}.", f"{shown} = ?", f"Work out {shown} step by step."))
    if r.random() < 0.5:
        return ask(question, f"The answer is {value}.", number(value), "Step by step: " + ", ".join(steps) + ".", thinking=True)
    return ask(question, ", ".join(steps) + f". The answer is {value}.", number(value), f"I go from left to right.", thinking=False)


def word_sum(r):
    name, other = r.sample(NAMES, 2)
    thing = r.choice(FRUITS + THINGS)
    plural = plural_of(thing)
    x, y = r.randint(2, 30), r.randint(1, 20)
    kind = r.randrange(4)
    if kind == 0:
        text, value = f"{name} has {x} {plural} and gets {y} more. How many {plural} does {name} have now?", x + y
        steps = f"{x} + {y} = {value}"
    elif kind == 1:
        x, y = max(x, y) + 1, min(x, y)
        text, value = f"{name} has {x} {plural} and gives {y} to {other}. How many {plural} does {name} have left?", x - y
        steps = f"{x} - {y} = {value}"
    elif kind == 2:
        text, value = f"{name} has {x} {plural} and {other} has {y}. How many {plural} do they have together?", x + y
        steps = f"{x} + {y} = {value}"
    else:
        x, y = r.randint(2, 10), r.randint(2, 10)
        text, value = f"There are {x} boxes with {y} {plural} each. How many {plural} are there in all?", x * y
        steps = f"{x} * {y} = {value}"
    return ask(text, r.choice((f"{steps}. The answer is {value}.", f"{steps}, so there are {value}.", f"That makes {value}.")),
               number(value), f"I need {steps}.")


def plural_of(word):
    if word.endswith(("x", "ss", "sh", "ch")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    if word == "leaf":
        return "leaves"
    return word + "s"


def compare(r):
    top = r.choice((20, 100, 1000))
    x, y = r.sample(range(top), 2)
    big, small = max(x, y), min(x, y)
    kind = r.randrange(3)
    if kind == 0:
        question = r.choice((f"Which is larger, {x} or {y}?", f"Which number is bigger: {x} or {y}?", f"What is more, {x} or {y}?"))
        return ask(question, r.choice((f"{big} is larger than {small}.", f"{big}")), regex(rf"^{big}\b"), f"{big} > {small}.")
    if kind == 1:
        question = r.choice((f"Which is smaller, {x} or {y}?", f"Which number is less: {x} or {y}?"))
        return ask(question, r.choice((f"{small} is smaller than {big}.", f"{small}")), regex(rf"^{small}\b"), f"{small} < {big}.")
    truth = x > y
    return ask(f"Is {x} greater than {y}?", ("Yes, " if truth else "No, ") + f"{x} is {'greater' if truth else 'less'} than {y}.",
               regex("^Yes" if truth else "^No"), f"{x} {'>' if truth else '<'} {y}.")


def parity(r):
    n = r.randint(0, 999)
    word = "odd" if n % 2 else "even"
    question = r.choice((f"Is {n} even or odd?", f"Is the number {n} odd or even?"))
    return ask(question, r.choice((f"{n} is {word}.", capital(word) + ".", f"The number {n} is {word}.")),
               regex(rf"(?i)\b{word}\b"), f"The last digit is {n % 10}, which is {word}.")


def next_number(r):
    n = r.randint(0, 998)
    question, value = r.choice(((f"What number comes after {n}?", n + 1), (f"Which number comes right before {n + 1}?", n),
                                (f"What is the next number after {n}?", n + 1)))
    return ask(question, r.choice((f"{value}", f"The number is {value}.", f"It is {value}.")), number(value),
               f"I {'add' if value > n else 'take away'} one: {value}.")


def to_words(r):
    n = r.randint(0, 199)
    if r.random() < 0.5:
        return ask(polite(r, f"Write {n} in words."), capital(in_words(n)) + ".", {**exact(in_words(n) + "."), "fold": True}, f"{n} is {in_words(n)}.")
    return ask(r.choice((f"Write {in_words(n)} as a number.", f"Write the number {in_words(n)} in digits.")), f"{n}", number(n), f"{capital(in_words(n))} is {n}.")


def count_up(r):
    kind = r.randrange(5)
    if kind == 0:
        first, last, step = 1, r.randint(5, 120 if r.random() < 0.9 else 200), 1
        question = r.choice((f"Count from 1 to {last}.", f"Count to {last}.", f"Count to {in_words(last)}.", f"List the numbers from 1 to {last}."))
    elif kind == 1:
        first = r.randint(0, 90)
        last, step = first + r.randint(3, 40), 1
        question = r.choice((f"Count from {first} to {last}.", f"List all numbers from {first} to {last}."))
    elif kind == 2:
        first = r.randint(4, 60)
        last, step = max(0, first - r.randint(3, 40)), -1
        question = r.choice((f"Count down from {first} to {last}.", f"Count backwards from {first} to {last}."))
    elif kind == 3:
        step = r.choice((2, 2, 5, 10, 3))
        first, last = step, step * r.randint(4, 20)
        question = r.choice((f"Count by {step}s from {first} to {last}.", f"Count to {last} in steps of {step}."))
    else:
        first, last, step = 1, r.randint(5, 40), 1
        numbers = [in_words(n) for n in range(1, last + 1)]
        return ask(polite(r, f"Count to {last} in words."), ", ".join(numbers) + ".", exact(", ".join(numbers) + "."),
                   f"I write the words from one to {in_words(last)}.")
    numbers = [str(n) for n in range(first, last + (1 if step > 0 else -1), step)]
    return ask(polite(r, question), ", ".join(numbers), exact(", ".join(numbers)), f"I start at {first} and stop at {last}.")


def times_table(r):
    n, top = r.randint(1, 12), r.choice((5, 10, 10, 12))
    lines = "\n".join(f"{i} x {n} = {i * n}" for i in range(1, top + 1))
    question = r.choice((f"Write the table of {n} up to {top}.", f"Show the {n} times table up to {top}.", f"Give the multiplication table of {n} from 1 to {top}."))
    return ask(polite(r, question), lines, exact(lines), f"I multiply 1 to {top} by {n}.")


def sequence(r):
    step, first = r.randint(1, 10), r.randint(0, 30)
    shown = [first + step * i for i in range(4)]
    value = first + step * 4
    text = ", ".join(map(str, shown))
    question = r.choice((f"What comes next: {text}?", f"Continue the sequence: {text}, ...", f"Which number follows {text}?"))
    return ask(question, r.choice((f"The next number is {value}.", f"{value}")), number(value),
               f"Each number is {step} more. {shown[-1]} + {step} = {value}.")


def weekday(r):
    i = r.randrange(7)
    kind = r.randrange(4)
    if kind == 0:
        value = DAYS[(i + 1) % 7]
        question = r.choice((f"What day comes after {DAYS[i]}?", f"Which day follows {DAYS[i]}?", f"Today is {DAYS[i]}. What day is tomorrow?"))
        steps = f"After {DAYS[i]} comes {value}."
    elif kind == 1:
        value = DAYS[(i - 1) % 7]
        question = r.choice((f"What day comes before {DAYS[i]}?", f"Today is {DAYS[i]}. What day was yesterday?"))
        steps = f"Before {DAYS[i]} comes {value}."
    else:
        n = r.randint(2, 14)
        value = DAYS[(i + n) % 7]
        question = r.choice((f"Today is {DAYS[i]}. What day is it in {n} days?", f"If today is {DAYS[i]}, which day is it {n} days from now?",
                             f"What day is {n} days after {DAYS[i]}?"))
        steps = f"{n} days are {n // 7} weeks and {n % 7} days. " if n >= 7 else ""
        steps += ", ".join([DAYS[i]] + [DAYS[(i + k) % 7] for k in range(1, n % 7 + 1)]) + "."
    return ask(question, r.choice((f"{value}.", f"It is {value}.", f"The answer is {value}.")), contains(value), steps)


def month(r):
    i = r.randrange(12)
    kind = r.randrange(4)
    if kind == 0:
        value = MONTHS[(i + 1) % 12]
        question = r.choice((f"Which month comes after {MONTHS[i]}?", f"What month follows {MONTHS[i]}?"))
    elif kind == 1:
        value = MONTHS[(i - 1) % 12]
        question = r.choice((f"Which month comes before {MONTHS[i]}?", f"What month is right before {MONTHS[i]}?"))
    elif kind == 2:
        nth = ("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth").split()[i]
        value = MONTHS[i]
        question = r.choice((f"What is the {nth} month of the year?", f"Which month is the {nth}?"))
    else:
        value = next(s for s, months in SEASONS.items() if MONTHS[i] in months)
        return ask(r.choice((f"Which season is {MONTHS[i]} in?", f"Is {MONTHS[i]} in winter, spring, summer or autumn?")),
                   r.choice((f"{MONTHS[i]} is in {value}.", f"It is in {value}.", f"In {value}, in the north.")), contains(value), f"{MONTHS[i]} belongs to {value}.")
    return ask(question, r.choice((f"{value}.", f"It is {value}.", f"The answer is {value}.")), contains(value), f"It is {value}.")


def month_days(r):
    i = r.randrange(12)
    days = MONTH_DAYS[i]
    question = r.choice((f"How many days does {MONTHS[i]} have?", f"How many days are in {MONTHS[i]}?", f"{MONTHS[i]} has how many days?"))
    extra = ", or 29 in a leap year" if i == 1 else ""
    return ask(question, f"{MONTHS[i]} has {days} days{extra}.", regex(rf"\b{days} days"), f"{MONTHS[i]}: {days} days.")


def next_date(r):
    i = r.randrange(12)
    day = r.choice((MONTH_DAYS[i], r.randint(1, MONTH_DAYS[i]))) if i != 1 else r.randint(1, 27)
    value = f"{MONTHS[i]} {day + 1}" if day < MONTH_DAYS[i] else f"{MONTHS[(i + 1) % 12]} 1"
    question = r.choice((f"What is the day after {MONTHS[i]} {day}?", f"Which date comes after {MONTHS[i]} {day}?", f"Today is {MONTHS[i]} {day}. What is the date tomorrow?"))
    return ask(question, r.choice((f"It is {value}.", f"{value}.", f"The next day is {value}.")), regex(rf"{value}\b"),
               f"{MONTHS[i]} has {MONTH_DAYS[i]} days, so the next day is {value}.")


def leap_year(r):
    year = r.randint(1904, 2096)
    leap = year % 4 == 0
    question = r.choice((f"Is {year} a leap year?", f"Was the year {year} a leap year?" if year < 2020 else f"Will {year} be a leap year?"))
    return ask(question, f"Yes, {year} is a leap year." if leap else f"No, {year} is not a leap year.", regex("^Yes" if leap else "^No"),
               f"The last two digits are {year % 100:02d}. That can{'' if leap else 'not'} be divided by 4.")


def clock(r):
    hour, add = r.randint(1, 12), r.randint(1, 11)
    value = (hour + add - 1) % 12 + 1
    question = r.choice((f"It is {hour} o'clock. What time is it in {add} hours?", f"It is {hour} o'clock now. What will the clock show {add} hours later?"))
    steps = f"{hour} + {add} = {hour + add}" + (f", and {hour + add} - 12 = {value}." if hour + add > 12 else ".")
    return ask(question, r.choice((f"It will be {value} o'clock.", f"{value} o'clock.")), regex(rf"\b{value} o'clock"), steps)


def box_count(r):
    colours = r.sample(COLOURS, r.choice((2, 3)))
    counts = [r.randint(1, 12) for _ in colours]
    thing = plural_of(r.choice(THINGS))
    what = listed([f"{n} {c}" for n, c in zip(counts, colours)]) + f" {thing}"
    if r.random() < 0.5:
        value = sum(counts)
        steps = " + ".join(map(str, counts)) + f" = {value}"
        return ask(f"There are {what} on the table. How many {thing} are there?", r.choice((f"{steps}. There are {value}.", f"{steps}, so {value}.")), number(value), steps + ".")
    i = r.randrange(len(colours))
    return ask(f"There are {what} on the table. How many {thing} are {colours[i]}?", r.choice((f"{counts[i]}", f"There are {counts[i]}.")), number(counts[i]), f"{capital(colours[i])}: {counts[i]}.")


TASKS = ((10, "arithmetic", arithmetic), (2, "arithmetic", arithmetic_in_words), (2, "arithmetic", division), (2.5, "long multiplication", long_product), (0.5, "unknown", too_large), (5, "steps", chain),
         (4, "word problems", word_sum), (2, "word problems", box_count), (3, "comparison", compare), (1.5, "comparison", parity),
         (2, "sequences", next_number), (2, "sequences", sequence), (2, "numbers in words", to_words), (4, "long counting", count_up),
         (1.5, "long counting", times_table), (3, "dates", weekday), (1.5, "dates", month), (1, "dates", month_days),
         (2, "dates", next_date), (1, "dates", leap_year), (1.5, "dates", clock))
