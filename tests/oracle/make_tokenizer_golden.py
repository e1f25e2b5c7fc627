#!/usr/bin/env python3
"""Makes tests/golden/tokenizer/: tokenizer files with Gemma's structure, and what the reference library
(`tokenizers`) says about a corpus with each of them.

    python3 tests/oracle/make_tokenizer_golden.py          writes the golden files
    python3 tests/oracle/make_tokenizer_golden.py --words  writes model/tokenizer_word.c (the table of \\w)

Also tests/golden/output/cases.json: sequences of tokens of gemma.json made from known answers, reasoning and tool calls,
with what model/output.h must make of them again.

Files: gemma.json (about 3000 entries, trained here on text made here), flags.json (every flag an added token
can have, merges as strings), CASES_<name>.json for each and for model/demo/tokenizer.json. Texts and decoded
texts are hexadecimal: they need not be UTF-8. `trusted` is "all" (what the reference does) or a list of byte ranges;
outside of them special tokens are plain text, which here is the same tokenizer without its special tokens.
"""
import json
import os
import random
import re
import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OUT = os.path.join(ROOT, "tests", "golden", "tokenizer")
U = "\u2581"


# ---- text to train on and to test with ----

WORDS = ("the model reads a token and writes the next one while every stage shares memory with its neighbours "
         "time space river mountain answer question colour number seven eleven twenty hundred simple pipeline server "
         "stream request launcher keeper gateway verify draft prefill detokenize number of words in this small text "
         "international responsibility understanding information development government environment").split()
SCRIPTS = ["Привет, как дела? Сегодня хорошая погода.", "你好，世界！今天天气很好。我们一起学习编程。", "こんにちは、世界。日本語のテキストです。",
           "مرحبا بالعالم، كيف حالك اليوم؟", "שלום עולם, מה שלומך?", "नमस्ते दुनिया, आप कैसे हैं?", "안녕하세요 세계, 오늘 날씨가 좋네요.",
           "Grüße aus München, schön daß du da bist. Ça va très bien, merci. ¿Cómo estás? Năm mới vui vẻ.", "Γειά σου Κόσμε"]
CODE = ["def add(a, b):\n    return a + b\n\n\nclass Point:\n    def __init__(self, x=0):\n        self.x = x\n",
        "int main(void)\n{\n\tfor (int i = 0; i < 10; i++) {\n\t\tprintf(\"%d\\n\", i);\n\t}\n\treturn 0;\n}\n",
        "<html><body><h1>Title</h1><p>Some <b>bold</b> &amp; <i>text</i></p><br><table><tr><td>1</td></tr></table></body></html>",
        "SELECT name, count(*) FROM users WHERE id >= 42 GROUP BY name;\r\n", "{\"key\": [1, 2.5, -3e10, null, true], \"a\\\"b\": {}}"]
TAGS = ["table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "strong",
        "em", "b", "i", "u", "s", "sub", "sup", "code"]
TRICKY = ["", " ", "  ", "\n", "\t", "a", " a", "a ", "\r\n", "\x00", "a\x00b", "\x7f", "\ufeff", "\u200b", "\u00a0", "\u3000",
          U, U + U, "a" + U + "b", " " + U + " ", U * 5 + " " * 5, "<0x41>", "<0x0A><0xff>", "x<0xE4>y", "é", "e\u0301", "\U0010ffff",
          "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f3f3\ufe0f\u200d\U0001f308",
          "\U0001f44d\U0001f3fd ok", "1234567890", "3.14159", "a" * 100, "ab" * 300, "the" * 50, "<", "<|", "<|t", "<|turn", "<turn|",
          "<<|turn>>", "<|turn><|turn", "<|turn>\n", "\n<turn|>", "<b", "<b><b", "</b></b>", "<b ><i>", "a<b>c</b>d",
          "\u0130I\u0131i", "ﬁ", "Å\u212b", "\u1100\u1161\u11a8", "😀" * 20, "日" * 50, "\u202eabc", "\ufffd", "don't  stop"]
INVALID = [b"\xff", b"\xc3", b"a\xc3b", b"\xe4\xbd", b"\xe4\xbd\xa0\xe4\xbd", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xf0\x9f\x98\xff", b"\xc0\x80",
           b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"ok \x80\x81 ok", b"\xe2\x96\x81\xe2\x96", b"\xf1\x80\xc2\xa9", b"\xe0\x80\x80", b" \xfe "]


def paragraph(rng, words=60):
    out = []
    for _ in range(words):
        word = rng.choice(WORDS)
        out.append(word.capitalize() if rng.random() < 0.1 else word)
        if rng.random() < 0.1:
            out[-1] += rng.choice([",", ".", "!", "?", ";", ":"])
    return " ".join(out)


def lcg_text(count, alphabet, seed):
    """Text that the C test makes too: one character per step of a linear congruential generator."""
    out, state = [], seed
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(alphabet[(state >> 33) % len(alphabet)])
    return "".join(out)


def corpus(rng, specials):
    texts = [t.encode() for t in TRICKY + SCRIPTS + CODE] + INVALID
    for n in range(1, 41):
        texts += [(" " * n).encode(), ("\n" * n).encode(), ("\t" * n).encode(), ("x" + " " * n + "y" + "\n" * n + "z").encode()]
    texts += ["\n \n  \n".encode(), b"\r\n\r\n", b" \t \t\n\n\t "]
    for s in specials:
        texts += [("user" + s + "text").encode(), (" " + s + "\n" + s + s).encode(), (s[:-1] + " " + s[1:]).encode()]
    for _ in range(40):
        texts.append(paragraph(rng).encode())
        texts.append("".join(rng.choice(rng.choice([SCRIPTS, CODE, WORDS, TRICKY])) for _ in range(8)).encode())
        texts.append(bytes(rng.choice(b" <|>turn\n\t\xe2\x96\x81ab\xf0\x9f\x98\x80\xc3\xa9") for _ in range(60)))
    texts.append(("".join(chr(c) for c in range(0x20, 0x3000, 7) if not 0xD800 <= c < 0xE000)).encode())
    return texts


# ---- tokenizer files ----

def shell(added, vocab, merges):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": U},
            "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
            "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
                               "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                               "special_tokens": {}},
            "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": U}, "content": " "},
                                                         {"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                      "vocab": vocab, "merges": merges}}


def added_token(i, content, special, **flags):
    return {"id": i, "content": content, "single_word": flags.get("single_word", False), "lstrip": flags.get("lstrip", False),
            "rstrip": flags.get("rstrip", False), "normalized": flags.get("normalized", False), "special": special}


def run_merges(unit, longest):
    """All ways to make a run of `unit` of two shorter runs, short ones first: as the published files have them."""
    return [[unit * a, unit * (n - a)] for n in range(2, longest + 1) for a in sorted(range(1, n), key=lambda a: abs(n - 2 * a))]


def make_gemma():
    rng = random.Random(7)
    text = [paragraph(rng) for _ in range(300)] + SCRIPTS * 6 + CODE * 6 + ["😀 👍 🎉 ok"] * 5
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", U)
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(U, "merged_with_next"), pre_tokenizers.Split("\n", "isolated")])
    learner.train_from_iterator(text, trainers.BpeTrainer(vocab_size=2450, show_progress=False, min_frequency=1))
    learned = json.loads(learner.to_str())["model"]
    names = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 46: "<|tool>", 47: "<tool|>", 48: "<|tool_call>", 49: "<tool_call|>",
             50: "<|tool_response>", 51: "<tool_response|>", 52: "<|\"|>", 98: "<|think|>", 100: "<|channel>", 101: "<channel|>",
             105: "<|turn>", 106: "<turn|>"}
    tokens = [names.get(i, f"<unused{i}>") for i in range(107)]
    special = len(tokens)
    tokens += ["\n" * n for n in range(1, 32)] + [U * n for n in range(2, 32)] + [f"<{t}>" for t in TAGS] + [f"</{t}>" for t in TAGS]
    plain = len(tokens)
    tokens += [f"<0x{b:02X}>" for b in range(256)]
    have = set(tokens)
    tokens += [t for t, _ in sorted(learned["vocab"].items(), key=lambda kv: kv[1]) if t not in have]
    tail = ["<|image>", "<|audio>", "<|image|>", "<|audio|>", "<image|>", "<audio|>", "<|video|>"]
    tokens += tail
    vocab = {t: i for i, t in enumerate(tokens)}
    merges = run_merges("\n", 31)[:120] + run_merges(U, 31) + [m if isinstance(m, list) else m.split(" ") for m in learned["merges"]]
    merges = [m for m in merges if m[0] in vocab and m[1] in vocab and m[0] + m[1] in vocab]
    added = [added_token(i, t, i < special) for i, t in enumerate(tokens[:plain])] + [added_token(vocab[t], t, True) for t in tail]
    return shell(added, vocab, merges)


def make_flags():
    """Few tokens, every flag, and what published files do not have but the format allows."""
    letters = list("abcdefghijklmnopqrstuvwxyz.,!") + [U, "\n", "é", "日", "本"]
    merged = ["ab", "abc", "bc", "cd", "abcd", U + "a", U + "ab", "the", "th", "he", "日本", U + U, "aa", "aaa", "aaaa", "<0xF0><0x9F>"]
    tokens = ["<pad>", "<unk>"] + [f"<0x{b:02X}>" for b in range(256)] + letters + merged + ["<s>", "[L]", "[R]"]
    vocab = {t: i for i, t in enumerate(tokens)}
    merges = ["b c", "a b", "ab c", "a bc", "c d", "ab cd", "abc d", f"{U} a", f"{U}a b", f"{U} ab", "t h", "h e", "th e", "t he", "日 本",
              f"{U} {U}", "a a", "aa aa", "aa a", "aaa a", "<0xF0> <0x9F>"]
    n = len(tokens)
    added = [added_token(0, "<pad>", True), added_token(1, "<unk>", True), added_token(vocab["<s>"], "<s>", True),
             added_token(vocab["[L]"], "[L]", True, lstrip=True), added_token(vocab["[R]"], "[R]", False, rstrip=True),
             added_token(n, "[B]", True, lstrip=True, rstrip=True), added_token(n + 1, "word", False, single_word=True),
             added_token(n + 2, "a b", False, normalized=True), added_token(n + 3, U + "x" + U, False, normalized=True),
             added_token(n + 4, "abc[", False), added_token(n + 5, "[", False), added_token(n + 6, "\n\n", False),
             added_token(n + 7, "N L", False, normalized=True, lstrip=True, rstrip=True),
             added_token(n + 8, "nw", True, normalized=True, single_word=True), added_token(n + 9, "☃", False, single_word=True),
             added_token(n + 10, "<s><s>", True)]
    return shell(added, vocab, merges)


FLAG_TEXTS = ["x  [L]  y", "x  [R]  y", "x \n [B]\t\u00a0\u3000 y", "[L][R][B]", " [L] [L] ", "[R] \n\n [R]  ", "[R]\n\n\n\n\nx", "word", "a word.", "words",
              "sword word-word wordé éword 日word word日 _word word_ word1", "word word", "a b", "xa b", "a  b", f"a{U}b", "x x x", " x ", f"{U}x{U}",
              "  x  x  ", "N L", " \n N L \n N L", "\tN L\t", "nw", "nw nwx xnw", "abc[L]", "abc[", "[[L]]", "abc[R]  abc[ abcd", "<s><s><s>", "<s> <s>",
              "☃", "a☃", "☃ ☃", "🌍🌎", "ðŸ", "aaaaaaaaaaa", "abcdabcdabcd", "the the theabc", "日本日日本", "\n\n\n\n", "x\n\n[L]", "[L", "[B] [B]", "nw[B]nw",
              "a b[L]a b", " a b ", "[R] a b", "abcd  abcd"]


# ---- what the reference says ----

class Oracle:
    def __init__(self, spec):
        self.spec = spec
        self.whole = Tokenizer.from_str(json.dumps(spec))
        self.specials = {a["content"]: a["id"] for a in spec["added_tokens"] if a["special"]}
        plain = dict(spec, added_tokens=[a for a in spec["added_tokens"] if not a["special"]])
        self.plain = Tokenizer.from_str(json.dumps(plain))
        for a in plain["added_tokens"]:
            assert self.plain.token_to_id(a["content"]) == a["id"] or a["id"] >= len(spec["model"]["vocab"])
        self.find = re.compile(b"|".join(re.escape(s.encode()) for s in sorted(self.specials, key=len, reverse=True)))

    def encode(self, data, trusted):
        if trusted == "all":
            return self.whole.encode(data.decode("utf-8", "replace"), add_special_tokens=False).ids
        ids, at, done = [], 0, 0
        joined = []
        for begin, end in trusted:
            if joined and joined[-1][1] == begin:
                joined[-1][1] = end
            else:
                joined.append([begin, end])
        while at < len(data):
            match = None
            for begin, end in joined:
                if begin <= at < end:
                    match = self.find.match(data, at, end)
            if not match:
                at += 1
                continue
            ids += self.plain_ids(data[done:at]) + [self.specials[match.group().decode()]]
            at = done = match.end()
        return ids + self.plain_ids(data[done:])

    def plain_ids(self, data):
        return self.plain.encode(data.decode("utf-8", "replace"), add_special_tokens=False).ids

    def decode(self, ids, skip):
        """The reference, except where a run of byte tokens mixes good characters and bad bytes (see model/detok.h)."""
        out, run, exact = b"", b"", True

        def end_run():
            nonlocal exact
            text = b""
            rest = run
            good = bad = False
            while rest:
                for n in range(1, 5):
                    try:
                        rest[:n].decode()
                        text, rest, good = text + rest[:n], rest[n:], True
                        break
                    except UnicodeDecodeError:
                        pass
                else:
                    text, rest, bad = text + "\ufffd".encode(), rest[1:], True
            exact = exact and not (good and bad)
            return text

        for i in ids:
            token = self.whole.id_to_token(i)
            if skip and token in self.specials:
                continue
            if re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
                run += bytes([int(token[3:5], 16)])
                continue
            out += end_run() + token.replace(U, " ").encode()
            run = b""
        out += end_run()
        if exact:
            assert out == self.whole.decode(ids, skip_special_tokens=skip).encode(), ids
        return out


def chat_pieces(rng, specials):
    """(text, trusted ranges): a template's control tokens around what a user typed, who tries control tokens too."""
    data, trusted = b"", []
    for _ in range(rng.randint(1, 5)):
        begin = len(data)
        data += rng.choice(["<|turn>user\n", "<|turn>model\n", "<|channel>thought\n<channel|>", "<bos><|turn>system\n", "<|tool_response>", "\n\n"]).encode()
        trusted.append([begin, len(data)])
        for _ in range(rng.randint(0, 4)):
            data += rng.choice([s.encode() for s in specials] + [b"\n", b"  ", b"hello", "日本".encode(), b"\xff", b"\xe2\x96", b"<|turn", b">", b"\n\n"])
        begin = len(data)
        data += rng.choice(["<turn|>\n", "<tool_response|>", "\n", "<|\"|>"]).encode()
        trusted.append([begin, len(data)])
    return data, trusted


def cases(oracle, texts, seed, mixed):
    rng = random.Random(seed)
    encode, decode = [], []
    for data in texts:
        encode.append({"text": data.hex(), "trusted": "all", "ids": oracle.encode(data, "all")})
        if mixed:
            encode.append({"text": data.hex(), "trusted": [], "ids": oracle.encode(data, [])})
    if mixed:
        specials = list(oracle.specials)
        for _ in range(150):
            data, trusted = chat_pieces(rng, specials)
            encode.append({"text": data.hex(), "trusted": trusted, "ids": oracle.encode(data, trusted)})
        for cut in range(1, 8):  # a special token only half of which is trusted
            data = b"a<|turn>b"
            for trusted in ([[0, cut]], [[cut, 9]], [[0, cut], [cut, 9]], [[1, 8]], [[2, 8]], [[1, 7]]):
                encode.append({"text": data.hex(), "trusted": trusted, "ids": oracle.encode(data, trusted)})
    count = oracle.whole.get_vocab_size()
    known = [i for i in range(count) if oracle.whole.id_to_token(i) is not None]
    byte_ids = [oracle.whole.token_to_id(f"<0x{b:02X}>") for b in range(256)]
    lists = [e["ids"] for e in encode[:: max(1, len(encode) // 150)]]
    for n in range(120):
        lists.append([rng.choice(known if rng.random() < 0.6 else byte_ids) for _ in range(rng.randint(1, 12))])
        lists.append([byte_ids[b] for b in "é日😀a".encode()[: rng.randint(1, 10)]] + [rng.choice(known)])
        lists.append([rng.choice(byte_ids[0x80:]) for _ in range(rng.randint(1, 6))])
    for ids in lists:
        decode.append({"ids": ids, "all": oracle.decode(ids, False).hex(), "skip": oracle.decode(ids, True).hex()})
    return encode, decode


def fnv(ids):
    value = 0xCBF29CE484222325
    for i in ids:
        value = ((value ^ i) * 0x100000001B3) % 2**64
    return f"{value:016x}"


def long_texts(oracle):
    """Texts too long to store: the test makes them too and compares count and hash of the ids."""
    out = []
    for count, alphabet, seed in ((1 << 20, "etaoin shrdlu mfwyp,.", 1), (1 << 18, "a", 2), (1 << 18, "ab", 3), (1 << 16, " ", 4),
                                  (1 << 16, "\n", 5), (100000, "日本é😀 a", 6), (100000, "abcd", 7), (1 << 16, "the ", 8)):
        ids = oracle.whole.encode(lcg_text(count, alphabet, seed), add_special_tokens=False).ids
        out.append({"count": count, "alphabet": alphabet, "seed": seed, "ids_count": len(ids), "ids_fnv": fnv(ids)})
    return out


def write(name, oracle, texts, mixed, source):
    encode, decode = cases(oracle, texts, 11, mixed)
    golden = {"source_fnv": fnv(source), "long": long_texts(oracle)}
    lines = [json.dumps(golden)[:-1] + ', "encode": [']
    lines += [json.dumps(e, separators=(",", ":")) + ("," if i + 1 < len(encode) else "") for i, e in enumerate(encode)]
    lines += ['], "decode": [']
    lines += [json.dumps(d, separators=(",", ":")) + ("," if i + 1 < len(decode) else "") for i, d in enumerate(decode)]
    with open(os.path.join(OUT, f"cases_{name}.json"), "w") as f:
        f.write("\n".join(lines) + "\n]}\n")
    print(name, len(encode), "encode cases,", len(decode), "decode cases")


# ---- sequences for the output parser ----

def notation(value, rng, oracle):
    """A value as the model writes it: a list of texts and, for the string quote, the number of its token."""
    space = lambda: [rng.choice(["", "", "", " ", "\n", " \n  "])]
    quote = oracle.specials['<|"|>']
    if isinstance(value, str):
        return [quote, value, quote]
    if isinstance(value, bool) or value is None:
        return [json.dumps(value) if value is not None else rng.choice(["null", "None", "nil", "none"])] + space()
    if isinstance(value, (int, float)):
        return [json.dumps(value)] + space()
    out, first = ["{" if isinstance(value, dict) else "["], True
    for item in value:
        out += ([] if first else [","]) + space()
        first = False
        if isinstance(value, dict):
            out += ([quote, item, quote] if rng.random() < 0.2 or not re.fullmatch("[A-Za-z_][A-Za-z_0-9 -]*[a-z]", item) else [item]) + [":"] + space()
            out += notation(value[item], rng, oracle)
        else:
            out += notation(item, rng, oracle)
    return out + space() + ["}" if isinstance(value, dict) else "]"]


TYPED = ["Hello", " world", "\n", "  ", "日本語", "😀", "é", "{", "}", "[", ",", ":", "\"", "\\", "\t", "\x01", "<|\"|>", "<|channel>thought\n", "<tool_call|>",
         "call:f{}", "STOP", "END", "ST", "the end.", "<turn|>", "<0x41>", "\u2028", "/* x */", "1.5", "null"]


def random_value(rng, depth=0):
    kind = rng.random()
    if kind < 0.35 or depth > 4:
        return "".join(rng.choice(TYPED) for _ in range(rng.randint(0, 5)))
    if kind < 0.5:
        return rng.choice([0, 1, -1, 42, 10**15, -7, 3.5, -0.25, 108.2, 1.5e-05 * 10**5])
    if kind < 0.6:
        return rng.choice([True, False, None])
    if kind < 0.8:
        return [random_value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return random_object(rng, depth + 1)


def random_object(rng, depth=0):
    return {rng.choice(["city", "unit", "x", "max count", "q-1", "日本", "a:b", "", "{", "very_long_name_" + "n" * 60]) + rng.choice(["", "a", "b"]):
            random_value(rng, depth) for _ in range(rng.randint(0, 4))}


def pieces_to_ids(pieces, rng, oracle):
    ids = []
    for piece in pieces:
        if isinstance(piece, int):
            ids.append(piece)
        elif rng.random() < 0.6:
            ids += oracle.plain_ids(piece.encode())
        elif rng.random() < 0.7:
            for c in piece:
                ids += oracle.plain_ids(c.encode())
        else:
            ids += [oracle.whole.token_to_id(f"<0x{b:02X}>") for b in piece.encode()]
    return ids


def cut_at_stop(items, stops):
    """The items with the first stop string found in a stretch of text: the one that ends first, of those the longest."""
    for at, item in enumerate(items):
        if item[0] != "text":
            continue
        found = min(((item[1].find(s) + len(s), -len(s), s) for s in stops if s in item[1]), default=None)
        if found:
            before = item[1][:found[0] + found[1]]
            return items[:at] + ([["text", before]] if before else []) + [["stop", found[2]]]
    return items


def output_case(rng, oracle):
    sp = oracle.specials
    pieces, items, prompt = [], [], rng.choice([[], [sp["<|turn>"]] + oracle.plain_ids(b"model\n")])
    in_channel = rng.random() < 0.3
    if in_channel:
        prompt = prompt + [sp["<|channel>"]] + oracle.plain_ids(b"thought\n")
    elif rng.random() < 0.2:
        prompt = prompt + [sp["<|channel>"]] + oracle.plain_ids(b"thought\n") + [sp["<channel|>"]]

    def add(kind, text):
        if items and items[-1][0] == kind:
            items[-1][1] += text
        elif text:
            items.append([kind, text])

    for _ in range(rng.randint(1, 6)):
        kind = "reasoning" if in_channel else rng.choice(["text", "text", "reasoning", "tool", "tool", "special"])
        text = "".join(rng.choice(TYPED) for _ in range(rng.randint(0, 8)))
        if kind == "text":
            pieces.append(text)
            add("text", text)
        elif kind == "special":
            pieces.append(rng.choice([sp["<|turn>"], sp["<|image>"], sp["<unused7>"], sp["<channel|>"], sp["<tool_call|>"], sp['<|"|>']]))
        elif kind == "reasoning":
            items.append(["break"])  # a stretch of text ends here even if no reasoning comes
            pieces += ([] if in_channel else [sp["<|channel>"], "thought\n"]) + [text]
            add("reasoning", text)
            items.append(["break"])
            if rng.random() < 0.8:
                pieces.append(sp["<channel|>"])
                in_channel = False
            else:
                in_channel = True
        if kind == "tool" or (kind == "reasoning" and in_channel):
            value = random_object(rng)
            name = rng.choice(["get_weather", "a.b-c", "f", "N" * 128])
            pieces += [sp["<|tool_call>"], "call:" + name] + notation(value, rng, oracle) + [rng.choice(["", "\n"]), sp["<tool_call|>"]]
            items.append(["tool", name, json.dumps(value)])
            in_channel = False
    stops = rng.sample(["STOP", "END", "the end.", "S", "TOPEND", "日本語é", "\n\n", "}{", "STSTOP", "ENDEND", "nothing like it"], rng.randint(0, 5))
    ids = pieces_to_ids(pieces, rng, oracle)
    merged = []
    for item in cut_at_stop(items, stops):
        if merged and item[0] in ("text", "reasoning") and merged[-1][0] == item[0]:
            merged[-1] = [item[0], merged[-1][1] + item[1]]
        elif item[0] != "break":
            merged.append(item)
    return {"prompt": prompt, "ids": ids, "stops": stops, "items": merged}


def write_output(oracle, source):
    rng = random.Random(5)
    cases_made = [output_case(rng, oracle) for _ in range(400)]
    path = os.path.join(ROOT, "tests", "golden", "output")
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "cases.json"), "w") as f:
        f.write(json.dumps({"source_fnv": fnv(source)})[:-1] + ', "cases": [\n')
        f.write(",\n".join(json.dumps(c, separators=(",", ":")) for c in cases_made) + "\n]}\n")
    print("output", len(cases_made), "cases")


WORD_HEAD = '''/* model/tokenizer_word.c - which characters belong to a word.
 *
 * The regular expression \\w as the reference's tokenizer understands it (Unicode: letters,
 * marks, decimal digits, connector punctuation, joiners), needed for added tokens with
 * single_word. The table is made by tests/oracle/make_tokenizer_golden.py --words, which asks
 * the reference about every character; do not edit it by hand. */
#include "model/tokenizer_internal.h"

static const struct {
    uint32_t first, last;
} word[] = {
'''
WORD_TAIL = '''};

bool tokenizer_is_word(uint32_t scalar)
{
    uint32_t low = 0, high = sizeof word / sizeof *word;

    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (scalar > word[middle].last)       low = middle + 1;
        else if (scalar < word[middle].first) high = middle;
        else                                  return true;
    }
    return false;
}
'''


def make_words():
    """Asks the reference: does an added token with single_word match right behind this character?"""
    tokenizer = Tokenizer(models.BPE(vocab={"\x01": 0}, merges=[]))
    tokenizer.add_tokens([AddedToken("XY", single_word=True, normalized=False)])
    ranges, line, lines = [], "   ", []
    every = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for i in range(0, len(every), 50000):
        part = every[i:i + 50000]
        for c, e in zip(part, tokenizer.encode_batch([chr(c) + "XY" for c in part])):
            if c == 1 or e.ids:
                continue
            if ranges and ranges[-1][1] == c - 1:
                ranges[-1][1] = c
            else:
                ranges.append([c, c])
    for first, last in ranges:
        item = f" {{0x{first:X}, 0x{last:X}}},"
        if len(line) + len(item) > 118:
            lines.append(line)
            line = "   "
        line += item
    with open(os.path.join(ROOT, "model", "tokenizer_word.c"), "w") as f:
        f.write(WORD_HEAD + "\n".join(lines + [line]) + "\n" + WORD_TAIL)


def main():
    if "--words" in sys.argv:
        make_words()
        return
    os.makedirs(OUT, exist_ok=True)
    for name, make in (("gemma", make_gemma), ("flags", make_flags)):
        source = json.dumps(make(), ensure_ascii=False, indent=None if name == "gemma" else 1).encode()
        with open(os.path.join(OUT, name + ".json"), "wb") as f:
            f.write(source)
        oracle = Oracle(json.loads(source))
        texts = corpus(random.Random(3), list(oracle.specials)[:5] + ["<|turn>", "<turn|>", "<|channel>", "<|\"|>", "<|image|>"])
        if name == "flags":
            texts = [t.encode() for t in FLAG_TEXTS] + texts
        write(name, oracle, texts, name == "gemma", source)
        if name == "gemma":
            write_output(oracle, source)
    demo = os.path.join(ROOT, "model", "demo", "tokenizer.json")
    if os.path.exists(demo):
        source = open(demo, "rb").read()
        oracle = Oracle(json.loads(source))
        named = [t for t in oracle.specials if not t.startswith("<unused")]
        write("demo", oracle, corpus(random.Random(4), named[::3]), True, source)


if __name__ == "__main__":
    main()
