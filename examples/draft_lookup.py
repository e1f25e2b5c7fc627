#!/usr/bin/env python3
"""A draft stage for Sluice in Python: proposes what followed the last time the newest tokens occurred.

    sluice swap draft examples/draft_lookup.py      (and back: sluice swap draft --default)

It shows that a stage is a contract and not a library: all of it follows from shm/pipeline.h (segments, rings),
schemas/table.h (who commits what) and schemas/wiring.md (what the launcher sends). Needs the package msgpack.
Shared words are read and written as whole 64-bit values, through memoryviews: struct.pack_into() goes byte by byte, and
a reader could see half a number. Python has no fences: on x86-64 stores become visible in program order and loads are
not overtaken by later loads, which is all that a ring asks for. On other machines this program declines."""
import array, ctypes, mmap, os, platform, signal, socket, sys, time

import msgpack

ROLES = "launcher keeper gateway tokenize prefill draft verify detokenize vision fetch".split()  # enum role
EDGES = ["gateway tokenize", "gateway verify", "tokenize gateway", "tokenize prefill", "prefill verify", "verify prefill", "verify draft",
         "draft verify", "verify detokenize", "detokenize verify", "detokenize gateway", "gateway vision", "vision tokenize"]  # enum ring_id: producer, consumer
MAGIC, LAYOUT_VERSION, WIRING_VERSION, PAGE, RING_SLOTS = 0x31454349554C53, 5, 1, 4096, 1024
SIDE_BYTES = 256 + 64 * RING_SLOTS, 256  # producer: tail, lost, messages; consumer: head, sleeping
HEARTBEAT, PID, STATE, STARTED, ATTACHED, BUSY, BUSY_SLOT, BUSY_GENERATION, PANIC, COUNTERS = (
    PAGE + n for n in (0, 128, 136, 144, 152, 256, 264, 776, 1288, 1544))  # struct stage_status
SYS_FUTEX, FUTEX_WAKE = 202, 1


def leave(code, why):  # 100: wrong executable or layout, do not try again; 111: something is missing
    print(f'level=error event=exit code={code} reason="{why}"', file=sys.stderr, flush=True)
    sys.exit(code)


def side(role, edge, which):
    """Offset of a role's side of a ring (0: producer, 1: consumer) in its segment: sides lie in the order of the ring ids."""
    mine = [(e, s) for e in EDGES for s in (0, 1) if e.split()[s] == role]
    return 2 * PAGE + sum(SIDE_BYTES[s] for _, s in mine[:mine.index((edge, which))])


class Segment:
    def __init__(self, role, fd):
        self.map = mmap.mmap(fd, 0, prot=mmap.PROT_READ | (mmap.PROT_WRITE if role == "draft" else 0))
        self.u64, self.u32 = memoryview(self.map).cast("Q"), memoryview(self.map).cast("I")
        if self.u64[0] != MAGIC or self.u32[2] != LAYOUT_VERSION or ROLES[self.u32[3]] != role:
            leave(100, f"the segment of {role} has another layout")
        self.slots, self.stride = self.u64[3] + (PAGE if role == "launcher" else 0), self.u64[4]  # the launcher's board comes first

    def word(self, slot, generation, offset=0):
        """A commit word of a slot record: its value if it speaks of this generation, else 0."""
        word = self.u64[(self.slots + slot * self.stride + offset) // 8]
        return word & 0xFFFFFFFF if word >> 32 == generation else 0

    def tokens(self, slot, begin, end):
        at = (self.slots + slot * self.stride + PAGE) // 4
        return self.u32[at + begin:at + end].tolist()


class Sequence:
    """The tokens of one request, and for each pair and triple of them where it was last followed by something."""

    def __init__(self, tokens):
        self.tokens, self.last = [], {}
        self.add(tokens)

    def add(self, more):
        for token in more:
            n = len(self.tokens)
            self.last[tuple(self.tokens[-2:])] = self.last[tuple(self.tokens[-3:])] = n
            self.tokens.append(token)

    def propose(self, most):
        at = self.last.get(tuple(self.tokens[-3:])) or self.last.get(tuple(self.tokens[-2:]))
        return self.tokens[at:at + most] if at else []


class Draft:
    def __init__(self):
        if platform.machine() != "x86_64" or "SLUICE_STAGE_FD" not in os.environ:
            leave(111, "this is a stage of Sluice for x86-64: sluice swap draft examples/draft_lookup.py")
        self.control = socket.socket(fileno=int(os.environ["SLUICE_STAGE_FD"]))
        data, fds, _, _ = socket.recv_fds(self.control, 1 << 18, 253)
        wiring = msgpack.unpackb(data)
        if wiring["version"] != WIRING_VERSION or wiring["role"] != "draft":
            leave(100, f"started as {wiring['role']}, wiring version {wiring['version']}; this is a draft stage, version {WIRING_VERSION}")
        named = dict(zip(wiring["descriptors"], fds))
        self.segment = {r: Segment(r, named["segment." + r]) for r in ("launcher", "gateway", "tokenize", "verify", "draft")}
        for fd in fds:
            os.close(fd)
        self.most = min(12, int(wiring["options"].get("draft.tokens", 7)))
        self.own, self.own32 = self.segment["draft"].u64, self.segment["draft"].u32
        self.head, self.tail = side("draft", "verify draft", 1), side("draft", "draft verify", 0)
        self.asked, self.taken = side("verify", "verify draft", 0), side("verify", "draft verify", 1)
        self.futex = ctypes.addressof(ctypes.c_char.from_buffer(self.segment["draft"].map, self.tail))
        self.syscall = ctypes.CDLL(None).syscall
        self.sequences, self.stopping = {}, False
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopping", True))
        self.own[PANIC // 8] = self.own[BUSY // 8] = 0
        self.own[ATTACHED // 8] += 1
        self.own[PID // 8], self.own[STATE // 8] = os.getpid(), 1
        self.own[self.head // 8] = self.segment["verify"].u64[self.asked // 8]  # questions to our predecessor: a round without drafts
        self.own[self.head // 8 + 16] = 0  # never "sleeping": we look by ourselves

    def take(self):
        """{slot: generation} of all questions that wait; of several about one slot the newest counts, and the table knows it."""
        verify, head, asked = self.segment["verify"], self.own[self.head // 8], {}
        for head in range(head, verify.u64[self.asked // 8]):
            at = (self.asked + 256) // 4 + head % RING_SLOTS * 16
            asked[verify.u32[at]] = verify.u32[at + 1]
            self.own[self.head // 8] = head + 1
        return asked

    def answer(self, slot, generation):
        tokenize, verify = self.segment["tokenize"], self.segment["verify"]
        if self.segment["gateway"].word(slot, generation) != 1:  # PHASE_REQUESTED; else the slot has another request by now
            return
        convicted = self.segment["launcher"].word(slot, generation, 64)  # of killing stages: not touched, only answered
        self.own32[BUSY_SLOT // 4], self.own32[BUSY_GENERATION // 4] = slot, generation
        self.own[BUSY // 8] = 0 if convicted else 1  # who is to blame if we die now
        committed = verify.word(slot, generation)
        prompt_count = tokenize.u32[(tokenize.slots + slot * tokenize.stride + 128) // 4]
        known, sequence = self.sequences.get(slot, (None, None))
        if known != generation:
            sequence = Sequence(tokenize.tokens(slot, 0, prompt_count))
            self.sequences[slot] = generation, sequence
        sequence.add(verify.tokens(slot, len(sequence.tokens) - prompt_count, committed))
        self.publish([slot, generation, committed], [] if convicted else sequence.propose(self.most))
        self.own[BUSY // 8] = 0

    def publish(self, about, tokens):
        tail = self.own[self.tail // 8]
        if tail - self.segment["verify"].u64[self.taken // 8] >= RING_SLOTS:
            self.own[self.tail // 8 + 16] += 1  # lost: a round without drafts
            return
        at, message = (self.tail + 256) // 4 + tail % RING_SLOTS * 16, array.array("I", [*about, len(tokens), *tokens])
        self.own32[at:at + len(message)] = memoryview(message)
        self.own[self.tail // 8] = tail + 1  # the message is whole before it counts
        self.syscall(SYS_FUTEX, ctypes.c_void_p(self.futex), FUTEX_WAKE, 2**31 - 1, None, None, 0)
        self.own[COUNTERS // 8] += 1
        self.own[COUNTERS // 8 + 1] += len(tokens)

    def launcher_gone(self):
        try:
            return self.control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False

    def run(self):
        self.own[STARTED // 8], self.own[STATE // 8] = time.monotonic_ns(), 2
        self.control.send(msgpack.packb({"type": "ready", "version": WIRING_VERSION, "role": "draft", "options": {}, "descriptors": []}))
        turn = idle = 0
        while not self.stopping and (turn % 100 or not self.launcher_gone()):
            turn += 1
            self.own[HEARTBEAT // 8] += 1
            asked = self.take()
            for slot, generation in asked.items():
                self.answer(slot, generation)
            idle = 0 if asked else idle + 1
            if idle:
                time.sleep(0.0001 if idle < 2000 else 0.01)


if __name__ == "__main__":
    Draft().run()
