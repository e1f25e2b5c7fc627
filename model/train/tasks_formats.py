"""Making and reading structured text: JSON from a description, fields out of a text, tables."""
import json

from item import ask, contains, exact, listed, polite
from words import CITIES, COLOURS, FOODS, JOBS, MONTHS, NAMES, THINGS
from tasks_words import words_list


def equal(value):
    return {"type": "json_equal", "value": value}


def person(r):
    return {"name": r.choice(NAMES), "age": r.randint(5, 90), "city": r.choice(CITIES), "job": r.choice(JOBS)}


def written(r, value):
    """JSON as the request wants it: on one line or indented."""
    pretty = r.random() < 0.3
    text = json.dumps(value, indent=2 if pretty else None, ensure_ascii=False)
    return text, " Indent it." if pretty else ""


def describe(r, p):
    job = ("an " if p["job"][0] in "aeiou" else "a ") + p["job"]
    return r.choice((f"{p['name']} is {p['age']} years old, lives in {p['city']} and works as {job}.",
                     f"{p['name']}, {p['age']}, is {job} from {p['city']}.",
                     f"In {p['city']} lives {p['name']}, {job} who is {p['age']} years old."))


def json_person(r):
    p = person(r)
    keys = r.sample(list(p), r.choice((2, 3, 4)))
    value = {k: p[k] for k in keys}
    text, how = written(r, value)
    question = r.choice((f"Write this as JSON with the keys {listed(keys)}: {describe(r, p)}", f"{describe(r, p)} Give me JSON with the keys {listed(keys)}.",
                         f"Extract {listed(keys)} as JSON: {describe(r, p)}"))
    return ask(question + how, text, equal(value), f"The keys are {listed(keys)}.")


def json_given(r):
    """An object from explicit pairs."""
    pool = {"name": r.choice(NAMES), "age": r.randint(1, 99), "city": r.choice(CITIES), "colour": r.choice(COLOURS), "food": r.choice(FOODS), "thing": r.choice(THINGS),
            "count": r.randint(0, 500), "price": r.randint(1, 99), "active": r.random() < 0.5, "month": r.choice(MONTHS), "id": r.randint(100, 9999)}
    keys = r.sample(list(pool), r.randint(1, 5))
    value = {k: pool[k] for k in keys}
    shown = listed([f"{k} {str(v).lower() if isinstance(v, bool) else v}" for k, v in value.items()])
    text, how = written(r, value)
    question = r.choice((f"Make a JSON object with {shown}.", f"Write a JSON object with {shown}.", f"JSON with {shown}, please.", f"Produce JSON: {shown}."))
    return ask(question + how, text, equal(value), f"The keys are {listed(keys)}.")


def json_list(r):
    words = words_list(r, 2, 6) if r.random() < 0.6 else [r.randint(0, 200) for _ in range(r.randint(2, 6))]
    shown = ", ".join(map(str, words))
    text = json.dumps(words)
    return ask(r.choice((f"Write this list as a JSON array: {shown}", f"Turn into a JSON array: {shown}", f"Make a JSON array of {shown}.")), text, equal(words), "A JSON array in the same order.")


def json_read(r):
    p = person(r)
    p["colour"] = r.choice(COLOURS)
    keys = r.sample(list(p), r.randint(2, 5))
    value = {k: p[k] for k in keys}
    key = r.choice(keys)
    shown = json.dumps(value)
    question = r.choice((f"What is the {key} in this JSON: {shown}", f"Read the value of \"{key}\" from {shown}", f"{shown} What is the {key}?"))
    return ask(question, str(value[key]), exact(str(value[key])), f"{key}: {value[key]}.")


def extract(r):
    p = person(r)
    key = r.choice(list(p))
    question = r.choice((f"{describe(r, p)} What is the {key}?", f"Extract the {key}: {describe(r, p)}", f"Find the {key} in this text: {describe(r, p)}"))
    return ask(question, r.choice((f"{p[key]}", f"The {key} is {p[key]}.")), contains(str(p[key])), f"{key}: {p[key]}.")


def invoice(r):
    count, thing, price = r.randint(2, 9), r.choice(THINGS), r.randint(2, 12)
    name = r.choice(NAMES)
    question = f"{name} orders {count} of the {thing} at {price} euros each. Write JSON with customer, item, count, price and total."
    value = {"customer": name, "item": thing, "count": count, "price": price, "total": count * price}
    return ask(question, json.dumps(value), equal(value), f"{count} * {price} = {count * price}.")


def csv_line(r):
    p = person(r)
    text = ",".join(str(v) for v in p.values())
    return ask(polite(r, f"Write as a CSV line with name, age, city, job: {describe(r, p)}"), text, exact(text), "The four fields with commas.")


def table(r):
    people = [person(r) for _ in range(r.randint(2, 4))]
    rows = "; ".join(f"{p['name']} {p['age']} {p['job']}" for p in people)
    text = "| name | age | job |\n| --- | --- | --- |\n" + "\n".join(f"| {p['name']} | {p['age']} | {p['job']} |" for p in people)
    return ask(f"Make a Markdown table with name, age and job: {rows}", text, exact(text), f"{len(people)} rows.")


TASKS = ((4, "JSON", json_person), (4, "JSON", json_given), (1.5, "JSON", json_list), (2, "extraction", json_read), (3, "extraction", extract),
         (1, "JSON", invoice), (1, "extraction", csv_line), (1, "extraction", table))
