#!/usr/bin/env python3
"""tests/links.py - do the documents name what is there?

Every relative link of a .md file must lead to a file, and its #anchor to a heading of it (by GitHub's rule).
In the documents that describe the present (not in bench/, whose history names what is gone) a path in backticks that
looks like one of this tree must exist. `build/...` is made, `a/{b,c}` and `a/*` stand for several, a/b.x:12 for a line."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:[a-z0-9_.-]+/)+[A-Za-z0-9_.-]*)`")
TOPS = {"launcher", "stages", "shm", "schemas", "model", "kernels", "tests", "bench", "examples"}


def anchors(path):
    """The anchors of a file's headings: a heading that comes twice is numbered."""
    found, inside = {}, False
    for line in path.read_text(encoding="utf-8").splitlines():
        inside ^= line.startswith("```")
        m = None if inside else re.match(r"#{1,6} +(.*)", line)
        if m:
            text = re.sub(r"[^\w\- ]", "", m[1].strip().lower()).replace(" ", "-")
            found[text] = found.get(text, -1) + 1
    return {text + (f"-{i}" if i else "") for text, last in found.items() for i in range(last + 1)}


def broken(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    here = (ROOT / document).parent
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = here / name if name else ROOT / document
        if not path.exists():
            yield f"{document}: ({target}) leads to no file"
        elif anchor and path.suffix == ".md" and anchor not in anchors(path):
            yield f"{document}: ({target}) leads to no heading"
    if document.startswith("bench/"):
        return
    for name in PATH.findall(text):
        if name.split("/")[0] in TOPS and not (ROOT / name).exists() and not (here / name).exists():
            yield f"{document}: `{name}` is not there"


def main():
    documents = sorted(str(p.relative_to(ROOT)) for p in ROOT.rglob("*.md") if not re.match(r"build|\.", str(p.relative_to(ROOT))))
    faults = [fault for document in documents for fault in broken(document)]
    print("\n".join(faults) if faults else f"{len(documents)} documents: all links lead somewhere")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
