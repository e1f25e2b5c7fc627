"""Builds the demo model's tokenizer: Gemma 4's file format and special tokens, a small vocabulary.

Reads   texts from the task generator (generate.py), a fixed seed.
Writes  ../demo/tokenizer.json and ../demo/tokenizer_config.json.
Fails   if a special token does not get its id or an encoding does not round-trip.

Layout of the ids: 0-106 as in Gemma 4 where it has a meaning, unused names between; 107.. newline runs, runs of spaces, 256 bytes,
the printable characters, merged pieces; the media tokens last.
"""
import collections
import json
import pathlib
import re
import sys

DEMO = pathlib.Path(__file__).resolve().parent.parent / "demo"
VOCAB_SIZE = 2048
SPACE = "\u2581"
NEWLINE_RUN_MAX = 31
SPACE_RUN_MAX = 31
NAMED = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 46: "<|tool>", 47: "<tool|>", 48: "<|tool_call>",
         49: "<tool_call|>", 50: "<|tool_response>", 51: "<tool_response|>", 52: '<|"|>', 98: "<|think|>",
         100: "<|channel>", 101: "<channel|>", 105: "<|turn>", 106: "<turn|>"}
MEDIA = ["<|image>", "<|audio>", "<|image|>", "<|audio|>", "<image|>", "<audio|>", "<|video|>"]
FIRST_NEWLINE = 107
TYPES = ("STRING", "INTEGER", "NUMBER", "BOOLEAN", "OBJECT", "ARRAY")
RARE = 4                    # a word seen less often than this teaches no merge
EXTRA_CHARACTERS = "äöüßéèàçñ°€–—’“”…×÷•"


def special(token_id, content):
    return {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True}


def literal(token_id, content):
    return {**special(token_id, content), "special": False}


def learn_merges(counts, base, room):
    """Byte-pair merges over a word count, most frequent pair first (ties: smaller pair). Returns merges and new pieces."""
    words = [[list(word), n] for word, n in counts.items()]
    merges, pieces = [], []
    have = set(base)
    while len(pieces) < room:
        pairs = collections.Counter()
        for symbols, n in words:
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += n
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        joined = best[0] + best[1]
        merges.append(best)
        if joined not in have:
            have.add(joined)
            pieces.append(joined)
        for entry in words:
            symbols = entry[0]
            if best[0] not in symbols:
                continue
            out, i = [], 0
            while i < len(symbols):
                if i + 1 < len(symbols) and (symbols[i], symbols[i + 1]) == best:
                    out.append(joined)
                    i += 2
                else:
                    out.append(symbols[i])
                    i += 1
            entry[0] = out
    return merges, pieces


def word_counts(texts):
    """Words with their leading space. Digits and punctuation stand alone, and so do the letters of words in capitals (but for the names of
    the types): no merge ever holds them."""
    counts = collections.Counter()
    for text in texts:
        for word in re.findall(r" ?[A-Za-z]+", text):
            if len(word.strip()) == 1 or not word.strip().isupper() or word in TYPES:
                counts[word.replace(" ", SPACE)] += 1
    return {word: n for word, n in counts.items() if n >= RARE}


def build(texts):
    """The whole tokenizer.json as a dictionary."""
    vocab, added = {}, []
    for i in range(FIRST_NEWLINE):
        name = NAMED.get(i, f"<unused{i}>")
        vocab[name] = i
        added.append(special(i, name))
    for n in range(1, NEWLINE_RUN_MAX + 1):
        added.append(literal(len(vocab), "\n" * n))
        vocab["\n" * n] = len(vocab)
    merges = []
    for n in range(2, SPACE_RUN_MAX + 1):
        added.append(literal(len(vocab), SPACE * n))
        vocab[SPACE * n] = len(vocab)
        merges += [(SPACE * a, SPACE * (n - a)) for a in range(n - 1, 0, -1)]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for c in [SPACE] + [chr(c) for c in range(33, 127)] + list(EXTRA_CHARACTERS):
        vocab[c] = len(vocab)
    room = VOCAB_SIZE - len(vocab) - len(MEDIA)
    word_merges, pieces = learn_merges(word_counts(texts), vocab, room)
    if len(pieces) != room:
        sys.exit(f"the texts hold only {len(pieces)} of {room} pieces")
    for piece in pieces:
        vocab[piece] = len(vocab)
    for name in MEDIA:
        added.append(special(len(vocab), name))
        vocab[name] = len(vocab)
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                                                     {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": vocab, "merges": [list(m) for m in merges + word_merges]}}


CONFIG = {
    "tokenizer_class": "GemmaTokenizer", "model_max_length": 8192, "clean_up_tokenization_spaces": False, "padding_side": "left",
    "pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>", "mask_token": "<mask>",
    "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
    "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
    "sot_token": "<|turn>", "eot_token": "<turn|>", "soc_token": "<|channel>", "eoc_token": "<channel|>", "think_token": "<|think|>",
    "std_token": "<|tool>", "etd_token": "<tool|>", "stc_token": "<|tool_call>", "etc_token": "<tool_call|>",
    "str_token": "<|tool_response>", "etr_token": "<tool_response|>", "escape_token": '<|"|>'}

ROUND_TRIPS = ["Hello, world!", "a  b   c\n\n\nd", "tabs\tand 12345", "Grüße, 東京 😀", "{\"x\": [1, 2]}", "<|turn>user\nHi<turn|>\n", " lead", "trail "]


def check(path):
    import tokenizers
    tok = tokenizers.Tokenizer.from_file(str(path))
    for i, name in NAMED.items():
        assert tok.encode(name).ids == [i], name
    for text in ROUND_TRIPS:
        ids = tok.encode(text).ids
        assert tok.decode(ids, skip_special_tokens=False) == text, (text, tok.encode(text).tokens)
    assert tok.encode("2026").tokens == list("2026")
    assert tok.get_vocab_size() == VOCAB_SIZE
    return tok


def main():
    import generate
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20000
    table = build(generate.texts(seed=1, count=count))
    (DEMO / "tokenizer.json").write_text(json.dumps(table, ensure_ascii=False, indent=1) + "\n")
    (DEMO / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    tok = check(DEMO / "tokenizer.json")
    print(VOCAB_SIZE, "tokens;", tok.encode("Please spell the word yesterday and count from 1 to 60.").tokens)


if __name__ == "__main__":
    main()
