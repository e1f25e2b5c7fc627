#!/usr/bin/env python3
"""tests/faults/fake_mps.py - an nvidia-cuda-mps-control without a GPU, for fake_gpu.c: tests link it into PATH under that name.

In CUDA_MPS_PIPE_DIRECTORY it makes `epoch`, a number of 8 bytes on which it holds a lock as long as it lives, and `control`, the sign that it is up. A
client that makes a fatal fault writes its pid into `fault`: the daemon says so in its log, in the words of the real one, and moves
the epoch, which takes every client's context. FAKE_MPS=silent: it does not say whose fault it was; FAKE_MPS=broken: it ends at once.
"""
import fcntl
import os
import struct
import sys
import time

if os.environ.get("FAKE_MPS") == "broken":
    sys.exit("the daemon is broken")
assert sys.argv[1:] == ["-f"], sys.argv
where = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
epoch = 1
with open(os.path.join(where, "epoch"), "wb", buffering=0) as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    f.write(struct.pack("<Q", epoch))
    open(os.path.join(where, "control"), "w").close()
    while True:
        try:
            with open(os.path.join(where, "fault")) as told:
                pid = told.read().strip()
            if os.environ.get("FAKE_MPS") != "silent":
                print(f"[2026-01-01 00:00:00.000 Server     1] Client {{PID: {pid}, Context: 1}} encountered a fatal GPU error.", flush=True)
            epoch += 1
            os.pwrite(f.fileno(), struct.pack("<Q", epoch), 0)
            os.unlink(os.path.join(where, "fault"))
            time.sleep(0.05)  # until its last client has gone, more or less
            print("[2026-01-01 00:00:00.000 Server     1] Destroy server context on device 0 (fake GPU)", flush=True)
        except FileNotFoundError:
            time.sleep(0.005)
