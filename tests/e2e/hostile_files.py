"""Pictures and sounds that nobody should trust: mutated ones, with checksums made right again so that they get past the front door, and
made-up ones that lie about sizes, counts and formats, or ask for as much work as they can in few bytes.

`hostile(r, corpus, i)` gives file number i of a random.Random: the same seed, the same files. Python's standard library only."""
import struct
import zlib

MUTATED_OF_TEN = 8  # the others are made up
FILE_BYTES_MAX = 12 << 20  # what is larger is refused before anybody looks at it


# ---- mutation


def mutate(r, data):
    data = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 4, 16))):
        at = r.randrange(len(data)) if data else 0
        how = r.randrange(6)
        if how == 0 and data:
            data[at] ^= 1 << r.randrange(8)
        elif how == 1 and data:
            data[at] = r.choice((0, 1, 0x7f, 0x80, 0xff, r.randrange(256)))
        elif how == 2:
            data[at:at + r.randrange(1, 64)] = b""
        elif how == 3:
            data[at:at] = r.randbytes(r.randrange(1, 64))
        elif how == 4 and len(data) > 8:
            data[at:at + 4] = r.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\xff\xff", struct.pack("<I", r.randrange(1 << 32))))
        elif how == 5 and data:
            del data[at:]
    return bytes(data) or b"\0"


def repair_png(data):
    """Every chunk's checksum is right again."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        size = struct.unpack_from(">I", out, at)[0]
        if size > len(out) - at - 12:
            break
        struct.pack_into(">I", out, at + 8 + size, zlib.crc32(out[at + 4:at + 8 + size]))
        at += 12 + size
    return bytes(out)


def ogg_table():
    table = []
    for i in range(256):
        v = i << 24
        for _ in range(8):
            v = (v << 1 ^ 0x04C11DB7 if v & 0x80000000 else v << 1) & 0xFFFFFFFF
        table.append(v)
    return table


OGG_TABLE = ogg_table()


def ogg_crc(page):
    v = 0
    for b in page:
        v = (v << 8 & 0xFFFFFFFF) ^ OGG_TABLE[v >> 24 ^ b]
    return v


def repair_ogg(data):
    out, at = bytearray(data), 0
    while at + 27 <= len(out) and out[at:at + 4] == b"OggS":
        table = out[at + 27:at + 27 + out[at + 26]]
        end = at + 27 + len(table) + sum(table)
        if end > len(out):
            break
        out[at + 22:at + 26] = bytes(4)
        struct.pack_into("<I", out, at + 22, ogg_crc(out[at:end]))
        at = end
    return bytes(out)


def repair_riff(data):
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:] if len(data) >= 8 else data


def repair(data):
    if data[:4] == b"\x89PNG":
        return repair_png(data)
    if data[:4] == b"OggS":
        return repair_ogg(data)
    return repair_riff(data) if data[:4] == b"RIFF" else data


# ---- PNG


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, interlace, *chunks):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)) + b"".join(chunks) + chunk(b"IEND", b"")


SIDES = (0, 1, 2, 7, 255, 16383, 16384, 16385, 65535, 0x7FFFFFFF, 0xFFFFFFFF)


def png_lies(r):
    """Any header, and pixels for another one."""
    rows = zlib.compress(r.randbytes(r.choice((0, 1, 100, 5000))))
    return png(r.choice(SIDES), r.choice(SIDES), r.choice((0, 1, 2, 4, 8, 16, 17, 255)), r.randrange(8), r.randrange(3), chunk(b"IDAT", rows))


def png_bomb(r):
    """As many pixels as the limits let through, from a few hundred bytes a megabyte."""
    width, height = r.choice(((16384, 60), (4000, 1000), (60, 16384), (1, 16384), (16384, 2441)))
    return png(width, height, 8, r.choice((0, 2, 6)), r.randrange(2), chunk(b"IDAT", zlib.compress(bytes(r.choice((1, 3, 4)) * width * r.choice((1, 60, 400)) + 1000), 9)))


def png_chunks(r):
    """Chunks that unpack to megabytes, thousands of small ones, palettes and transparency that fit nothing."""
    kind = r.randrange(6)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + r.randbytes(24) for _ in range(8))))
    if kind == 0:
        packed = zlib.compress(bytes(r.choice((1, 9, 64)) << 20), 9)
        more = chunk(*r.choice(((b"zTXt", b"a\0\0" + packed), (b"iTXt", b"a\0\1\0\0\0" + packed), (b"iCCP", b"a\0\0" + packed))))
    elif kind == 1:
        more = chunk(b"tEXt", b"a\0b") * r.randrange(1, 20000)
    elif kind == 2:
        more = chunk(b"IDAT", b"") * r.randrange(1, 5000)
    elif kind == 3:
        more = chunk(b"PLTE", r.randbytes(r.randrange(0, 900))) + chunk(b"tRNS", r.randbytes(r.randrange(0, 300)))
        return png(8, 8, r.choice((1, 2, 4, 8)), 3, 0, more, pixels)
    elif kind == 4:
        more = chunk(b"eXIf", exif(r))
    else:
        more = chunk(b"acTL", struct.pack(">II", 0xFFFFFFFF, 0)) + chunk(b"fcTL", r.randbytes(26))
    return png(8, 8, 8, 2, 0, more, pixels)


def exif(r):
    """TIFF directories that point anywhere, themselves among others."""
    order = r.choice((b"II*\0", b"MM\0*", b"II+\0"))
    layout = "<" if order[:1] == b"I" else ">"
    entries = b"".join(struct.pack(layout + "HHII", r.choice((0x0112, r.randrange(65536))), r.randrange(14), r.choice((1, 0xFFFFFFFF)), r.randrange(1 << 32)) for _ in range(r.randrange(6)))
    return order + struct.pack(layout + "I", r.choice((8, 0, 4, 0xFFFFFFFF, 0x7FFFFFF0))) + struct.pack(layout + "H", r.choice((len(entries) // 12, 65535))) + entries + struct.pack(layout + "I", 8)


# ---- JPEG


def jpeg_marks(data):
    """Where the markers of a JPEG file stand: [(marker, offset)]; the last one is the scan's."""
    at, out = 2, []
    while at + 4 <= len(data) and data[at] == 0xFF:
        out.append((data[at + 1], at))
        if data[at + 1] == 0xDA:
            break
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return out


def jpeg_lies(r, base):
    """A frame header that says anything: sizes, precision, components, sampling, the kind of coding."""
    out = bytearray(base)
    for marker, at in jpeg_marks(base):
        if marker in (0xC0, 0xC2) and at + 10 < len(out):
            what = r.randrange(5)
            if what == 0:
                struct.pack_into(">HH", out, at + 5, r.choice(SIDES) & 0xFFFF, r.choice(SIDES) & 0xFFFF)
            elif what == 1:
                out[at + 1] = r.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB))
            elif what == 2:
                out[at + 4] = r.choice((0, 8, 12, 16, 255))
            elif what == 3:
                out[at + 9] = r.choice((0, 1, 2, 4, 10, 255))
            else:
                out[at + 11] = r.randrange(256)
    return bytes(out)


def jpeg_scans(r, base):
    """The last scan again and again; markers for restarts, comments, profiles and EXIF by the hundred."""
    at = jpeg_marks(base)[-1][1]
    head, scan = base[:at], base[at:-2]
    kind = r.randrange(4)
    if kind == 0:
        return head + scan * min(r.choice((2, 101, 5000)), FILE_BYTES_MAX // (len(scan) or 1)) + b"\xff\xd9"
    if kind == 1:
        return head + b"\xff\xdd\0\4" + struct.pack(">H", r.choice((1, 2, 65535))) + scan + b"".join(bytes((0xFF, 0xD0 + i % 8)) for i in range(r.randrange(5000))) + b"\xff\xd9"
    if kind == 2:
        return head[:2] + (b"\xff\xfe\xff\xff" + bytes(65533)) * r.randrange(1, 20) + head[2:] + scan + b"\xff\xd9"
    body = b"Exif\0\0" + exif(r)
    return head[:2] + (b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body) * r.choice((1, 300)) + head[2:] + scan + b"\xff\xd9"


# ---- WebP


def riff_chunk(kind, data):
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1)


def webp(*chunks):
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_lies(r, base):
    """Canvases and frames that do not fit each other; thousands of frames; an alpha plane of noise."""
    def u24(v):
        return struct.pack("<I", v & 0xFFFFFF)[:3]
    side = lambda: r.choice((0, 1, 20, 16382, 16383, 0xFFFFFE, 0xFFFFFF))
    inner = base[12:]
    head = riff_chunk(b"VP8X", bytes((r.randrange(256), 0, 0, 0)) + u24(side()) + u24(side()))
    kind = r.randrange(4)
    if kind == 0:
        return webp(head, inner)
    if kind == 1:
        frame = riff_chunk(b"ANMF", u24(side()) + u24(side()) + u24(side()) + u24(side()) + u24(r.randrange(1 << 24)) + bytes((r.randrange(4),)) + inner)
        return webp(riff_chunk(b"VP8X", b"\x02\0\0\0" + u24(side()) + u24(side())), riff_chunk(b"ANIM", r.randbytes(6)), *[frame] * r.choice((1, 2, 500)))
    if kind == 2:
        return webp(head, riff_chunk(b"ALPH", bytes((r.randrange(256),)) + r.randbytes(r.randrange(400))), inner)
    bits = (side() & 0x3FFF) | (side() & 0x3FFF) << 14 | r.randrange(16) << 28
    return webp(riff_chunk(b"VP8L", b"\x2f" + struct.pack("<I", bits) + r.randbytes(r.choice((0, 10, 2000)))))


# ---- sound


def wav_lies(r):
    """A format block that says anything, sizes that are not so, samples that are no numbers."""
    tag = r.choice((0, 1, 1, 2, 3, 3, 6, 7, 0x11, 0x31, 0x55, 0xFFFE, r.randrange(65536)))
    channels, rate, bits = r.choice((0, 1, 2, 8, 9, 1024, 65535)), r.choice((0, 1, 999, 1000, 16000, 384000, 384001, 0xFFFFFFFF)), r.choice((0, 1, 7, 8, 12, 16, 24, 32, 64, 65535))
    fmt = struct.pack("<HHIIHH", tag, channels, rate, r.choice((0, rate * 2 & 0xFFFFFFFF, 0xFFFFFFFF)), r.choice((0, 1, 2, 4, 65535)), bits) + r.randbytes(r.choice((0, 2, 24)))
    data = r.choice((r.randbytes(r.choice((0, 3, 4000))), struct.pack("<f", r.choice((float("nan"), float("inf"), 3e38, 1e7))) * 900, struct.pack("<d", 1e300) * 400))
    out = b"WAVE" + riff_chunk(b"fmt ", fmt) + b"data" + struct.pack("<I", r.choice((len(data), 0, 0xFFFFFFFF, 0x7FFFFFFF))) + data
    return r.choice((b"RIFF", b"RIFX", b"RF64")) + struct.pack("<I", r.choice((len(out), 0, 0xFFFFFFFF))) + out


def flac_lies(r, base):
    """STREAMINFO of another stream: block sizes, rate, channels, samples; more blocks of comments and pictures than sound."""
    out = bytearray(base)
    if r.randrange(2):
        at = 8 + r.randrange(18)
        out[at:at + 2] = r.choice((b"\0\0", b"\xff\xff", r.randbytes(2)))
        return bytes(out)
    return base[:4] + (bytes((r.choice((1, 2, 4, 6, 126)),)) + struct.pack(">I", 4000)[1:] + r.randbytes(4000)) * r.randrange(1, 40) + base[4:]


def ogg_lies(r, base):
    """Positions, page numbers, serial numbers and flags of any value, under a right checksum."""
    out, pages = bytearray(base), []
    at = out.find(b"OggS")
    while at >= 0:
        pages.append(at)
        at = out.find(b"OggS", at + 1)
    for _ in range(r.randrange(1, 4)):
        at = r.choice(pages)
        if at + 27 < len(out):
            r.choice((lambda: struct.pack_into("<q", out, at + 6, r.choice((-1, 0, 1 << 62, -(1 << 63)))), lambda: struct.pack_into("<II", out, at + 14, r.randrange(1 << 32), r.randrange(1 << 32)),
                      lambda: struct.pack_into("B", out, at + 5, r.randrange(256))))()
    return repair_ogg(bytes(out))


def mp3_lies(r, base):
    """Tags of any size in front, and headers of other layers, rates and modes."""
    out = bytearray(base)
    for at in range(len(out) - 4):
        if out[at] == 0xFF and out[at + 1] & 0xE0 == 0xE0 and r.randrange(4) == 0:
            out[at + 1 + r.randrange(3)] ^= 1 << r.randrange(8)
    tag = b"ID3" + bytes((r.randrange(6), 0, r.randrange(256))) + bytes(r.choice((0, 1, 0x7F, 0xFF)) for _ in range(4))
    return r.choice((b"", tag, tag + r.randbytes(200), b"TAG" + bytes(125))) + bytes(out)


MADE = (png_lies, png_bomb, png_chunks, jpeg_lies, jpeg_scans, webp_lies, wav_lies, flac_lies, ogg_lies, mp3_lies)
STARTS = {jpeg_lies: b"\xff\xd8", jpeg_scans: b"\xff\xd8", webp_lies: b"RIFF", flac_lies: b"fLaC", ogg_lies: b"OggS", mp3_lies: b"\xff"}


def make_up(r, corpus):
    """A file that was written to do harm: (bytes, is it a sound?)."""
    maker = r.choice(MADE)
    sound = maker in (wav_lies, flac_lies, ogg_lies, mp3_lies)
    if maker not in STARTS:
        return maker(r), sound
    start = STARTS[maker]
    whole = [d for d, s in corpus if s == sound and d.startswith(start) and (maker is not mp3_lies or len(d) > 500) and (start != b"\xff\xd8" or jpeg_marks(d)[-1][0] == 0xDA)]
    return maker(r, r.choice(whole)), sound


def hostile(r, corpus, i):
    """File number i: (bytes, is it a sound?). corpus: [(bytes, sound)]."""
    if r.randrange(10) >= MUTATED_OF_TEN:
        return make_up(r, corpus)
    data, sound = corpus[i % len(corpus)]
    data = mutate(r, data)
    return (repair(data) if r.randrange(2) else data), sound
