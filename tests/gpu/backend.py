"""tests/gpu/backend.py - libsluice_cuda.so through ctypes, for the tests: the structs of cuda_backend.h and state.h, and a Model
that owns weight arena, KV pools and page tables as torch tensors. Raises RuntimeError on any negative return value."""
import ctypes as c
import os

import torch

FP8, BF16, FP8_BLOCK, FP4 = 1, 2, 4, 5
ROWS_MAX, GROUP_ROWS_MAX, LOGPROBS_MAX = 128, 8, 20
TOKEN_LAST = 0xFFFFFFFF
(Q, K, V, O, GATE, UP, DOWN, INPUT_NORM, POST_ATTENTION_NORM, PRE_FF_NORM, POST_FF_NORM, Q_NORM, K_NORM, LAYER_SCALAR, EMBED, FINAL_NORM) = range(16)
LOGITS, HIDDEN, RESIDUAL = range(3)
PAGE_TOKENS, STATES_ROWS = 32, 16


class LayerSpec(c.Structure):
    _fields_ = [("type", c.c_uint32), ("has_v", c.c_uint32), ("k_offset", c.c_uint64), ("v_offset", c.c_uint64),
                ("format", c.c_uint8 * 8), ("activation", c.c_uint8 * 8), ("input_scale", c.c_float * 8)]


class Spec(c.Structure):
    _fields_ = [("hidden", c.c_uint32), ("intermediate", c.c_uint32), ("vocab", c.c_uint32), ("layers", c.c_uint32),
                ("q_heads", c.c_uint32), ("kv_heads", c.c_uint32 * 2), ("head_dim", c.c_uint32 * 2), ("window", c.c_uint32),
                ("format", c.c_uint32), ("norm_plus_one", c.c_uint32), ("has_v_norm", c.c_uint32), ("norm_eps", c.c_float), ("softcap", c.c_float), ("embed_scale", c.c_float), ("attention_scale", c.c_float), ("full_ahead", c.c_uint32),
                ("rope_theta", c.c_double * 2), ("rope_divisor", c.c_double * 2), ("rope_turned", c.c_uint32 * 2), ("suppress_count", c.c_uint32), ("suppress", c.c_uint32 * 8),
                ("page_bytes", c.c_uint64 * 2), ("layer", LayerSpec * 128)]


class Options(c.Structure):
    _fields_ = [("weights", c.c_void_p), ("kv", c.c_void_p * 2), ("seqs_max", c.c_uint32), ("context_max", c.c_uint32), ("ring_pages", c.c_uint32),
                ("graph_rows_mask", c.c_uint32), ("ring_slots", c.c_uint32), ("window_slots", c.c_uint32), ("wait_slots", c.c_uint32), 
                ("l2_slots", c.c_uint32), ("l2_stride", c.c_uint32), ("l2_pace_ns", c.c_uint32), ("states", c.c_void_p), ("soft_rows", c.c_uint32)]


class Sampling(c.Structure):
    _fields_ = [("seed", c.c_uint64), ("temperature", c.c_float), ("top_p", c.c_float), ("min_p", c.c_float), ("top_k", c.c_uint32),
                ("presence_penalty", c.c_float), ("frequency_penalty", c.c_float), ("repetition_penalty", c.c_float), ("bias_count", c.c_uint32),
                ("prompt_tokens", c.c_uint32), ("want_logprobs", c.c_uint32), ("top_logprob_count", c.c_uint32), ("pad", c.c_uint32)]


class Bias(c.Structure):
    _fields_ = [("token", c.c_uint32), ("bias", c.c_float)]


class Row(c.Structure):
    _fields_ = [("token", c.c_uint32), ("position", c.c_uint32), ("group", c.c_uint32), ("pad", c.c_uint32)]


class Group(c.Structure):
    _fields_ = [("first_row", c.c_uint32), ("rows", c.c_uint32), ("first_position", c.c_uint32), ("seq", c.c_uint32)]


class State(c.Structure):
    _fields_ = [("rows", c.c_uint32), ("groups", c.c_uint32), ("step", c.c_uint64), ("general_rows", c.c_uint32), ("from_states", c.c_uint32), ("handed", c.c_uint64), ("handed_tag", c.c_uint64),
                ("row", Row * ROWS_MAX), ("group", Group * ROWS_MAX), ("sampling", Sampling * ROWS_MAX)]


class Logprob(c.Structure):
    _fields_ = [("token", c.c_uint32), ("logprob", c.c_float)]


class Result(c.Structure):
    _fields_ = [("token", c.c_uint32 * ROWS_MAX), ("logit", c.c_float * ROWS_MAX), ("bad", c.c_uint32 * ROWS_MAX), ("logprob", c.c_float * ROWS_MAX),
                ("top_count", c.c_uint32 * ROWS_MAX), ("step", c.c_uint64), ("top", (Logprob * LOGPROBS_MAX) * ROWS_MAX)]


def library():
    path = os.environ.get("SLUICE_CUDA_SO", "build/libsluice_cuda.so")
    lib = c.CDLL(os.path.abspath(path))
    lib.cuda_weights_bytes.restype = c.c_uint64
    lib.cuda_backend_error.restype = c.c_char_p
    lib.cuda_backend_buffer.restype = c.c_void_p
    return lib


class DevicePointer:
    """Lets torch see memory of the library without copying it."""

    def __init__(self, address, shape, typestr):
        self.__cuda_array_interface__ = {"data": (address, False), "shape": shape, "typestr": typestr, "version": 2}


def gemma_12b(layers, fmt, softcap=30.0, kv_bytes=2):
    spec = Spec(hidden=3840, intermediate=15360, vocab=262144, layers=layers, window=1024, format=fmt, norm_eps=1e-6, softcap=softcap,
                embed_scale=62.0, attention_scale=1.0, suppress_count=2)
    spec.q_heads, spec.has_v_norm = 16, 1
    spec.kv_heads[0], spec.kv_heads[1] = 8, 1
    spec.head_dim[0], spec.head_dim[1] = 256, 512
    spec.rope_theta[0], spec.rope_theta[1] = 1e4, 1e6
    spec.rope_divisor[0] = spec.rope_divisor[1] = 1.0
    spec.rope_turned[0], spec.rope_turned[1] = 128, 64
    spec.suppress[0], spec.suppress[1] = 258883, 258882
    at = [0, 0]
    for i in range(layers):
        full = i % 6 == 5
        size = (512 if full else 8 * 256) * PAGE_TOKENS * kv_bytes
        spec.layer[i] = LayerSpec(int(full), int(not full), at[full], at[full] + size)
        at[full] += 2 * size
    spec.page_bytes[0], spec.page_bytes[1] = at[0], max(at[1], 64)
    return spec


def gemma_3_12b(layers, fmt, kv_bytes=2):
    spec = gemma_12b(layers, fmt, softcap=0.0, kv_bytes=kv_bytes)
    spec.vocab, spec.attention_scale, spec.norm_plus_one, spec.has_v_norm, spec.full_ahead, spec.suppress_count = 262208, 1 / 16, 1, 0, 1, 0
    spec.kv_heads[1], spec.head_dim[1], spec.rope_divisor[1], spec.rope_turned[1] = 8, 256, 8.0, 128
    at, size = [0, 0], 8 * 256 * PAGE_TOKENS * kv_bytes
    for i in range(layers):
        full = i % 6 == 5
        spec.layer[i] = LayerSpec(int(full), 1, at[full], at[full] + size)
        at[full] += 2 * size
    spec.page_bytes[0], spec.page_bytes[1] = at[0], max(at[1], 64)
    return spec


SHAPES = {"gemma-4-12b": gemma_12b, "gemma-3-12b": gemma_3_12b}


class Model:
    def __init__(self, layers, fmt, seqs=17, context=2048, ring_pages=34, rows_mask=0, kv="bf16", shape="gemma-4-12b", change=lambda spec: None):
        self.kv_bytes = {"bf16": 2, "fp8": 1}[kv]
        self.lib, self.spec, self.seqs = library(), SHAPES[shape](layers, fmt, kv_bytes=self.kv_bytes), seqs
        change(self.spec)
        self.weights = torch.zeros(self.lib.cuda_weights_bytes(c.byref(self.spec)), dtype=torch.uint8, device="cuda")
        self.ring_pages = ring_pages              # 34: 1088 tokens, window + 8 rows and a page to spare
        self.full_pages = context // PAGE_TOKENS
        counts = (self.ring_pages, self.full_pages)
        # 0xFF bytes are NaN in bf16 and in E4M3: whoever reads a key that was never written will know.
        self.kv = [torch.full((self.spec.page_bytes[t] * counts[t] * seqs,), 255, dtype=torch.uint8, device="cuda") for t in range(2)]
        options = Options(weights=self.weights.data_ptr(), seqs_max=seqs, context_max=context, ring_pages=self.ring_pages, graph_rows_mask=rows_mask, l2_slots=0xFFFFFFFF)
        options.kv[0], options.kv[1] = (t.data_ptr() for t in self.kv)
        self.states = torch.full((seqs, STATES_ROWS, self.spec.hidden), float("nan"), device="cuda")
        options.states = self.states.data_ptr()
        self.handle, self.loader = c.c_void_p(), c.c_void_p()
        torch.cuda.synchronize()
        self.check(self.lib.cuda_weights_open(c.byref(self.loader), c.byref(self.spec), c.c_void_p(self.weights.data_ptr())), "open the loader")
        self.options, self.tables = options, {}
        self.check(self.lib.cuda_backend_open(c.byref(self.handle), c.byref(self.spec), c.byref(options)), "open")
        for s in range(seqs):
            for t in range(2):
                order = torch.randperm(counts[t]).tolist()           # pages in no order at all
                pages = (c.c_uint32 * counts[t])(*[s * counts[t] + p for p in order])
                self.tables[s, t] = pages
                self.check(self.lib.cuda_backend_pages(self.handle, s, t, 0, pages, counts[t]), "pages")
        self.step_number = 0
        self.logits = self.view(LOGITS, (max(16, 1 << rows_mask.bit_length() >> 1), self.spec.vocab), "<f4")

    def check(self, rc, what):
        if rc < 0:
            raise RuntimeError(f"{what}: error {rc} ({self.lib.cuda_backend_error().decode()})")

    def view(self, which, shape, typestr):
        return torch.as_tensor(DevicePointer(self.lib.cuda_backend_buffer(self.handle, which), shape, typestr), device="cuda")

    def load(self, tensor, layer, source):
        source = source.detach().contiguous()
        assert source.dtype == torch.bfloat16 and source.is_cuda
        torch.cuda.synchronize()
        self.check(self.lib.cuda_weights_load(self.loader, tensor, layer, c.c_void_p(source.data_ptr()), BF16, None, 0), f"load {tensor} of layer {layer}")

    def fill(self, seed):
        """Random weights in the spec's own formats."""
        self.check(self.lib.cuda_weights_fill_random(self.loader, c.c_uint64(seed)), "fill")

    def unpack(self, tensor, layer, rows, k):
        out = torch.empty(rows, k, dtype=torch.float32, device="cuda")
        torch.cuda.synchronize()                  # the allocator may have given memory that torch's stream still reads
        self.check(self.lib.cuda_weights_unpack(self.loader, tensor, layer, c.c_void_p(out.data_ptr())), "unpack")
        return out

    def close(self):
        self.lib.cuda_weights_close(self.loader)
        self.lib.cuda_backend_close(self.handle)

    def state(self, seq, position):
        return self.states[seq, position % STATES_ROWS]

    def step(self, groups, sampling=None, from_states=False):
        """groups: list of (seq, first position, [tokens]). Returns the sampled tokens; self.logits holds the logits,
        self.result everything. from_states: only the LM head and sampling, on the states of the rows' positions."""
        torch.cuda.synchronize()                  # copies of the last logits are done
        self.step_number += 1
        state = State(rows=sum(len(g[2]) for g in groups), groups=len(groups), step=self.step_number, from_states=int(from_states))
        at = 0
        for i, (seq, position, tokens) in enumerate(groups):
            state.group[i] = Group(at, len(tokens), position, seq)
            for j, token in enumerate(tokens):
                state.row[at] = Row(int(token), position + j, i, 0)
                state.sampling[at] = sampling[at] if sampling else Sampling()
                at += 1
        result = self.result = Result()
        self.check(self.lib.cuda_backend_step(self.handle, c.byref(state)), "step")
        self.check(self.lib.cuda_backend_wait(self.handle, c.c_uint64(self.step_number), 5000000, c.byref(result)), "wait")
        if any(result.bad[i] for i in range(at)):
            raise RuntimeError("a row has no finite logit")
        return [result.token[i] for i in range(at)]
