#!/usr/bin/env python3
"""Makes tests/golden/jinja/*.json: what Python's jinja2, set up as transformers sets it up for chat
templates, gives for a corpus of snippets and for whole templates with conversations.

    .venv/bin/python tests/oracle/make_jinja_golden.py          (jinja2 3.1; from the repository root)

snippets.json   [{"template", "variables", "text"} or {..., "error", "kind"}]
chats.json      [{"template": file, "request": {...}, "text"} or {..., "error", "kind"}]
kind "exact": the message is the template author's or names an undefined value; it must be the same in C.
kind "any": an error of another wording is fine.
"""
import copy
import datetime
import json
import pathlib
import re
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from jinja_conversations import CHATS  # noqa: E402
from jinja_snippets import SNIPPETS    # noqa: E402

HERE = pathlib.Path("tests/golden/jinja")
NOW = datetime.datetime(2025, 1, 1, 12, 0, 0)
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>"}


class Generation(jinja2.ext.Extension):
    """{% generation %} prints its body, as without return_assistant_tokens_mask."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: NOW.strftime(f)
    return env


ENV = environment()


def render(source, variables):
    """-> {"text"} or {"error", "kind"}; None when the output depends on addresses."""
    try:
        text = ENV.from_string(source).render(**copy.deepcopy(variables))
    except Exception as e:  # every failure is data here
        exact = type(e) in (jinja2.exceptions.TemplateError, jinja2.exceptions.UndefinedError, jinja2.exceptions.SecurityError)
        return {"error": str(e), "kind": "exact" if exact else "any"}
    if re.search(r" at 0x[0-9a-f]+>|<Macro '|<class '|<LoopContext", text):
        return {"error": "prints an address", "kind": "any"}
    return {"text": text}


def snippets():
    out = []
    for source, variables in SNIPPETS:
        result = render(source, dict(variables, **TOKENS))
        out.append({"template": source, "variables": variables, **result})
    return out


def chats():
    out = []
    for file, request in CHATS:
        path = pathlib.Path(file) if "/" in file else HERE / "templates" / file
        source = path.read_text()
        variables = {"messages": request["messages"], "tools": request.get("tools"), "documents": request.get("documents"),
                     "add_generation_prompt": request.get("add_generation_prompt", False), **TOKENS, **request.get("template_kwargs", {})}
        out.append({"template": str(path), "request": request, **render(source, variables)})
    return out


def write(name, cases):
    with open(HERE / name, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases) + "\n]\n")
    print(name, len(cases), "cases,", sum("error" in c for c in cases), "errors")


if __name__ == "__main__":
    write("snippets.json", snippets())
    write("chats.json", chats())
