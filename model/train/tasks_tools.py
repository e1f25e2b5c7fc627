"""Calling a declared tool, and using its result in the same turn."""
import json

from item import Item, ask, capital, contains, exact, listed, made_up, model, number, regex, system, user
from words import CITIES, COLOURS, DAYS, FRUITS, NAMES, PLAIN_WORDS, THINGS, CAPITALS


def schema(kind, description=""):
    return {"type": kind, **({"description": description} if description else {})}


def function(name, description, properties, required=None):
    return {"type": "function", "function": {"name": name, "description": description, "parameters": {
        "type": "object", "properties": properties, "required": list(properties) if required is None else required}}}


def weather(r):
    city, degrees, sky = r.choice(CITIES), r.randint(-9, 38), r.choice("sunny cloudy rainy windy foggy snowy clear".split())
    key = r.choice(("location", "city", "place"))
    name = r.choice(("get_weather", "get_weather", "weather", "current_weather"))
    tool = function(name, r.choice(("Get weather", "Current weather in a city", "Returns the weather")), {key: schema("string", "City")})
    if r.random() < 0.3:
        tool["function"]["parameters"]["properties"]["unit"] = {"type": "string", "enum": ["c", "f"]}
        tool["function"]["parameters"]["required"] = [key]
    question = r.choice((f"Weather in {city}?", f"What is the weather in {city}?", f"What's the weather like in {city}?", f"How is the weather in {city} today?", f"Is it warm in {city}?",
                         f"Tell me the weather in {city}."))
    result = {"temperature": degrees, "weather": sky} if r.random() < 0.7 else {"condition": sky, "temp_c": degrees}
    return tool, question, {key: city}, result, f"In {city} it is {sky} with {degrees} degrees.", [city, sky, str(degrees)]


def calculator(r):
    sign = r.choice("+-*/")
    x, y = r.randint(10, 9999), r.randint(2, 999)
    if sign == "/":
        y = r.randint(2, 50)
        x = y * r.randint(10, 400)
    value = {"+": x + y, "-": x - y, "*": x * y, "/": x // y}[sign]
    word = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[sign]
    name = r.choice(("calculator", "calculate", "calc"))
    tool = function(name, r.choice(("Evaluate an expression", "A calculator", "Computes arithmetic")), {"expression": schema("string", "Expression")})
    question = r.choice((f"What is {x} {sign} {y}?", f"Calculate {x} {sign} {y}.", f"What is {x} {word} {y}?", f"Use the {name} for {x} {sign} {y}."))
    return tool, question, {"expression": f"{x} {sign} {y}"}, {"result": value}, f"{x} {sign} {y} = {value}", [str(value)]


def time_in(r):
    city = r.choice(CITIES)
    key = r.choice(("city", "location", "timezone"))
    shown = f"{r.randint(0, 23):02d}:{r.randint(0, 59):02d}"
    tool = function(r.choice(("get_time", "current_time", "clock")), r.choice(("Get the time", "Current local time")), {key: schema("string", "City")})
    question = r.choice((f"What time is it in {city}?", f"Time in {city}?", f"Tell me the time in {city}.", f"How late is it in {city}?"))
    return tool, question, {key: city}, {"time": shown}, f"It is {shown} in {city}.", [shown, city]


def search(r):
    words = " ".join(r.sample(PLAIN_WORDS, r.randint(1, 3)))
    found = " ".join(r.sample(PLAIN_WORDS, 3))
    key = r.choice(("query", "q", "text"))
    tool = function(r.choice(("search", "web_search", "find")), r.choice(("Search the web", "Look something up")), {key: schema("string", "What to look for")})
    question = r.choice((f"Search for {words}.", f'Look up "{words}".', f"Find something about {words}.", f"Please search {words}."))
    return tool, question, {key: words}, {"title": found}, f"I found: {found}.", [found]


def send(r):
    name, text = r.choice(NAMES), " ".join(r.sample(PLAIN_WORDS, r.randint(2, 4)))
    tool = function(r.choice(("send_message", "send_mail", "message")), "Send a message", {"text": schema("string"), "to": schema("string", "Who gets it")})
    question = r.choice((f'Send {name} the message "{text}".', f'Write "{text}" to {name}.', f'Tell {name}: "{text}"'))
    return tool, question, {"to": name, "text": text}, {"status": "sent"}, f"I sent the message to {name}.", ["sent", name]


def timer(r):
    minutes = r.randint(1, 90)
    tool = function(r.choice(("set_timer", "timer", "start_timer")), "Start a timer", {"minutes": schema("integer", "Minutes")})
    question = r.choice((f"Set a timer for {minutes} minutes.", f"Start a timer of {minutes} minutes.", f"Wake me in {minutes} minutes."))
    return tool, question, {"minutes": minutes}, {"ok": True}, f"The timer is set for {minutes} minutes.", ["timer", str(minutes)]


def convert(r):
    amount, (x, y) = r.randint(1, 500), r.sample(("EUR", "USD", "GBP", "JPY", "CHF"), 2)
    value = r.randint(1, 900)
    tool = function("convert", "Convert money", {"amount": schema("number"), "from": schema("string"), "to": schema("string")})
    question = r.choice((f"Convert {amount} {x} to {y}.", f"How much is {amount} {x} in {y}?", f"What are {amount} {x} in {y}?"))
    return tool, question, {"amount": amount, "from": x, "to": y}, {"value": value}, f"{amount} {x} are {value} {y}.", [str(value), y]


def lamp(r):
    room, on = r.choice("kitchen bedroom hall office garden bathroom".split()), r.random() < 0.5
    tool = function(r.choice(("set_light", "light", "switch_lamp")), "Switch a light", {"room": schema("string"), "on": schema("boolean")})
    word = "on" if on else "off"
    question = r.choice((f"Turn {word} the light in the {room}.", f"Switch the {room} light {word}.", f"Lights {word} in the {room}, please."))
    return tool, question, {"room": room, "on": on}, {"ok": True}, f"The light in the {room} is {word} now.", [room, word]


def made_up_tool(r):
    """A name and parameters that the model has never seen: it must copy them from the declaration."""
    verb = r.choice("get set find make check read list open load run".split())
    name = f"{verb}_{made_up(r, 2)}" if r.random() < 0.7 else made_up(r, 3)
    keys = r.sample(("key", "name", "count", "size", "value", "word", "number", "level", "item", "code", "label", "mode", made_up(r, 2)), r.randint(1, 3))
    arguments, properties = {}, {}
    for key in keys:
        numeric = key in ("count", "size", "number", "level") or (key in ("value", "code") and r.random() < 0.5)
        arguments[key] = r.randint(0, 999) if numeric else r.choice((r.choice(PLAIN_WORDS), made_up(r, 2), r.choice(COLOURS), r.choice(NAMES)))
        properties[key] = schema("integer" if numeric else "string", r.choice(("", "", f"The {key}")))
    tool = function(name, r.choice(("A function", f"{capital(verb)} something", "Does the work", made_up(r, 2))), properties)
    pairs = listed([f"{k} {v}" for k, v in arguments.items()])
    question = r.choice((f"Call {name} with {pairs}.", f"Use {name} with {pairs}.", f"Run {name} with {pairs}, please."))
    value = r.choice((r.randint(0, 9999), r.choice(PLAIN_WORDS), made_up(r, 2)))
    key = r.choice(("result", "value", "answer", "output"))
    return tool, question, arguments, {key: value}, f"The {key} is {value}.", [str(value)]


MAKERS = (weather, weather, calculator, calculator, time_in, search, send, timer, convert, lamp, made_up_tool, made_up_tool, made_up_tool)


def others(r, tool, most=2):
    """The tool among a few that are not needed."""
    tools, names = [tool], {tool["function"]["name"]}
    kinds = {maker.__name__ for maker in MAKERS}
    for _ in range(r.randint(0, most)):
        extra = r.choice(MAKERS)(r)[0]
        taken = {frozenset(t["function"]["parameters"]["properties"]) for t in tools}
        if extra["function"]["name"] not in names and frozenset(extra["function"]["parameters"]["properties"]) not in taken and same_kind(extra, tools) is False:
            tools.append(extra)
            names.add(extra["function"]["name"])
    r.shuffle(tools)
    return tools


KINDS = (("weather",), ("calc",), ("time", "clock"), ("search", "find"), ("send", "message"), ("timer",), ("convert",), ("light", "lamp"))


def same_kind(tool, tools):
    def kinds(t):
        name = t["function"]["name"]
        return {k for k in KINDS if any(part in name for part in k)}
    return any(kinds(tool) & kinds(t) for t in tools)


def call_message(name, arguments, number_of_call):
    return {"role": "assistant", "tool_calls": [{"id": f"call_{number_of_call}", "type": "function", "function": {"name": name, "arguments": arguments}}]}


def call(r):
    tool, question, arguments, _, _, _ = r.choice(MAKERS)(r)
    name = tool["function"]["name"]
    return Item([user(question)], calls=[(name, arguments)], tools=others(r, tool), thought=f"I should call {name}.",
                check={"type": "tool_call", "name": name, "arguments": arguments})


def answer(r):
    tool, question, arguments, result, text, wanted = r.choice(MAKERS)(r)
    name = tool["function"]["name"]
    body = result
    if r.random() < 0.5:
        body = json.dumps(result, separators=r.choice(((",", ":"), (", ", ": "))))
    elif r.random() < 0.15 and len(result) == 1:
        body = str(next(iter(result.values())))
    messages = [user(question), call_message(name, arguments, 1), {"role": "tool", "tool_call_id": "call_1", "content": body}]
    return Item(messages, text, f"The tool {name} has answered.", tools=others(r, tool), check={"type": "contains", "values": wanted})


def failed(r):
    tool, question, arguments, _, _, _ = r.choice(MAKERS)(r)
    name = tool["function"]["name"]
    reason = r.choice(("timeout", "not found", "no network", "not allowed", "busy"))
    messages = [user(question), call_message(name, arguments, 1), {"role": "tool", "tool_call_id": "call_1", "content": {"error": reason}}]
    return Item(messages, f"The tool {name} failed: {reason}.", f"The tool {name} gives an error.", tools=others(r, tool), check=contains(reason))


def second_call(r):
    """A conversation that goes on with another call."""
    maker = r.choice(MAKERS)
    tool, question, arguments, result, text, wanted = maker(r)
    name = tool["function"]["name"]
    messages = [user(question), call_message(name, arguments, 1), {"role": "tool", "tool_call_id": "call_1", "content": result}, model(text)]
    if r.random() < 0.5:
        other = r.choice(MAKERS)(r)
        if not same_kind(other[0], [tool]) and other[0]["function"]["name"] != name:
            next_name = other[0]["function"]["name"]
            return Item(messages + [user(other[1])], calls=[(next_name, other[2])], tools=[tool, other[0]], thought=f"I should call {next_name}.",
                        check={"type": "tool_call", "name": next_name, "arguments": other[2]})
    thanks = r.choice(("Thanks!", "Thank you.", "Great, thanks."))
    return Item(messages + [user(thanks)], r.choice(("You are welcome!", "My pleasure!")), "The user thanks me.", tools=others(r, tool, 1), check=regex("welcome|pleasure"))


def two_calls(r):
    """Two calls in one turn: the same tool for two cities."""
    maker = r.choice((weather, time_in))
    tool, _, arguments, _, _, _ = maker(r)
    (key, _), = arguments.items()
    name = tool["function"]["name"]
    x, y = r.sample(CITIES, 2)
    what = "weather" if maker is weather else "time"
    question = r.choice((f"What is the {what} in {x} and in {y}?", f"Tell me the {what} in {x} and {y}."))
    return Item([user(question)], calls=[(name, {key: x}), (name, {key: y})], tools=[tool], thought=f"I call {name} twice.",
                check={"type": "tool_call", "calls": [{"name": name, "arguments": {key: x}}, {"name": name, "arguments": {key: y}}]})


def two_tools(r):
    """Two different tools for one request."""
    x, y = r.sample((weather, time_in, timer, lamp, send, convert), 2)
    (tool, question, arguments, *_), (other, second, more, *_) = x(r), y(r)
    joined = question.rstrip(".?!") + r.choice((" and ", ", and ")) + second[0].lower() + second[1:]
    calls = [(tool["function"]["name"], arguments), (other["function"]["name"], more)]
    return Item([user(joined)], calls=calls, tools=[tool, other], thought=f"I call {calls[0][0]} and {calls[1][0]}.",
                check={"type": "tool_call", "calls": [{"name": n, "arguments": v} for n, v in calls]})


def instructed(task):
    """The same task under a system prompt, which is where programs put one."""
    def with_system(r):
        item = task(r)
        if r.random() < 0.3:
            item.messages = [system(r.choice(SYSTEMS)), *item.messages]
        return item
    return with_system


def not_needed(r):
    """Tools are there, but the question does not need them."""
    from tasks_facts import fact_question
    item = fact_question(r)
    item.tools = others(r, r.choice(MAKERS)(r)[0])
    return item


SYSTEMS = ("You are a helpful assistant.", "Use the tools when they help.", "You are a friendly assistant with tools.", "Be brief.", "You can call tools.", "Answer kindly.")
TASKS = tuple((weight, family, instructed(task)) for weight, family, task in ((8, "tool calls", call), (5, "tool results", answer), (1, "tool results", failed), (2, "tool results", second_call), (1, "tool calls", two_calls), (1, "tool calls", two_tools), (1.5, "tool not needed", not_needed)))
