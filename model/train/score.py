"""Judges an answer to a held-out question: score(item, text, reasoning, tool_calls) -> bool.

`tool_calls` is a list of {"name", "arguments"} (arguments an object or its JSON text). Python's standard library only.
Every question also demands what its mode demands: calls where calls are asked and none elsewhere, and reasoning exactly when thinking
is switched on.
"""
import json
import re


def fold(text, check):
    return text.lower() if check.get("fold") else text


def json_in(text):
    """The JSON value that the text holds, alone or in a code fence; None if there is none."""
    text = text.strip()
    fenced = re.fullmatch(r"```(?:json)?\n(.*?)\n?```", text, re.S)
    try:
        return json.loads(fenced.group(1) if fenced else text)
    except ValueError:
        return None


def same_number(text, value):
    found = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", " "))
    return bool(found) and float(found[-1]) == float(value)


def plain_calls(tool_calls):
    out = []
    for call in tool_calls or []:
        call = call.get("function", call)
        arguments = call["arguments"]
        out.append((call["name"], json.loads(arguments) if isinstance(arguments, str) else arguments))
    return out


def calls_right(check, tool_calls):
    wanted = check.get("calls") or [{"name": check["name"], "arguments": check["arguments"]}]
    return plain_calls(tool_calls) == [(c["name"], c["arguments"]) for c in wanted]


def text_right(check, text):
    kind, text = check["type"], text.strip()
    if kind == "exact":
        return fold(text, check) == fold(check["value"], check)
    if kind == "contains":
        return len(text) >= check.get("least", 0) and all(fold(v, check) in fold(text, check) for v in check["values"])
    if kind == "regex":
        return re.search(check["pattern"], text, re.S if check.get("dotall") else 0) is not None
    if kind == "number":
        return same_number(text, check["value"])
    if kind == "json_equal":
        return json_in(text) == check["value"]
    raise ValueError(f"unknown check {kind!r}")


def score(item, text, reasoning="", tool_calls=None):
    thinking = item.get("chat_template_kwargs", {}).get("enable_thinking", False)
    if bool(reasoning) != thinking:
        return False
    if item["check"]["type"] == "tool_call":
        return calls_right(item["check"], tool_calls)
    return not tool_calls and text_right(item["check"], text or "")
