"""Tasks with letters and words: spelling, counting, reversing, copying, capitals, sorting, lists."""
from item import ask, capital, contains, exact, listed, made_up, number, polite, regex
from words import (ALPHABET, ANIMALS, CITIES, COLOURS, FOODS, FRUITS, JOBS, NAMES, PLACES, PLAIN_WORDS, THINGS, VOWELS)

POOL = tuple(dict.fromkeys(PLAIN_WORDS + ANIMALS + FRUITS + THINGS + COLOURS + PLACES + JOBS + FOODS))
ORDINALS = "first second third fourth fifth sixth".split()


def any_word(r, longest=10):
    if r.random() < 0.3:
        return made_up(r, r.choice((2, 2, 3)))
    while True:
        word = r.choice(POOL)
        if len(word) <= longest:
            return word


def spell(r):
    word = any_word(r)
    joint = r.choice(("-", "-", ", ", " "))
    hint = {"-": " with dashes", ", ": " with commas", " ": " with spaces"}[joint]
    if joint == "-" and r.random() < 0.6:
        hint = ""
    question = r.choice((f"Spell the word {word}{hint}.", f'Spell "{word}"{hint}.', f"Spell {word}{hint}.", f"Write the letters of {word}{hint}."))
    spelled = joint.join(word)
    return ask(polite(r, question), spelled, exact(spelled), f"The letters of {word}: {' '.join(word)}.")


def unspell(r):
    word = any_word(r)
    joint = r.choice(("-", " ", ", "))
    question = r.choice((f"Which word is this: {joint.join(word)}", f"Put the letters together: {joint.join(word)}", f"What does {joint.join(word)} spell?"))
    return ask(question, r.choice((word, f"The word is {word}.", f"That spells {word}.")), contains(word), f"The letters make {word}.")


def letter_count(r):
    word = any_word(r)
    question = r.choice((f"How many letters does the word {word} have?", f"How many letters are in {word}?", f'How many letters are in "{word}"?', f"Count the letters in {word}."))
    numbered = ", ".join(f"{c} {i}" for i, c in enumerate(word, 1))
    if r.random() < 0.5:
        return ask(question, r.choice((f"{len(word)}", f"The answer is {len(word)}.")), number(len(word)), numbered + ".", thinking=True)
    return ask(question, f"{numbered}. The answer is {len(word)}.", number(len(word)), thinking=False)


def letter_in_word(r):
    word = any_word(r)
    letter = r.choice(word) if r.random() < 0.8 else r.choice(ALPHABET)
    count = word.count(letter)
    question = r.choice((f'How many times does the letter {letter} appear in {word}?', f'How many {letter}\'s are in the word {word}?', f'Count the letter {letter} in "{word}".'))
    marked, seen = [], 0
    for c in word:
        seen += c == letter
        marked.append(f"{c} {seen}" if c == letter else c)
    steps = ", ".join(marked)
    if r.random() < 0.5:
        return ask(question, r.choice((f"{count}", f"The answer is {count}.")), number(count), steps + ".", thinking=True)
    return ask(question, f"{steps}. The answer is {count}.", number(count), thinking=False)


def edge_letter(r):
    word = any_word(r)
    first = r.random() < 0.5
    letter = word[0] if first else word[-1]
    which = "first" if first else "last"
    question = r.choice((f"What is the {which} letter of {word}?", f"Which letter is the {which} one in {word}?", f"Which letter does {word} {'start' if first else 'end'} with?"))
    return ask(question, r.choice((f"The {which} letter is {letter}.", f"{letter}")), regex(rf"\b{letter}\.?$"), f"{'-'.join(word)}: {letter}.")


def reverse(r):
    word = any_word(r, 7)[:8]
    question = r.choice((f"Reverse the word {word}.", f'Write "{word}" backwards.', f"Spell {word} backwards.", f"What is {word} in reverse?"))
    spelled = "-".join(reversed(word))
    return ask(polite(r, question) if not question.endswith("?") else question, spelled, exact(spelled), f"Forwards: {'-'.join(word)}.")


def alphabet(r):
    kind = r.randrange(5)
    if kind == 0:
        i = r.randrange(25)
        return ask(r.choice((f"Which letter comes after {ALPHABET[i]}?", f"What letter follows {ALPHABET[i].upper()} in the alphabet?")),
                   f"After {ALPHABET[i]} comes {ALPHABET[i + 1]}.", regex(rf"\b{ALPHABET[i + 1]}\.$"), f"{ALPHABET[i]}, {ALPHABET[i + 1]}.")
    if kind == 1:
        i = r.randrange(1, 26)
        return ask(f"Which letter comes before {ALPHABET[i]}?", f"Before {ALPHABET[i]} comes {ALPHABET[i - 1]}.", regex(rf"\b{ALPHABET[i - 1]}\.$"), f"{ALPHABET[i - 1]}, {ALPHABET[i]}.")
    i, j = sorted(r.sample(range(26), 2))
    if j - i < 2:
        i, j = 0, 25
    letters = ALPHABET[i:j + 1]
    joint = r.choice((" ", ", "))
    hint = {" ": " with spaces", ", ": ""}[joint]
    if kind == 2:
        question, text = polite(r, f"List the letters from {letters[0]} to {letters[-1]}{hint}."), joint.join(letters)
    elif kind == 3:
        question, text = polite(r, f"Write the letters from {letters[0].upper()} to {letters[-1].upper()} in capitals{hint}."), joint.join(letters.upper())
    else:
        question = polite(r, r.choice(("List the alphabet", "Write the alphabet", "Say the whole alphabet", "Recite the alphabet")) + hint + ".")
        text = joint.join(ALPHABET)
    return ask(question, text, exact(text), "The letters in order.")


def phrase(r, most=6):
    count = r.randint(1, most)
    words = []
    for _ in range(count):
        x = r.random()
        words.append(r.choice(POOL) if x < 0.6 else made_up(r, 2) if x < 0.75 else r.choice(NAMES) if x < 0.85 else str(r.randint(0, 999)))
    return " ".join(words)


def long_copy(r):
    """A text of some length: what streams and long prompts are tested with."""
    from tasks_stories import story
    if r.random() < 0.3:
        text = story(r).text
    else:
        words = []
        for _ in range(r.choice((12, 25, 50, 50, 100, 200))):
            words += phrase(r, 1).split()
        text = " ".join(words)
    question = r.choice(("Repeat this text: {}", "Copy this text exactly: {}", "Repeat after me: {}", "Write this once more:\n{}", "{}\n\nRepeat the text above.")).format(text)
    return ask(question, text, exact(text), "I repeat the text.")


def repeat(r):
    text = phrase(r) + r.choice(("", "", ".", "!"))
    kind = r.random()
    if kind < 0.5:
        question = r.choice((f'Repeat after me: {text}', f'Say "{text}"', f'Repeat this exactly: {text}', f'Copy this text: {text}', f'Echo: {text}'))
        return ask(question, text, exact(text), "I repeat the text.")
    text = phrase(r, 2)
    count = r.randint(2, 12)
    out = " ".join([text] * count)
    question = r.choice((f'Say "{text}" {count} times.', f'Repeat "{text}" {count} times.', f'Write "{text}" {count} times.'))
    return ask(polite(r, question), out, exact(out), f"I write it {count} times.")


def change_case(r):
    text = phrase(r, 3).lower()
    if r.random() < 0.6:
        question = r.choice((f'Write "{text}" in capitals.', f"Write {text} in capital letters.", f'Convert "{text}" to uppercase.', f"Uppercase: {text}"))
        return ask(question, text.upper(), exact(text.upper()), "I write each letter as a capital.")
    if r.random() < 0.5:
        question = r.choice((f'Write "{text.upper()}" in small letters.', f'Convert "{text.upper()}" to lowercase.', f"Lowercase: {text.upper()}"))
        return ask(question, text, exact(text), "I write each letter as a small one.")
    title = " ".join(map(capital, text.split()))
    return ask(f'Capitalize each word: {text}', title, exact(title), "Each word starts with a capital.")


def words_list(r, least=3, most=6):
    pool = r.choice((POOL, ANIMALS, FRUITS, COLOURS, THINGS, NAMES, FOODS, CITIES))
    pool = [w for w in pool if " " not in w]
    return r.sample(pool, r.randint(least, min(most, len(pool))))


def sort_words(r):
    words = words_list(r, 3, 5)
    if r.random() < 0.4:                                # words that begin alike
        pool = r.choice((NAMES, POOL, ANIMALS))
        letter = r.choice(pool)[0]
        alike = [w for w in pool if w[0] == letter]
        words = list(dict.fromkeys(words[:2] + r.sample(alike, min(3, len(alike)))))
        r.shuffle(words)
    kind = r.random()
    shown = ", ".join(words)
    out = sorted(words)
    if kind < 0.75:
        question = r.choice((f"Sort these words alphabetically: {shown}", f"Put in alphabetical order: {shown}", f"Sort alphabetically: {shown}"))
    else:
        question = f"Sort these words from Z to A: {shown}"
        out.reverse()
    text = ", ".join(out)
    return ask(question, text, exact(text), "I look at the first letters: " + ", ".join(w[0] for w in out) + ".")


def sort_numbers(r):
    top = r.choice((10, 30, 100, 100))
    numbers = r.sample(range(top), r.randint(3, 7))
    shown = ", ".join(map(str, numbers))
    up = r.random() < 0.7
    question = r.choice((f"Sort these numbers: {shown}", f"Sort from small to large: {shown}", f"Put these numbers in order: {shown}")) if up else \
        r.choice((f"Sort from large to small: {shown}", f"Sort in descending order: {shown}"))
    text = ", ".join(map(str, sorted(numbers, reverse=not up)))
    return ask(question, text, exact(text), "The smallest is " + str(min(numbers)) + " and the largest is " + str(max(numbers)) + ".")


def extreme(r):
    numbers = r.sample(range(r.choice((20, 100, 500))), r.randint(3, 6))
    shown = ", ".join(map(str, numbers))
    largest = r.random() < 0.5
    value = max(numbers) if largest else min(numbers)
    word = r.choice(("largest", "biggest")) if largest else "smallest"
    question = r.choice((f"What is the {word} of these numbers: {shown}?", f"Which number is the {word}: {shown}?", f"Find the {word} number: {shown}"))
    return ask(question, r.choice((f"The {word} is {value}.", f"{value}")), number(value), f"The {word} is {value}.")


def list_question(r):
    words = words_list(r, 3, 6)
    shown = ", ".join(words)
    kind = r.randrange(6)
    if kind == 0:
        numbered = ", ".join(f"{w} {i}" for i, w in enumerate(words, 1))
        question = r.choice((f"How many items are in this list: {shown}?", f"How many words are here: {shown}?", f"Count the items: {shown}"))
        if r.random() < 0.5:
            return ask(question, f"There are {len(words)}.", number(len(words)), numbered + ".")
        return ask(question, f"{numbered}. The answer is {len(words)}.", number(len(words)), f"I count to {len(words)}.", thinking=False)
    if kind == 1:
        i = r.randrange(len(words))
        question = r.choice((f"What is the {ORDINALS[i]} word in this list: {shown}?", f"Name the {ORDINALS[i]} item: {shown}"))
        return ask(question, words[i], exact(words[i]), f"{capital(ORDINALS[i])}: {words[i]}.")
    if kind == 2:
        question = r.choice((f"What is the last word in this list: {shown}?", f"Name the last item: {shown}"))
        return ask(question, words[-1], exact(words[-1]), f"Last: {words[-1]}.")
    if kind == 3:
        gone = r.choice(words)
        text = ", ".join(w for w in words if w != gone)
        return ask(r.choice((f"Remove {gone} from this list: {shown}", f"Write this list without {gone}: {shown}")), text, exact(text), f"I leave out {gone}.")
    if kind == 4:
        text = ", ".join(reversed(words))
        return ask(r.choice((f"Reverse this list: {shown}", f"Write this list backwards: {shown}")), text, exact(text), f"I start with {words[-1]}.")
    there = r.random() < 0.5
    word = r.choice(words) if there else r.choice([w for w in POOL if w not in words])
    return ask(f"Is {word} in this list: {shown}?", f"Yes, {word} is in the list." if there else f"No, {word} is not in the list.", regex("^Yes" if there else "^No"),
               f"I look for {word}: it is {'' if there else 'not '}there.")


def bullets(r):
    words = words_list(r, 3, 7 if r.random() < 0.8 else 30)
    shown = ", ".join(words)
    if r.random() < 0.5:
        text = "\n".join(f"- {w}" for w in words)
        question = r.choice((f"Write as a bullet list: {shown}", f"Make a list with dashes: {shown}"))
    else:
        text = "\n".join(f"{i}. {w}" for i, w in enumerate(words, 1))
        question = r.choice((f"Write as a numbered list: {shown}", f"Number these items: {shown}"))
    return ask(question, text, exact(text), "One line for each item.")


def vowels(r):
    word = any_word(r)
    found = [c for c in word if c in VOWELS]
    question = r.choice((f"Which vowels are in {word}?", f"List the vowels of the word {word}."))
    return ask(question, ", ".join(found), exact(", ".join(found)), f"{'-'.join(word)}: {' '.join(found)}.")


def odd_one(r):
    groups = (ANIMALS, FRUITS, COLOURS, NAMES, JOBS)
    kinds = ("an animal", "a fruit", "a colour", "a name", "a job")
    i, j = r.sample(range(len(groups)), 2)
    words = r.sample([w for w in groups[i] if w not in groups[j]], 3)
    other = r.choice([w for w in groups[j] if w not in groups[i]])
    mixed = words + [other]
    r.shuffle(mixed)
    question = r.choice((f"Which one does not belong: {', '.join(mixed)}?", f"Find the odd one out: {', '.join(mixed)}"))
    return ask(question, f"{capital(other)}, because it is {kinds[j]}.", regex(rf"(?i)^{other}\b"), f"The others are not {kinds[j]}.")


TASKS = ((5, "spelling", spell), (2, "spelling", unspell), (4, "letter counting", letter_count), (3, "letter counting", letter_in_word),
         (2, "letters", edge_letter), (4, "reversing", reverse), (2.5, "alphabet", alphabet), (5, "copying", repeat), (2, "long copying", long_copy), (4, "letter case", change_case),
         (5, "sorting", sort_words), (3.5, "sorting", sort_numbers), (2, "lists", extreme), (4, "lists", list_question), (1.5, "lists", bullets),
         (1.5, "letters", vowels), (1.5, "lists", odd_one))
