"""Videos that nobody should trust: mutated ones, and ones whose tables, sizes and headers lie.

`hostile(r, corpus)` gives the next file of a random.Random: the same seed, the same files. corpus: the bytes of good ones. Python's standard library only."""
import struct

from hostile_files import mutate

MUTATED_OF_TEN = 5  # the others lie
CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"dinf")
TABLES = (b"mvhd", b"tkhd", b"mdhd", b"hdlr", b"elst", b"stsd", b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"co64", b"stss", b"sgpd", b"sbgp", b"dref", b"ftyp")
WORDS = (0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def boxes(data, at=0, end=None):
    """(kind, offset, bytes) of every box of an MP4 file, those inside others too."""
    end = len(data) if end is None else end
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8 or size > end - at:
            return
        yield kind, at, size
        if kind in CONTAINERS:
            yield from boxes(data, at + 8, at + size)
        at += size


def mp4_lies(r, base):
    """Words of tables and headers become zeros, ones and the largest numbers; a box gets another size or name."""
    out = bytearray(base)
    found = [b for b in boxes(base) if b[0] in TABLES]
    for _ in range(r.choice((1, 1, 2, 5))):
        kind, at, size = r.choice(found)
        how = r.randrange(8)
        if how == 0:
            struct.pack_into(">I", out, at, r.choice(WORDS))
        elif how == 1:
            out[at + 4:at + 8] = r.choice(TABLES + CONTAINERS + (b"free", b"mdat", b"uuid"))
        elif size > 12:
            struct.pack_into(">I", out, at + 8 + 4 * r.randrange((size - 8) // 4), r.choice(WORDS + (r.randrange(1 << 32),)))
    return bytes(out)


def mp4_same_bytes(r, base):
    """A table in which thousands of frames are the same bytes, and millions of others are promised."""
    out = bytearray(base)
    for kind, at, size in boxes(base):
        if kind == b"stsz":
            struct.pack_into(">II", out, at + 12, r.choice((0, 1, 4, 1000, 0x7FFFFFFF)), r.choice((1, 50, 100000, 0xFFFFFFF)))
        elif kind == b"stts" and size >= 24:
            struct.pack_into(">II", out, at + 16, r.choice((1, 100000, 0x7FFFFFFF)), r.choice((0, 1, 512, 0x7FFFFFFF)))
        elif kind == b"stsc" and size >= 28 and r.randrange(2):
            struct.pack_into(">II", out, at + 16, 1, r.choice((1, 100000, 0x7FFFFFFF)))
    return bytes(out)


def mp4_again(r, base):
    """A box again and again, or in another one's place."""
    kind, at, size = r.choice(list(boxes(base)))
    box = base[at:at + size]
    place = r.choice(list(boxes(base)))[1]
    return base[:place] + box * r.choice((1, 2, 300)) + base[place:]


def ebml_lies(r, base):
    """Sizes and numbers of Matroska elements that say anything; elements inside themselves."""
    out = bytearray(base)
    ids = (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75", b"\x2a\xd7\xb1", b"\x44\x89", b"\x63\xa2", b"\xae", b"\xe0", b"\xb0", b"\xba", b"\xa3", b"\xe7", b"\x23\xe3\x83", b"\x55\xb0")
    for _ in range(r.choice((1, 2, 4))):
        name = r.choice(ids)
        at = out.find(name, r.randrange(2) * r.randrange(len(out)))
        if at < 0 or at + len(name) + 12 > len(out):
            continue
        at += len(name) + r.choice((0, 0, 1, 2))
        out[at:at + 4] = r.choice((b"\x01\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\x80\x80\x80", b"\x00\x00\x00\x00", b"\x10\x00\x00\x00", r.randbytes(4)))
    return bytes(out)


def gif_lies(r):
    """Screens and pictures of any size, thousands of frames, codes of any length."""
    side = lambda: r.choice((0, 1, 7, 300, 4096, 4097, 65535))
    small = r.randrange(2)
    width, height = (r.randrange(1, 40), r.randrange(1, 40)) if small else (side(), side())
    out = b"GIF89a" + struct.pack("<HHBBB", width, height, r.choice((0x80, 0xF7, 0, 0x87)), r.randrange(256), 0) + r.randbytes(r.choice((6, 768)))
    control = b"!\xf9\x04" + struct.pack("<BHBB", r.randrange(256), r.choice((0, 1, 10, 65535)), r.randrange(256), 0)
    blocks = b"".join(bytes((n,)) + r.randbytes(n) for n in (r.randrange(1, 60) for _ in range(r.randrange(4)))) + b"\0"
    picture = b"," + struct.pack("<HHHHB", r.choice((0, 0, 5, 65535)), r.choice((0, 0, 5)), width if small else side(), height if small else side(), r.choice((0, 0x40, 0x87))) + bytes((r.choice((2, 8, 1, 12, 255)),)) + blocks
    return out + (control + picture) * r.choice((1, 3, 40, 3000)) + b";"


def parameter_lies(r, base):
    """The decoder's own headers: sizes, reference frames, bit depths (in front of the first key frame, or in avcC, hvcC, vpcC, av1C)."""
    out = bytearray(base)
    places = [at for name in (b"avcC", b"hvcC", b"vpcC", b"av1C", b"esds", b"\x63\xa2") for at in [base.find(name)] if at >= 0]
    at = r.choice(places) + 4 if places else 0
    for _ in range(r.choice((1, 2, 8))):
        place = at + r.randrange(60)
        if place < len(out):
            out[place] = r.choice((0, 0xFF, 0x80, r.randrange(256), out[place] ^ 1 << r.randrange(8)))
    return bytes(out)


def hostile(r, corpus):
    if r.randrange(10) < MUTATED_OF_TEN:
        return mutate(r, r.choice(corpus))
    maker = r.choice((mp4_lies, mp4_lies, mp4_same_bytes, mp4_again, ebml_lies, parameter_lies, gif_lies))
    if maker is gif_lies:
        return gif_lies(r)
    fits = {ebml_lies: lambda d: d[:4] == b"\x1a\x45\xdf\xa3", parameter_lies: lambda d: d[:3] != b"GIF"}.get(maker, lambda d: d[4:8] == b"ftyp")
    return maker(r, r.choice([d for d in corpus if fits(d)]))
