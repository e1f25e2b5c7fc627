#!/usr/bin/env python3
"""The unmodified `openai` package talks to Sluice: WebSocket, HTTP, streams, tools, reasoning, errors.

What the package parses into its own types is checked, not what we think we sent. The demo model answers; where its
words matter the questions are of a kind that it knows.
"""
import asyncio
import json

from server import Server, main, skip

try:
    import openai
    from openai import AsyncOpenAI, OpenAI
except ImportError:
    skip("the package openai is not installed")

QUESTION = "Tell me a short story about a lighthouse."
GREEDY = {"temperature": 0}
SEEDED = {"temperature": 1.0, "extra_body": {"seed": 7, "top_k": 64}}
WEATHER = {"name": "get_weather", "description": "The weather in a city.", "strict": False,
           "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Name of the city."}}, "required": ["city"]}}
ENDS = ("response.completed", "response.incomplete", "response.failed")
server = None


def client(**options):
    return OpenAI(base_url=server.address + "/v1", api_key="none", max_retries=0, timeout=300, **options)


def websocket_events(connection):
    for event in connection:
        yield event
        if event.type in ENDS:
            return


def reference(**more):
    return client().responses.create(model=server.model, input=QUESTION, max_output_tokens=60, **{**GREEDY, **more})


def counted(usage):
    """All but how much of the prompt had been computed before."""
    return usage.input_tokens, usage.output_tokens, usage.total_tokens, usage.output_tokens_details


def check_usage(usage, most):
    assert usage.input_tokens > 0 and 0 < usage.output_tokens <= most and usage.total_tokens == usage.input_tokens + usage.output_tokens, usage
    assert usage.output_tokens_details.reasoning_tokens >= 0 and usage.input_tokens_details.cached_tokens >= 0, usage


def test_models():
    models = client().models.list()
    assert [m.id for m in models.data] == [server.model] and models.data[0].object == "model" and models.data[0].created > 0, models
    assert client().models.retrieve(server.model).id == server.model


def test_responses_over_http():
    r = reference()
    assert r.object == "response" and r.status in ("completed", "incomplete") and r.model == server.model and r.id.startswith("resp"), r
    assert r.output_text and r.output[0].type == "message" and r.output[0].content[0].type == "output_text", r.output
    check_usage(r.usage, 60)
    assert reference().output_text == r.output_text
    seeded = [client().responses.create(model=server.model, input=QUESTION, max_output_tokens=60, **SEEDED).output_text for _ in range(2)]
    assert seeded[0] == seeded[1]
    print(f"     {r.output_text!r:.160}", flush=True)


def test_responses_stream_over_http():
    text, types, final = "", [], None
    with client().responses.create(model=server.model, input=QUESTION, max_output_tokens=60, stream=True, **GREEDY) as stream:
        for i, event in enumerate(stream):
            assert event.sequence_number == i
            types.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type in ENDS:
                final = event.response
    assert types[0] == "response.created" and types[-1] in ENDS and types.count(types[-1]) == 1, types
    wanted = reference()
    assert text == final.output_text == wanted.output_text, (text, wanted.output_text)
    assert counted(final.usage) == counted(wanted.usage)
    short = {"model": server.model, "input": "What is 2 plus 3?", "max_output_tokens": 200, **GREEDY}
    with client().responses.stream(**short) as stream:  # the package's own accumulator, which wants a completed response
        stream.until_done()
        assert stream.get_final_response().output_text == client().responses.create(**short).output_text


def test_responses_over_websocket():
    wanted = reference()
    with client().responses.connect() as connection:
        for _ in range(2):
            connection.response.create(model=server.model, input=QUESTION, max_output_tokens=60, **GREEDY)
            events = list(websocket_events(connection))
            assert [e.sequence_number for e in events] == list(range(len(events)))
            assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == wanted.output_text
            assert events[-1].response.output_text == wanted.output_text and counted(events[-1].response.usage) == counted(wanted.usage)
        # a conversation goes on from a stored response
        connection.response.create(model=server.model, input="And another one.", previous_response_id=events[-1].response.id, max_output_tokens=20, **GREEDY)
        more = list(websocket_events(connection))[-1].response
        assert more.previous_response_id == events[-1].response.id and more.usage.input_tokens > wanted.usage.total_tokens, more.usage


def test_lanes_over_websocket():
    """Two lanes of one connection run at the same time; each has its own events in order."""
    with client().responses.connect() as connection:
        for lane in ("a", "b"):
            connection.response.create(model=server.model, input=QUESTION, max_output_tokens=60, stream_id=lane, **GREEDY)
        texts, order, running = {"a": "", "b": ""}, [], {"a", "b"}
        for event in connection:
            order.append(event.stream_id)
            if event.type == "response.output_text.delta":
                texts[event.stream_id] += event.delta
            if event.type in ENDS:
                running.discard(event.stream_id)
                if not running:
                    break
        wanted = reference().output_text
        assert texts == {"a": wanted, "b": wanted}
        changes = sum(x != y for x, y in zip(order, order[1:]))
        assert changes >= 3, f"the lanes ran one after the other: {changes} changes"


def test_async_websocket():
    async def go():
        async with AsyncOpenAI(base_url=server.address + "/v1", api_key="none", timeout=300) as c:
            async with c.responses.connect() as connection:
                await connection.response.create(model=server.model, input=QUESTION, max_output_tokens=60, **GREEDY)
                async for event in connection:
                    if event.type in ENDS:
                        return event.response.output_text
    assert asyncio.run(go()) == reference().output_text


def test_websocket_errors():
    with client().responses.connect() as connection:
        connection.response.create(model="gpt-17", input="x")
        event = next(iter(connection))
        assert event.type == "error" and event.status == 404 and event.error.code == "model_not_found" and "gpt-17" in event.error.message, event
        connection.response.create(model=server.model, input="x", previous_response_id="resp_of_nobody")
        event = next(iter(connection))
        assert event.type == "error" and event.error.code == "previous_response_not_found", event


def test_chat_completions():
    wanted = reference().output_text
    messages = [{"role": "user", "content": QUESTION}]
    c = client().chat.completions.create(model=server.model, messages=messages, max_tokens=60, **GREEDY)
    assert c.object == "chat.completion" and c.choices[0].message.role == "assistant" and c.choices[0].message.content == wanted, c
    assert c.choices[0].finish_reason in ("stop", "length") and c.usage.total_tokens == c.usage.prompt_tokens + c.usage.completion_tokens
    text, roles, finish, ids, usage = "", [], [], set(), None
    for chunk in client().chat.completions.create(model=server.model, messages=messages, max_completion_tokens=60, stream=True,
                                                  stream_options={"include_usage": True}, **GREEDY):
        ids.add((chunk.id, chunk.created, chunk.model, chunk.object))
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            finish += [choice.finish_reason] if choice.finish_reason else []
    assert text == wanted and roles == ["assistant"] and finish == [c.choices[0].finish_reason] and len(ids) == 1, (text, roles, finish, ids)
    assert (usage.prompt_tokens, usage.completion_tokens) == (c.usage.prompt_tokens, c.usage.completion_tokens), (usage, c.usage)


def test_chat_choices_stop_and_logprobs():
    messages = [{"role": "user", "content": QUESTION}]
    c = client().chat.completions.create(model=server.model, messages=messages, max_tokens=20, n=3, seed=5, temperature=1.0)
    assert [x.index for x in c.choices] == [0, 1, 2] and len({x.message.content for x in c.choices}) > 1, c.choices
    assert c.usage.completion_tokens <= 60
    whole = client().chat.completions.create(model=server.model, messages=messages, max_tokens=40, **GREEDY).choices[0].message.content
    stop = whole.split()[4]
    cut = client().chat.completions.create(model=server.model, messages=messages, max_tokens=40, stop=[stop], **GREEDY).choices[0]
    assert cut.finish_reason == "stop" and cut.message.content == whole[:whole.index(stop)], (cut.message.content, whole, stop)
    c = client().chat.completions.create(model=server.model, messages=messages, max_tokens=12, logprobs=True, top_logprobs=3, **GREEDY)
    content = c.choices[0].logprobs.content
    assert "".join(t.token for t in content).startswith(c.choices[0].message.content) and all(len(t.top_logprobs) == 3 for t in content), content
    for t in content:
        assert t.logprob <= 0 and t.top_logprobs[0].logprob >= t.top_logprobs[-1].logprob
        assert t.token == t.top_logprobs[0].token, "greedy, but not the most likely"


def test_logprobs_of_responses():
    """The text's log probabilities stand in its deltas, its done events and the response, all the same."""
    asked = {"model": server.model, "input": "Spell the word river.", "max_output_tokens": 60, "top_logprobs": 2, "include": ["message.output_text.logprobs"],
             "reasoning": {"effort": "high"}, **GREEDY}
    whole = client().responses.create(**asked)
    wanted = whole.output[-1].content[0].logprobs
    assert "".join(t.token for t in wanted).endswith(whole.output_text) and all(len(t.top_logprobs) == 2 and t.logprob <= 0 for t in wanted), wanted
    assert client().responses.retrieve(whole.id).output[-1].content[0].logprobs == wanted
    deltas, done = [], []
    for event in client().responses.create(stream=True, **asked):
        if event.type == "response.output_text.delta":
            deltas += [(t.token, t.logprob) for t in event.logprobs]
        elif event.type == "response.output_text.done":
            done.append([(t.token, t.logprob) for t in event.logprobs])
        elif event.type == "response.completed":
            assert event.response.output[-1].content[0].logprobs == wanted
    assert done == [deltas] == [[(t.token, t.logprob) for t in wanted]], (done, deltas)
    assert reference().output[-1].content[0].logprobs == [], "nobody asked for them"


def test_completions():
    c = client().completions.create(model=server.model, prompt="The lighthouse", max_tokens=10, **GREEDY)
    assert c.object == "text_completion" and c.choices[0].text and c.usage.completion_tokens <= 10, c
    pieces = client().completions.create(model=server.model, prompt="The lighthouse", max_tokens=10, stream=True, **GREEDY)
    assert "".join(p.choices[0].text for p in pieces if p.choices) == c.choices[0].text
    bare = client().completions.create(model=server.model, prompt="The lighthouse", max_tokens=1, extra_body={"add_special_tokens": False}, **GREEDY)
    assert bare.usage.prompt_tokens == c.usage.prompt_tokens - 1, (bare.usage, c.usage)
    try:
        client().completions.create(model=server.model, prompt="The lighthouse", max_tokens=1, echo=True, logprobs=1)
        raise AssertionError("there are no log probabilities of prompts")
    except openai.BadRequestError as e:
        assert e.param == "echo" and e.code == "unsupported_parameter", e


def test_tools_with_responses():
    """Declared tool -> call -> result -> answer."""
    tools = [{"type": "function", **WEATHER}]
    ask = [{"role": "user", "content": "What is the weather in Oslo?"}]
    r = client().responses.create(model=server.model, input=ask, tools=tools, max_output_tokens=200, **GREEDY)
    calls = [o for o in r.output if o.type == "function_call"]
    if not calls:
        skip(f"the model called no tool: {r.output_text!r:.200}")
    call = calls[0]
    assert call.name == "get_weather" and json.loads(call.arguments).get("city") == "Oslo" and call.call_id and call.status == "completed", call
    streamed = ""
    for event in client().responses.create(model=server.model, input=ask, tools=tools, max_output_tokens=200, stream=True, **GREEDY):
        if event.type == "response.function_call_arguments.delta":
            streamed += event.delta
        if event.type == "response.function_call_arguments.done":
            assert event.arguments == streamed == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "snow", "celsius": -7}'}
    a = client().responses.create(model=server.model, tools=tools, max_output_tokens=200, **GREEDY,
                                  input=[*ask, {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments}, result])
    b = client().responses.create(model=server.model, tools=tools, max_output_tokens=200, previous_response_id=r.id, input=[result], **GREEDY)
    print(f"     {call.name}({call.arguments}) -> {a.output_text!r:.120}", flush=True)
    assert a.output_text and a.output_text == b.output_text, (a.output_text, b.output_text)
    assert "7" in a.output_text or "snow" in a.output_text, f"the answer does not use the result: {a.output_text}"


def test_tools_with_chat():
    tools = [{"type": "function", "function": WEATHER}]
    messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
    c = client().chat.completions.create(model=server.model, messages=messages, tools=tools, max_tokens=200, **GREEDY).choices[0]
    if not c.message.tool_calls:
        skip(f"the model called no tool: {c.message.content!r:.200}")
    assert c.finish_reason == "tool_calls"
    call = c.message.tool_calls[0]
    assert call.type == "function" and call.function.name == "get_weather" and json.loads(call.function.arguments)["city"] == "Oslo", call
    name, arguments, finish = "", "", None
    for chunk in client().chat.completions.create(model=server.model, messages=messages, tools=tools, max_tokens=200, stream=True, **GREEDY):
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            for piece in choice.delta.tool_calls or []:
                assert piece.index == 0
                name += piece.function.name or ""
                arguments += piece.function.arguments or ""
    assert (name, arguments, finish) == (call.function.name, call.function.arguments, "tool_calls"), (name, arguments, finish)
    messages += [c.message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "snow", "celsius": -7}'}]
    answer = client().chat.completions.create(model=server.model, messages=messages, tools=tools, max_tokens=200, **GREEDY).choices[0]
    assert "7" in (answer.message.content or "") or "snow" in (answer.message.content or ""), answer


def test_forced_calls():
    """tool_choice: any tool, one by its name, in both APIs, streamed too; where nothing was asked that a tool could answer."""
    time_of = {"name": "get_time", "description": "The time in a city.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
    chat_tools, tools = [{"type": "function", "function": f} for f in (WEATHER, time_of)], [{"type": "function", **f} for f in (WEATHER, time_of)]
    messages = [{"role": "user", "content": "Spell the word river."}]
    free = client().chat.completions.create(model=server.model, messages=messages, tools=chat_tools, max_tokens=60, **GREEDY)
    for choice, names in (("required", ("get_weather", "get_time")), ({"type": "function", "function": {"name": "get_time"}}, ("get_time",)),
                          ({"type": "function", "function": {"name": "get_weather"}}, ("get_weather",))):
        c = client().chat.completions.create(model=server.model, messages=messages, tools=chat_tools, tool_choice=choice, max_tokens=60, **GREEDY)
        call = c.choices[0].message.tool_calls[0].function
        assert c.choices[0].finish_reason == "tool_calls" and call.name in names and not c.choices[0].message.content, c
        assert isinstance(json.loads(call.arguments), dict) and c.usage.prompt_tokens > free.usage.prompt_tokens, (call, c.usage)
        name, arguments = "", ""
        for chunk in client().chat.completions.create(model=server.model, messages=messages, tools=chat_tools, tool_choice=choice, max_tokens=60, stream=True, **GREEDY):
            for piece in [p for one in chunk.choices for p in one.delta.tool_calls or []]:
                name += piece.function.name or ""
                arguments += piece.function.arguments or ""
        assert (name, arguments) == (call.name, call.arguments), (name, arguments, call)
    r = client().responses.create(model=server.model, input="Spell the word river.", tools=tools, tool_choice={"type": "function", "name": "get_time"}, max_output_tokens=60, **GREEDY)
    assert [o.type for o in r.output] == ["function_call"] and r.output[0].name == "get_time" and r.tool_choice.name == "get_time", r
    result = {"type": "function_call_output", "call_id": r.output[0].call_id, "output": '{"time": "12:00"}'}
    after = client().responses.create(model=server.model, previous_response_id=r.id, input=[result], tools=tools, max_output_tokens=60, **GREEDY)
    assert after.output_text, "nothing forces the next answer"
    nothing = client().responses.create(model=server.model, input="Spell the word river.", tools=tools[:1], tool_choice="required", extra_body={"generate": False})
    assert nothing.status == "completed" and nothing.output == [], nothing
    for bad, words in (({"tool_choice": "required"}, "no 'tools'"), ({"tool_choice": {"type": "function", "function": {"name": "nothing"}}, "tools": chat_tools}, "nothing"),
                       ({"tool_choice": "required", "tools": chat_tools, "reasoning_effort": "low"}, "reasoning"),
                       ({"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "a b"}}]}, "a b")):
        try:
            client().chat.completions.create(model=server.model, messages=messages, **bad)
            raise AssertionError(f"{bad} was taken")
        except openai.BadRequestError as e:
            assert words in str(e), e


def test_one_call_at_a_time():
    """parallel_tool_calls: false ends the answer with its first call, whatever the model would go on with."""
    tools = [{"type": "function", "function": WEATHER}]
    more = {"model": server.model, "messages": [{"role": "user", "content": "What is the weather in Oslo?"}], "tools": tools, "tool_choice": "required", "max_tokens": 120,
            "extra_body": {"ignore_eos": True}, **GREEDY}  # it goes on
    free, one = client().chat.completions.create(**more), client().chat.completions.create(parallel_tool_calls=False, **more)
    assert free.choices[0].finish_reason == "length" and free.usage.completion_tokens == 120, free
    assert one.choices[0].finish_reason == "tool_calls" and len(one.choices[0].message.tool_calls) == 1 and not one.choices[0].message.content, one
    assert one.choices[0].message.tool_calls[0].function == free.choices[0].message.tool_calls[0].function and one.usage.completion_tokens < 20, one


def test_reasoning():
    thinking = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}
    r = client().responses.create(model=server.model, input="What is 17 plus 25?", max_output_tokens=300, temperature=0, **thinking)
    kinds = [o.type for o in r.output]
    if "reasoning" not in kinds:
        skip(f"the model did not think: {kinds} {r.output_text!r:.200}")
    assert kinds[0] == "reasoning" and r.output[0].content[0].text and r.usage.output_tokens_details.reasoning_tokens > 0, r
    streamed = ""
    for event in client().responses.create(model=server.model, input="What is 17 plus 25?", max_output_tokens=300, stream=True, temperature=0, **thinking):
        if event.type == "response.reasoning_text.delta":
            streamed += event.delta
    assert streamed == r.output[0].content[0].text
    by_effort = client().responses.create(model=server.model, input="What is 17 plus 25?", max_output_tokens=300, temperature=0, reasoning={"effort": "high"})
    assert by_effort.output_text == r.output_text
    c = client().chat.completions.create(model=server.model, messages=[{"role": "user", "content": "What is 17 plus 25?"}], max_tokens=300, temperature=0, **thinking)
    assert c.choices[0].message.reasoning_content == streamed and c.choices[0].message.content == r.output_text, c
    print(f"     thought {streamed!r:.100}, said {r.output_text!r:.60}", flush=True)


def expect_error(kind, status, names, call):
    try:
        call()
    except kind as e:
        assert e.status_code == status, e
        for name in names:
            assert name in e.message, f"{name!r} is not in {e.message!r}"
        return e
    raise AssertionError(f"no {kind.__name__}")


def test_errors():
    c = client()
    e = expect_error(openai.NotFoundError, 404, ["gpt-17", server.model], lambda: c.responses.create(model="gpt-17", input="x"))
    assert e.code == "model_not_found" and e.param == "model", (e.code, e.param)
    e = expect_error(openai.BadRequestError, 400, ["temperature"], lambda: c.responses.create(model=server.model, input="x", temperature=9))
    assert e.param == "temperature" and e.type == "invalid_request_error"
    expect_error(openai.BadRequestError, 400, ["messages"], lambda: c.chat.completions.create(model=server.model, messages=[]))
    e = expect_error(openai.BadRequestError, 400, ["512"], lambda: c.responses.create(model=server.model, input="word " * 3000))
    assert e.code == "context_length_exceeded", e.code
    expect_error(openai.NotFoundError, 404, ["gpt-17"], lambda: c.models.retrieve("gpt-17"))
    expect_error(openai.NotFoundError, 404, [], lambda: c.embeddings.create(model=server.model, input="x"))
    expect_error(openai.BadRequestError, 400, ["Picture 1", "JPEG"], lambda: c.responses.create(model=server.model, input=[
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}]))
    raw = c.responses.with_raw_response.create(model=server.model, input="x", max_output_tokens=2, extra_headers={"x-request-id": "e2e-request-1"})
    assert raw.headers.get("x-request-id") == "e2e-request-1", dict(raw.headers)


def test_incomplete():
    r = client().responses.create(model=server.model, input=QUESTION, max_output_tokens=3, temperature=0, extra_body={"ignore_eos": True})
    assert r.status == "incomplete" and r.incomplete_details.reason == "max_output_tokens" and r.usage.output_tokens == 3, r


if __name__ == "__main__":
    def all_tests():
        return [f for name, f in globals().items() if name.startswith("test_")]
    from server import need_build
    need_build()
    with Server("--max-context", "512") as server:
        try:
            main(*all_tests())
        except SystemExit as e:
            code = e.code
        assert sum(server.restarts().values()) == 0, server.restarts()
    raise SystemExit(code)
