"""Checks the demo model's chat template against strings of the Gemma 4 turn format.

Reads  ../demo/chat_template.jinja, rendered by jinja2 as transformers does it.
Fails  with the first string that differs; prints the number of strings checked otherwise.
"""
import pathlib
import sys

import jinja2
import jinja2.sandbox

DEMO = pathlib.Path(__file__).resolve().parent.parent / "demo"


def load_template():
    """The template as a function of the same arguments that apply_chat_template passes."""
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def fail(message):
        raise jinja2.exceptions.TemplateError(message)

    env.globals["raise_exception"] = fail
    return env.from_string((DEMO / "chat_template.jinja").read_text()).render


WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Get weather",
    "parameters": {"type": "object", "required": ["location"], "properties": {
        "location": {"type": "string", "description": "City"},
        "unit": {"type": "string", "enum": ["c", "f"]}}}}}
HI = {"role": "user", "content": "Hi"}
BRIEF = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "Weather in Paris?"}
CALL = {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": {
    "name": "get_weather", "arguments": {"location": "Paris"}}}]}
EMPTY = "<|channel>thought\n<channel|>"
DECLARED = ('<bos><|turn>system\n{}<|tool>declaration:get_weather{{description:<|"|>Get weather<|"|>,parameters:{{properties:'
            '{{location:{{description:<|"|>City<|"|>,type:<|"|>STRING<|"|>}},unit:{{enum:[<|"|>c<|"|>,<|"|>f<|"|>],'
            'type:<|"|>STRING<|"|>}}}},required:[<|"|>location<|"|>],type:<|"|>OBJECT<|"|>}}}}<tool|><turn|>\n'
            '<|turn>user\nWeather in Paris?<turn|>\n<|turn>model\n')
CALLED = '<|tool_call>call:get_weather{location:<|"|>Paris<|"|>}<tool_call|>'

# (what, arguments, expected)
CASES = [
    ("user", dict(messages=[HI]), "<bos><|turn>user\nHi<turn|>\n<|turn>model\n" + EMPTY),
    ("thinking", dict(messages=[HI], enable_thinking=True),
     "<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"),
    ("system", dict(messages=[BRIEF, HI]),
     "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n" + EMPTY),
    ("system and thinking", dict(messages=[BRIEF, HI], enable_thinking=True),
     "<bos><|turn>system\n<|think|>\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"),
    ("old reasoning is dropped", dict(messages=[
        HI, {"role": "assistant", "content": "Hello!", "reasoning": "greet"}, {"role": "user", "content": "Bye"}]),
     "<bos><|turn>user\nHi<turn|>\n<|turn>model\nHello!<turn|>\n<|turn>user\nBye<turn|>\n<|turn>model\n" + EMPTY),
    ("image", dict(messages=[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]),
     "<bos><|turn>user\n<|image|>What is this?<turn|>\n<|turn>model\n" + EMPTY),
    ("tool declared", dict(messages=[ASK], tools=[WEATHER]), DECLARED.format("") + EMPTY),
    ("object result", dict(messages=[ASK, CALL, {
        "role": "tool", "tool_call_id": "c1", "content": {"temperature": 15, "weather": "sunny"}}], tools=[WEATHER]),
     DECLARED.format("") + CALLED + '<|tool_response>response:get_weather{temperature:15,weather:<|"|>sunny<|"|>}<tool_response|>'),
    ("text result", dict(messages=[ASK, CALL, {
        "role": "tool", "tool_call_id": "c1", "content": '{"temperature":15}'}], tools=[WEATHER]),
     DECLARED.format("") + CALLED + '<|tool_response>response:get_weather{value:<|"|>{"temperature":15}<|"|>}<tool_response|>'),
    ("result while thinking", dict(messages=[ASK, {**CALL, "reasoning": "R"}, {
        "role": "tool", "tool_call_id": "c1", "content": "x"}], tools=[WEATHER], enable_thinking=True),
     DECLARED.format("<|think|>\n") + "<|channel>thought\nR\n<channel|>" + CALLED
     + '<|tool_response>response:get_weather{value:<|"|>x<|"|>}<tool_response|><|channel>thought\n'),
    ("answer after a result", dict(messages=[ASK, CALL, {
        "role": "tool", "tool_call_id": "c1", "content": "x"}, {"role": "assistant", "content": "It is x."}, HI], tools=[WEATHER]),
     DECLARED.format("") + CALLED + '<|tool_response>response:get_weather{value:<|"|>x<|"|>}<tool_response|>It is x.<turn|>\n'
     "<|turn>user\nHi<turn|>\n<|turn>model\n" + EMPTY),
    ("audio", dict(messages=[{"role": "user", "content": [{"type": "text", "text": "Transcribe:"}, {"type": "audio"}]}]),
     "<bos><|turn>user\nTranscribe:<|audio|><turn|>\n<|turn>model\n" + EMPTY),
    ("call that waits", dict(messages=[ASK, CALL], tools=[WEATHER], add_generation_prompt=False),
     DECLARED.format("") + CALLED + "<|tool_response>"),
]


def main():
    render = load_template()
    for what, arguments, expected in CASES:
        got = render(**{"add_generation_prompt": True, **arguments})
        if got != expected:
            sys.exit(f"{what}:\n got      {got!r}\n expected {expected!r}")
    print(f"{len(CASES)} strings equal")


if __name__ == "__main__":
    main()
