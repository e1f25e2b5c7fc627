#!/usr/bin/env python3
"""A DSpark head and the outputs of layers that it reads (model/features.h): rounded weights, a window shorter than the text, a head that comes by swap when
nothing was kept for it, one that was made for another model. No output changes. Deaths and swaps under load, with every drafter: test_draft.py.
"""
import asyncio
import json
import os
import shutil

from server import ROOT, Server, main, scaled, skip
from workload import bodies
from wsclient import gather_limited, run

HEAD = os.path.join(ROOT, "model", "demo", "dspark")
COUNT = scaled(48, least=16)
BODIES = bodies(COUNT, least=24, most=96, seed=5)
LONG = bodies(8, least=150, most=250, seed=6)
reference, reference_long = [], []

TIME_LIMIT_S = 900  # for the runner: a slow machine, a sanitized build


async def all_of(server, requests, at_once):
    return await gather_limited(at_once, [run(server, b) for b in requests])


def outcomes(server, requests, at_once):
    return [r.outcome() for r in asyncio.run(all_of(server, requests, at_once))]


def compare(what, got, wanted):
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a == b, f"{what}: request {i} differs\n  wanted {b[:1500]}\n  got    {a[:1500]}"
    print(f"     {what}: {len(got)} outputs the same", flush=True)


def test_reference():
    if not os.path.exists(os.path.join(HEAD, "config.json")):
        skip("no DSpark head beside the demo model")
    with Server("--draft", "none") as s:
        reference.extend(outcomes(s, BODIES, 1))
        reference_long.extend(outcomes(s, LONG, 8))


def test_outputs():
    for options in ((), ("--draft-dtype", "fp8"), ("--draft-tokens", 3)):
        with Server("--draft", "dspark", "--draft-when", "always", *options) as s:
            compare(f"one by one {options}", outcomes(s, BODIES, 1), reference)
            accepted = s.status()["rates"]["draft_acceptance"]
            print(f"     of the drafts {accepted:.2f} accepted", flush=True)
            assert accepted > 0.3, "the head is trained for this model"
            compare("eight at once", outcomes(s, BODIES, 8), reference)


def test_short_window():
    """The ring of outputs and the head's cache go round many times."""
    with Server("--draft", "dspark", "--draft-when", "always", "--draft-context", 64) as s:
        compare("a window of 64", outcomes(s, BODIES + LONG, 8), reference + reference_long)
        assert s.status()["rates"]["draft_acceptance"] > 0.2


def test_comes_by_swap():
    """A server that began without a drafter: outputs of layers are kept from the moment the head has come, and it drafts what begins then."""
    with Server("--draft", "none", "--draft-when", "always") as s:
        compare("before", outcomes(s, BODIES[:8], 8), reference[:8])
        assert s.status()["drafter"]["neural_answers"] == 0
        streams = []

        async def swap_amid():
            jobs = asyncio.ensure_future(all_of(s, LONG, 8))
            await asyncio.sleep(0.2)
            streams.append(await asyncio.to_thread(s.command, "swap", "draft", "dspark"))
            return [r.outcome() for r in await jobs]
        compare("in mid-stream", asyncio.run(swap_amid()), reference_long)
        assert streams[0][0] == 0, streams[0]
        compare("after it", outcomes(s, BODIES, 1), reference)
        drafter = s.status()["drafter"]
        print(f"     {drafter}, {s.status()['rates']['draft_acceptance']:.2f} of the drafts accepted", flush=True)
        assert drafter["kind"] == "dspark" and drafter["neural_answers"] > 10 * len(BODIES) // 8, drafter


def test_other_models_head():
    """A head that does not fit is refused with the reason, and what drafted before goes on."""
    with Server("--draft", "ngram") as s:
        folder = os.path.join(s.dir, "head")
        shutil.copytree(HEAD, folder)
        path = os.path.join(folder, "config.json")
        with open(path) as f:
            config = json.load(f)
        for change, word in (({"num_target_layers": 48, "target_layer_ids": [5, 17, 29, 41, 46]}, "48 layers"), ({"markov_head_type": "rnn"}, "markov_head_type"),
                             ({"block_size": 40}, "block_size"), ({"intermediate_size": 1536}, "gate_proj")) * 3:  # at once: the stage that is back may not be ready yet
            with open(path, "w") as f:
                json.dump({**config, **change}, f)
            code, _, err = s.command("swap", "draft", folder)
            assert code != 0 and word in err, f"{change}: {code} {err!r}"
        s.settle()
        compare("lookup goes on", outcomes(s, BODIES[:8], 8), reference[:8])


if __name__ == "__main__":
    main(test_reference, test_outputs, test_short_window, test_comes_by_swap, test_other_models_head)
