#!/usr/bin/env python3
"""Makes tests/golden/media/seeing_gemma3.json: what transformers answers about pictures on the checkpoint of tests/e2e/seeing_gemma3.py.

Run:  .venv/bin/python tests/oracle/make_seeing_gemma3_golden.py      (torch, torchvision and Pillow on the CPU, transformers 5.x)

Everything in float32 on the checkpoint's bfloat16 weights; pictures by the reference's image processor, prompts expanded as its processor does it, masks its own
(a picture's tokens see each other in every layer); cases with "pieces" by its pan and scan. Per case: the prompt's tokens, the ten best log probabilities behind it, and the greedy answer's first tokens."""
import io
import json
import os
import sys
import tempfile

import torch
from PIL import Image, ImageOps
from transformers import AutoTokenizer, Gemma3ForConditionalGeneration
from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
import seeing_gemma3 as seeing  # noqa: E402
from test_media import png  # noqa: E402

CASES = [
    ("picture", ["image/rgb.png"], "What is this?"),
    ("turned", ["image/turned_6.png"], "Which colour is it?"),
    ("pictures", ["image/rgb_lossless.webp", "image/p.png", "image/rgba.png"], "Compare them, please, and say of each which one you like."),
    ("text", [], "Spell the word river."),
    ("pieces", ["png 900 300 3"], "What is this?"),  # drawn by test_media.png: width, height, seed
    ("pieces of some", ["image/rgb.png", "png 300 700 4", "png 310 300 5"], "Compare them."),
]
ANSWER = 8


def load(name):
    data = png(*map(int, name.split()[1:])) if name.startswith("png ") else open(os.path.join(ROOT, "tests", "golden", name), "rb").read()
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def answer(model, tokenizer, processor, files, question, pieces):
    content = [{"type": "image"} for _ in files] + [{"type": "text", "text": question}]
    text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    seen = processor([load(f) for f in files], return_tensors="pt", do_pan_and_scan=pieces, pan_and_scan_min_crop_size=256, pan_and_scan_max_num_crops=4, pan_and_scan_min_ratio_to_activate=1.2) if files else {"num_crops": []}
    one, parts = "\n\n<|image>" + "<|image|>" * seeing.TOKENS + "<image|>\n\n", text.split("<|image>")
    text = parts[0]
    for crops, behind in zip(seen["num_crops"], parts[1:]):
        text += (f"Here is the original image {one} and here are some crops to help you see better " + " ".join([one] * int(crops)) if crops else one) + behind
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    more = {"pixel_values": seen["pixel_values"]} if files else {}
    ids, out, best = torch.tensor([prompt]), [], None
    for _ in range(ANSWER):
        types = (ids == model.config.image_token_id).long()
        with torch.no_grad():
            logits = model(input_ids=ids, token_type_ids=types, attention_mask=torch.ones_like(ids), use_cache=False, **more).logits[0, -1].double()
        chances = torch.log_softmax(logits, -1)  # as the server tells them: suppressed tokens have one, but are never among the best
        for x in (logits, chances):
            x[model.generation_config.suppress_tokens or []] = -float("inf")
        if best is None:
            best = chances.topk(10).values.tolist()
        out.append(int(logits.argmax()))
        ids = torch.cat([ids, torch.tensor([[out[-1]]])], 1)
        if out[-1] in (model.generation_config.eos_token_id or []):
            break
    return {"files": files, "question": question, "prompt": prompt, "logprobs": [round(v, 6) for v in best], "answer": out}


def main():
    with tempfile.TemporaryDirectory() as directory:
        seeing.make(directory)
        model = Gemma3ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        tokenizer = AutoTokenizer.from_pretrained(directory)
        tokenizer.chat_template = seeing.TEMPLATE
        processor = Gemma3ImageProcessor(size={"height": seeing.IMAGE, "width": seeing.IMAGE})
        cases = {name: answer(model, tokenizer, processor, files, question, name.startswith("pieces")) for name, files, question in CASES}
    with open(os.path.join(ROOT, "tests", "golden", "media", "seeing_gemma3.json"), "w", encoding="utf-8") as f:
        json.dump(cases, f, indent=None, separators=(",", ":"))
        f.write("\n")
    for name, case in cases.items():
        print(name, len(case["prompt"]), case["logprobs"][:3], case["answer"])


if __name__ == "__main__":
    main()
