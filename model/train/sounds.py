"""Simple sounds: beeps, tones that rise or fall, as 16 kHz samples in numpy arrays.

A Sound is a list of parts with pauses between; samples() makes the signal. Nothing here does input or output.
"""
import dataclasses

import numpy

RATE = 16000
FRAME = 640                     # samples of a soft token
LOW, HIGH = (220.0, 440.0), (900.0, 1800.0)         # Hz
SHORT, LONG = (0.10, 0.14), (0.34, 0.46)            # seconds
EDGE = 0.008                    # seconds of fading at both ends of a part, so that nothing clicks


@dataclasses.dataclass
class Part:
    """A tone from one frequency to another; pause: silence before it."""
    start_hz: float
    end_hz: float
    seconds: float
    pause: float


@dataclasses.dataclass
class Sound:
    parts: list
    tail: float                 # seconds of silence at the end
    loudness: float
    overtone: float             # share of the octave above
    noise: float                # amplitude of the hiss behind it all; 0: none
    seed: int

    def key(self):
        return "; ".join(f"{p.start_hz:.0f} {p.end_hz:.0f} {p.seconds:.3f} {p.pause:.3f}" for p in self.parts)


def samples(sound, rate=RATE):
    """Float32 in [-1, 1]."""
    noise = numpy.random.default_rng(sound.seed)
    out = []
    for p in sound.parts:
        count = int(p.seconds * rate)
        t = numpy.arange(count) / rate
        phase = 2 * numpy.pi * (p.start_hz * t + (p.end_hz - p.start_hz) * t * t / (2 * p.seconds)) + noise.uniform(0, 2 * numpy.pi)
        wave = numpy.sin(phase) + sound.overtone * numpy.sin(2 * phase + 1.0)
        edge = numpy.minimum(1.0, numpy.minimum(numpy.arange(count), numpy.arange(count)[::-1]) / (EDGE * rate))
        out += [numpy.zeros(int(p.pause * rate)), wave * edge]
    out.append(numpy.zeros(int(sound.tail * rate)))
    signal = numpy.concatenate(out) * (sound.loudness / (1 + sound.overtone))
    if sound.noise:
        signal += noise.normal(0, sound.noise, len(signal))
    return numpy.clip(signal, -1, 1).astype(numpy.float32)


def to_int16(signal):
    return numpy.clip(numpy.rint(signal * 32768), -32768, 32767).astype(numpy.int16)


def frames(signal):
    """[count, FRAME], zeros behind the end."""
    short = -len(signal) % FRAME
    return numpy.concatenate((signal, numpy.zeros(short, signal.dtype))).reshape(-1, FRAME)


def pitch(r, band):
    return band[0] * (band[1] / band[0]) ** r.random()


def finish(r, parts):
    return Sound(parts, r.uniform(0.0, 0.15), r.uniform(0.2, 0.8), r.choice((0.0, 0.0, 0.2, 0.4)), r.choice((0.0, 0.0, 0.001, 0.004)), r.getrandbits(32))


def pause(r, first):
    return r.uniform(0.0, 0.15) if first else r.uniform(0.12, 0.2)


def beeps(r, pattern):
    """Short beeps; pattern: a string of l and h."""
    bands = {"l": pitch(r, LOW), "h": pitch(r, HIGH)}
    return finish(r, [Part(bands[c], bands[c], r.uniform(*SHORT), pause(r, i == 0)) for i, c in enumerate(pattern)])


def knocks(r, pattern):
    """Beeps of one pitch; pattern: a string of s (short) and l (long)."""
    f = pitch(r, r.choice((LOW, HIGH)))
    return finish(r, [Part(f, f, r.uniform(*(SHORT if c == "s" else LONG)), pause(r, i == 0)) for i, c in enumerate(pattern)])


def slide(r, direction):
    """One tone that goes up, down, or stays."""
    f, factor = pitch(r, (250.0, 700.0)), r.uniform(1.8, 3.0)
    ends = {"up": (f, f * factor), "down": (f * factor, f), "stays": (f, f)}[direction]
    return finish(r, [Part(*ends, r.uniform(0.5, 1.1), pause(r, True))])
