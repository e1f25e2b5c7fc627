#!/usr/bin/env python3
"""Looks at the machine code of the small-row products (kernels/cuda/rowmm.cu): a consumer may give a slot of weights back (SYNCS.ARRIVE) only when
each of its shared-memory loads has arrived, that is, when an instruction in front of the arrival has read a register of it. ptxas is free to move
the arrival, and has: rare wrong sums came of it. Needs cuobjdump of the CUDA Toolkit, no GPU.
    python3 tests/gpu/arrivals.py [FILE]      (default: build/libsluice_cuda.so; an object file or a cubin will do)
Exit 0: every arrival is right; 1: one is not; 77: there is no cuobjdump."""
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);", re.M)
WRITES_NOTHING = ("ST", "SYNCS", "BRA", "EXIT", "BAR", "RED")


def registers_read(op, text):
    """Numbers of the registers that an instruction reads; a tensor-core product reads up to four from each it names."""
    named = [int(n) for n in re.findall(r"\bR(\d+)", text)]
    read = named if op.startswith(WRITES_NOTHING) else named[1:]
    return [n + i for n in read for i in range(4)] if op.startswith("HMMA") else read


def unread(code):
    """(arrivals, [(address, loads that nobody has read)]) of one kernel."""
    pending, arrivals, bad = {}, 0, []
    for address, text in INSTRUCTION.findall(code):
        op = re.sub(r"^@!?U?P\w+ ", "", text).split()[0]
        for r in registers_read(op, text):
            for first in [f for f in pending if f <= r < f + 4]:
                del pending[first]
        if op.startswith("LDS.128"):
            pending[int(re.search(r"\bR(\d+)", text).group(1))] = address
        elif op.startswith("SYNCS.ARRIVE"):
            arrivals += 1
            if pending:
                bad.append((address, sorted(pending.values())))
    return arrivals, bad


def main():
    path = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else "build/libsluice_cuda.so")
    tool = shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")
    if tool is None:
        print("skip: no cuobjdump here, the arrivals were not looked at")
        return 77
    if not os.path.exists(path):
        print(f"arrivals: {path} is missing: build it with `make cuda`")
        return 1
    kernels = total = 0
    good = True
    with tempfile.TemporaryDirectory() as folder:
        if not path.endswith(".cubin"):
            subprocess.run([tool, "-xelf", "rowmm.", path], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for cubin in glob.glob(os.path.join(folder, "*.cubin")) or [path]:
            text = subprocess.run([tool, "-sass", cubin], check=True, capture_output=True, text=True).stdout
            for code in text.split("Function : ")[1:]:
                name = code.split("\n", 1)[0]
                if "rowmm_kernel" not in name:
                    continue
                arrivals, bad = unread(code)
                kernels, total = kernels + 1, total + arrivals
                for address, loads in bad:
                    good = False
                    print(f"arrivals: {name}: the arrival at {address} may pass the loads at {', '.join(loads)}")
    print(f"arrivals: {total} in {kernels} kernels, {'each behind its loads' if good else 'NOT all behind their loads'}")
    return 0 if good and kernels else 1


if __name__ == "__main__":
    sys.exit(main())
