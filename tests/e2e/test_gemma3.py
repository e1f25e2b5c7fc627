#!/usr/bin/env python3
"""Gemma 3 with its SigLIP tower through the whole server: prompts, log probabilities and answers behind pictures are transformers'.

The model is small and was never trained (seeing_gemma3.py); the reference's answers are tests/golden/media/seeing_gemma3.json.
"""
import asyncio
import json
import os
import random
import signal

import seeing_gemma3
from server import Server, main, made
from test_media import GOLDEN, chat_body, chat_part, golden, golden_part, input_body, input_part, png, post
from wsclient import run
import workload

TIME_LIMIT_S = 200
model = made(seeing_gemma3.make)


def serve(*options, **more):
    return Server("--kv-cache-dtype", "f32", *options, model=model(), **more)


def cases():
    with open(os.path.join(GOLDEN, "media", "seeing_gemma3.json"), encoding="utf-8") as f:
        return json.load(f)


def parts(case):
    """Files of tests/golden, or "png width height seed"."""
    return [chat_part(png(*map(int, n.split()[1:]))) if n.startswith("png ") else golden_part(n, chat_part) for n in case["files"]]


def check_answers(pieces, *options):
    with serve(*options) as s:
        for name, case in cases().items():
            if name.startswith("pieces") != pieces:
                continue
            status, answer = post(s, "/v1/chat/completions", chat_body(parts(case), case["question"], logprobs=True, top_logprobs=10))
            assert status == 200, (name, answer)
            choice = answer["choices"][0]
            assert answer["prompt_token_ids"] == case["prompt"], (name, answer["prompt_token_ids"], case["prompt"])
            got = [x["logprob"] for x in choice["logprobs"]["content"][0]["top_logprobs"]]
            worst = max(abs(a - b) for a, b in zip(got, case["logprobs"]))
            print(f"     {name}: {len(case['prompt'])} tokens, log probabilities off by {worst:.2g}")
            assert len(got) == 10 and worst < 5e-5, (name, got, case["logprobs"])  # f32 sums in another order
            assert choice["token_ids"] == case["answer"], (name, choice["token_ids"], case["answer"])


def test_answers_equal_transformers():
    check_answers(False)


def test_pan_and_scan_equals_transformers():
    check_answers(True, "--pan-and-scan", "4")
    with serve("--pan-and-scan", "4") as s:  # 13 files of 5 pictures each
        status, answer = post(s, "/v1/chat/completions", chat_body([chat_part(png(1100 + i, 260)) for i in range(13)]))
        assert status == 413, answer


def test_chunks_threads_and_kills_change_nothing():
    """Chunks shorter than a picture, other thread counts, prefill killed in the middle: the same tokens."""
    parts = [input_part(golden("image/rgb.png")), input_part(golden("image/turned_6.jpg"))]
    bodies = [input_body(parts[:n], workload.long_text(random.Random(n), 90), max_output_tokens=24, ignore_eos=True) for n in (1, 2)]
    outcomes = []
    for options, kill in ((("--prefill-chunk", "16"), False), (("--prefill-chunk", "512", "--threads", "1", "--media-cache-mib", "0"), False), ((), True)):
        with serve(*options) as s:
            async def go():
                work = asyncio.gather(*[run(s, b) for b in bodies * 2])
                if kill:
                    for _ in range(3):
                        await asyncio.sleep(0.05)
                        os.kill(s.stage("prefill")["pid"], signal.SIGKILL)
                return await work
            results = asyncio.run(go())
        answers = [r.response["token_ids"] for r in results]
        assert answers[:2] == answers[2:], "the same request has two answers"
        outcomes.append(answers)
    assert outcomes[0] == outcomes[1] == outcomes[2], "chunks, threads or kills change the output"


def test_what_it_does_not_take():
    with serve() as s:
        status, answer = post(s, "/v1/chat/completions", chat_body([chat_part(golden("sound/pcm_16_16000_1.wav"), True)]))
        assert status == 400, answer
        status, answer = post(s, "/v1/chat/completions", chat_body([golden_part(["image/rgb.png", "image/p.png"], chat_part)]))
        assert status == 400, answer
        status, answer = post(s, "/v1/chat/completions", chat_body([], "An <|image> that a user types is text."))
        assert status == 200, answer
        assert s.status()["media"]["picture_tokens_max"] == seeing_gemma3.TOKENS


if __name__ == "__main__":
    main(test_answers_equal_transformers, test_pan_and_scan_equals_transformers, test_chunks_threads_and_kills_change_nothing, test_what_it_does_not_take)
