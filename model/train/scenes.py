"""Simple drawn pictures: shapes on paper, and short words on signs, as numpy arrays.

A Scene is a description in units of a small canvas; draw() paints it at any scale, so that a file may have more pixels than the trainer's copy.
The letters are drawn here, 5 x 7 points each. Nothing here does input or output.
"""
import dataclasses

import numpy

COLOURS = {"red": (220, 30, 30), "blue": (40, 60, 220), "green": (30, 150, 50), "yellow": (245, 215, 20), "orange": (250, 130, 10),
           "purple": (130, 30, 170), "pink": (250, 130, 190), "black": (20, 20, 20)}
SHAPES = ("circle", "square", "triangle", "star", "cross")
CANVASES = ((96, 96), (128, 96), (96, 128))         # width, height
PAPERS = (255, 255, 255, 244, 232)                  # grey levels
PLACES = (("at the top left", "at the top", "at the top right"), ("on the left", "in the middle", "on the right"),
          ("at the bottom left", "at the bottom", "at the bottom right"))
MARGIN = 1
WORD_ROWS = {0: "at the top", 1: "in the middle", 2: "at the bottom"}

LETTERS = {
    "A": ".###. #...# #...# ##### #...# #...# #...#", "B": "####. #...# #...# ####. #...# #...# ####.", "C": ".###. #...# #.... #.... #.... #...# .###.",
    "D": "####. #...# #...# #...# #...# #...# ####.", "E": "##### #.... #.... ####. #.... #.... #####", "F": "##### #.... #.... ####. #.... #.... #....",
    "G": ".###. #...# #.... #.### #...# #...# .###.", "H": "#...# #...# #...# ##### #...# #...# #...#", "I": ".###. ..#.. ..#.. ..#.. ..#.. ..#.. .###.",
    "J": "..### ...#. ...#. ...#. ...#. #..#. .##..", "K": "#...# #..#. #.#.. ##... #.#.. #..#. #...#", "L": "#.... #.... #.... #.... #.... #.... #####",
    "M": "#...# ##.## #.#.# #.#.# #...# #...# #...#", "N": "#...# ##..# #.#.# #..## #...# #...# #...#", "O": ".###. #...# #...# #...# #...# #...# .###.",
    "P": "####. #...# #...# ####. #.... #.... #....", "Q": ".###. #...# #...# #...# #.#.# #..#. .##.#", "R": "####. #...# #...# ####. #.#.. #..#. #...#",
    "S": ".#### #.... #.... .###. ....# ....# ####.", "T": "##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..", "U": "#...# #...# #...# #...# #...# #...# .###.",
    "V": "#...# #...# #...# #...# #...# .#.#. ..#..", "W": "#...# #...# #...# #.#.# #.#.# ##.## #...#", "X": "#...# #...# .#.#. ..#.. .#.#. #...# #...#",
    "Y": "#...# #...# .#.#. ..#.. ..#.. ..#.. ..#..", "Z": "##### ....# ...#. ..#.. .#... #.... #####"}
GLYPHS = {letter: numpy.array([[c == "#" for c in row] for row in rows.split()]) for letter, rows in LETTERS.items()}
GLYPH_ROWS, GLYPH_COLUMNS, GLYPH_STEP = 7, 5, 6
POINT_MIN, POINT_MAX = 2.4, 3.0                     # canvas units of one point of a letter


@dataclasses.dataclass
class Thing:
    """One shape. column and row name the ninth of the canvas that it lies in; x, y and radius are exact."""
    shape: str
    colour: str
    column: int
    row: int
    x: float
    y: float
    radius: float

    def place(self):
        return PLACES[self.row][self.column]

    def words(self):
        return f"{self.colour} {self.shape}"


@dataclasses.dataclass
class Sign:
    """A word. row: 0 top, 1 middle, 2 bottom; x, y: its upper left corner."""
    word: str
    colour: str
    row: int
    x: float
    y: float
    point: float


@dataclasses.dataclass
class Scene:
    width: int
    height: int
    paper: int
    things: list
    sign: Sign | None = None

    def key(self):
        """What makes two scenes the same question: what is to be seen where, not its exact pixels."""
        out = [f"{t.shape} {t.colour} {t.column} {t.row}" for t in sorted(self.things, key=lambda t: (t.row, t.column))]
        if self.sign:
            out.append(f"{self.sign.word} {self.sign.colour} {self.sign.row} {round(self.sign.point * 2)}")
        return f"{self.width}x{self.height} {self.paper}: " + "; ".join(out)


def thing_in(r, width, height, column, row, shape, colour):
    cell_x, cell_y = width / 3, height / 3
    radius = r.uniform(9.5, 13.0)
    slack_x, slack_y = cell_x / 2 + MARGIN - radius, cell_y / 2 + MARGIN - radius
    x = (column + 0.5) * cell_x + r.uniform(-1, 1) * slack_x
    y = (row + 0.5) * cell_y + r.uniform(-1, 1) * slack_y
    return Thing(shape, colour, column, row, min(max(x, radius + 1), width - radius - 1), min(max(y, radius + 1), height - radius - 1), radius)


def sign_of(r, width, height, word, colour, row):
    points = GLYPH_STEP * len(word) - 1
    point = r.uniform(POINT_MIN, min(POINT_MAX, (width - 8) / points))
    x = (width - points * point) / 2
    y = (row + 0.5) * height / 3 - GLYPH_ROWS * point / 2
    return Sign(word, colour, row, x + r.uniform(-1, 1) * min(4.0, x - 2), min(max(2.0, y + r.uniform(-2, 2)), height - GLYPH_ROWS * point - 2), point)


def distance(shape, x, y, radius):
    """Signed distance from the outline, negative inside; x to the right, y down, from the middle."""
    if shape == "circle":
        return numpy.sqrt(x * x + y * y) - radius
    if shape == "square":
        return numpy.maximum(abs(x), abs(y)) - radius * 0.85
    if shape == "triangle":
        return numpy.maximum(y - radius * 0.8, abs(x) * 0.876 - (y + radius) * 0.482)
    if shape == "cross":
        long, wide = radius, radius * 0.33
        return numpy.minimum(numpy.maximum(abs(x) - long, abs(y) - wide), numpy.maximum(abs(y) - long, abs(x) - wide))
    if shape == "star":     # fold all into one half of a spike: then the outline is one line
        sector = 2 * numpy.pi / 5
        angle = numpy.arctan2(x, -y) % sector
        angle = numpy.minimum(angle, sector - angle)
        far = numpy.sqrt(x * x + y * y)
        px, py = far * numpy.cos(angle), far * numpy.sin(angle)
        outer, inner = radius * 1.08, radius * 0.43
        qx, qy = inner * numpy.cos(sector / 2), inner * numpy.sin(sector / 2)
        return ((px - outer) * qy - py * (qx - outer)) / numpy.hypot(qx - outer, qy)
    raise ValueError(f"unknown shape {shape!r}")


def draw(scene, scale=1):
    """The picture, uint8 [height * scale, width * scale, 3]."""
    height, width = scene.height * scale, scene.width * scale
    out = numpy.full((height, width, 3), float(scene.paper), numpy.float32)
    for t in scene.things:
        reach = int(t.radius * 1.2 * scale) + 2
        x0, y0 = max(0, int(t.x * scale) - reach), max(0, int(t.y * scale) - reach)
        x1, y1 = min(width, int(t.x * scale) + reach + 1), min(height, int(t.y * scale) + reach + 1)
        x = (numpy.arange(x0, x1, dtype=numpy.float32) + 0.5)[None, :] - t.x * scale
        y = (numpy.arange(y0, y1, dtype=numpy.float32) + 0.5)[:, None] - t.y * scale
        cover = numpy.clip(0.5 - distance(t.shape, x, y, t.radius * scale), 0, 1)[..., None]
        part = out[y0:y1, x0:x1]
        part += cover * (numpy.array(COLOURS[t.colour], numpy.float32) - part)
    if scene.sign:
        write(out, scene.sign, scale)
    return (out + 0.5).astype(numpy.uint8)


def write(out, sign, scale):
    """The word's points, each a small square, edges softened over one pixel."""
    columns = GLYPH_STEP * len(sign.word) - 1
    points = numpy.zeros((GLYPH_ROWS, columns), bool)
    for i, letter in enumerate(sign.word):
        points[:, i * GLYPH_STEP:i * GLYPH_STEP + GLYPH_COLUMNS] = GLYPHS[letter]
    point, fine = sign.point * scale, 2         # 2 x 2 samples a pixel
    x0, y0 = int(sign.x * scale), int(sign.y * scale)
    high, wide = int(GLYPH_ROWS * point) + 2, int(columns * point) + 2
    high, wide = min(high, out.shape[0] - y0), min(wide, out.shape[1] - x0)
    row = ((numpy.arange(high * fine) + 0.5) / fine + y0 - sign.y * scale) / point
    column = ((numpy.arange(wide * fine) + 0.5) / fine + x0 - sign.x * scale) / point
    inside = ((row >= 0) & (row < GLYPH_ROWS))[:, None] & ((column >= 0) & (column < columns))[None, :]
    hit = points[numpy.clip(row.astype(int), 0, GLYPH_ROWS - 1)][:, numpy.clip(column.astype(int), 0, columns - 1)] & inside
    cover = hit.reshape(high, fine, wide, fine).mean(axis=(1, 3), dtype=numpy.float32)[..., None]
    part = out[y0:y0 + high, x0:x0 + wide]
    part += cover * (numpy.array(COLOURS[sign.colour], numpy.float32) - part)


# ---- scenes by kind ----------------------------------------------------------------------------

def canvas(r):
    return r.choices(CANVASES, (2, 1, 1))[0], r.choice(PAPERS)


def mixed(r):
    """One to four different things."""
    (width, height), paper = canvas(r)
    count = r.choice((1, 2, 2, 3, 3, 4))
    cells = r.sample([(c, w) for c in range(3) for w in range(3)], count)
    shapes = [r.choice(SHAPES) for _ in cells] if r.random() < 0.3 else r.sample(SHAPES, count)
    colours = r.sample(tuple(COLOURS), count)
    return Scene(width, height, paper, [thing_in(r, width, height, *cell, s, c) for cell, s, c in zip(cells, shapes, colours)])


def crowd(r):
    """One to six of one kind, and up to two others."""
    (width, height), paper = canvas(r)
    count, others = r.randint(1, 6), r.choice((0, 0, 1, 2))
    cells = r.sample([(c, w) for c in range(3) for w in range(3)], count + others)
    shapes = r.sample(SHAPES, 3)
    colour, one_colour = r.choice(tuple(COLOURS)), r.random() < 0.6
    things = []
    for i, cell in enumerate(cells):
        shape = shapes[0] if i < count else shapes[1 + (i - count) % 2]
        things.append(thing_in(r, width, height, *cell, shape, colour if one_colour and i < count else r.choice(tuple(COLOURS))))
    return Scene(width, height, paper, things)


def sign(r, words):
    """A word, sometimes with a shape above or below it. Every sixth word has no meaning, so that letters must be read."""
    (width, height), paper = canvas(r)
    word = r.choice(words) if r.random() < 0.83 else "".join(r.choice(tuple(GLYPHS)) for _ in range(r.randint(2, 5)))
    row = r.randrange(3)
    things = []
    if r.random() < 0.4:
        other = r.choice([w for w in range(3) if abs(w - row) > (0 if height > width else 1) or row == 1 and w != 1])
        things.append(thing_in(r, width, height, r.randrange(3), other, r.choice(SHAPES), r.choice(tuple(COLOURS))))
    return Scene(width, height, paper, things, sign_of(r, width, height, word.upper(), r.choice(("black", "black", "red", "blue", "green", "purple")), row))
