#!/usr/bin/env python3
"""Makes tests/golden/media/seeing.json and demo.json: what transformers answers about pictures and sounds on the checkpoint of tests/e2e/seeing.py, and on the demo model.

Run:  .venv/bin/python tests/oracle/make_seeing_golden.py [demo]      (demo: that file alone; torch, torchvision, torchcodec and Pillow on the CPU, transformers 5.x)

Everything in float32 on the checkpoint's bfloat16 weights, the embedding's scale, pixels and samples rounded as the checkpoint's type rounds them; the prompt from the
reference's own processor. Masks: a picture's tokens see each other in the sliding layers, full layers stay causal (the library's create_masks_for_vision_model).
Per case: the prompt's tokens, the ten best log probabilities behind it, and the first tokens of the greedy answer."""
import json
import os
import sys
import tempfile
import wave

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoProcessor, AutoTokenizer, Gemma4UnifiedForConditionalGeneration
from transformers.models.gemma4_unified.feature_extraction_gemma4_unified import Gemma4UnifiedAudioFeatureExtractor
from transformers.models.gemma4_unified.image_processing_gemma4_unified import Gemma4UnifiedImageProcessor
from transformers.models.gemma4_unified.modeling_gemma4_unified import create_masks_for_vision_model, get_block_sequence_ids_for_mask
from transformers.models.gemma4_unified.processing_gemma4_unified import Gemma4UnifiedProcessor
from transformers.models.gemma4_unified.video_processing_gemma4_unified import Gemma4UnifiedVideoProcessor
from transformers.video_utils import VideoMetadata

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
import seeing  # noqa: E402

CASES = [
    ("picture", ["image/rgb.png"], "What is this?"),
    ("turned", ["image/turned_6.png"], "Which colour is it?"),
    ("pictures", ["image/rgb_lossless.webp", "image/p.png"], "Compare the two."),
    ("sound", ["sound/pcm_16_16000_1.wav"], "What do you hear?"),
    ("video", [["image/rgb.png", "image/p.png", "image/rgba.png"]], "What happens?"),
    ("video and picture", ["image/rgb.png", ["image/l.png", "image/rgb.png"]], "Is it there?"),
    ("both", ["image/rgb.png", "sound/pcm_16_16000_1.wav"], "Say something."),
    ("video file", ["video/h264.mp4"], "What happens?"),
    ("video file and picture", ["video/turned_90.mp4", "image/rgb.png"], "Which way does it go?"),
]
DEMO_CASES = [  # of those that the demo model was never shown
    ("all of it", ["heldout/p001.png"], "Describe the picture."),
    ("a JPEG", ["heldout/p002.jpg"], "What does the picture show?"),
    ("a WebP", ["heldout/p003.webp"], "Describe the picture."),
    ("a word's colour", ["heldout/p019.png"], "What colour are the letters?"),
    ("side", ["heldout/p088.png"], "Is the cross right of the circle?"),
    ("beeps", ["heldout/s016.wav"], "How many tones do you hear?"),
    ("high or low", ["heldout/s026.wav"], "Which beeps are high or low?"),
    ("up or down", ["heldout/s041.wav"], "Does the tone go up or down?"),
    ("picture and sound", ["heldout/p001.png", "heldout/s016.wav"], "How many beeps are there?"),
]
HELDOUT = os.path.join("..", "..", "model", "train", "heldout_media")
ANSWER = 8
DEMO_ANSWER = 24
FPS = 0.5  # of videos: a list of frames among the files


def load(name):
    path = os.path.join(ROOT, "tests", "golden", name.replace("heldout", HELDOUT))
    if name.endswith(".wav"):
        with wave.open(path) as w:
            return np.frombuffer(w.readframes(w.getnframes()), "<i2").astype(np.float32) / 32768
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


def logits_of(model, inputs, ids):
    types = torch.zeros_like(ids)
    types[:, : inputs["mm_token_type_ids"].shape[1]] = inputs["mm_token_type_ids"]
    embeds = torch.zeros(1, ids.shape[1], model.config.text_config.hidden_size)
    masks = create_masks_for_vision_model(model.config.text_config, embeds, None, None, torch.arange(ids.shape[1])[None], get_block_sequence_ids_for_mask(types, ids.device))
    more = {k: inputs[k] for k in ("pixel_values", "image_position_ids", "pixel_values_videos", "video_position_ids", "input_features", "input_features_mask") if k in inputs}
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=masks, mm_token_type_ids=types, use_cache=False, **more).logits[0, -1].double()


def kind_of(file):
    return "video" if isinstance(file, list) or file.startswith("video") else "audio" if file.endswith(".wav") else "image"


def answer(model, processor, files, question, most):
    kinds = [kind_of(f) for f in files]
    of = lambda kind: [f for f, k in zip(files, kinds) if k == kind]
    sounds, pictures = [load(f) for f in of("audio")], [load(f) for f in of("image")]
    videos, more = [os.path.join(ROOT, "tests", "golden", v) for v in of("video") if isinstance(v, str)], {}  # files: the processor has them decoded, by torchcodec
    if of("video") and not videos:
        videos = [np.stack([np.asarray(load(f)) for f in v]) for v in of("video")]
        more = {"video_metadata": [VideoMetadata(total_num_frames=len(v), fps=FPS, frames_indices=list(range(len(v)))) for v in videos], "do_sample_frames": False}
    content = [{"type": k} for k in kinds] + [{"type": "text", "text": question}]
    text = processor.tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=pictures or None, audio=sounds or None, videos=videos or None, return_tensors="pt", add_special_tokens=False, **more)
    for key in ("pixel_values", "pixel_values_videos", "input_features"):  # the model in its own type rounds what comes in, and evenly coloured blocks make that visible
        if key in inputs:
            inputs[key] = inputs[key].to(torch.bfloat16).to(torch.float32)
    ids, out, best = inputs["input_ids"], [], None
    for _ in range(most):
        logits = logits_of(model, inputs, ids)
        logits[model.generation_config.suppress_tokens or []] = -float("inf")
        if best is None:
            best = torch.log_softmax(logits, -1).topk(10).values.tolist()
        out.append(int(logits.argmax()))
        ids = torch.cat([ids, torch.tensor([[out[-1]]])], 1)
        if out[-1] in (model.generation_config.eos_token_id or []):
            break
    return {"files": files, "question": question, "prompt": inputs["input_ids"][0].tolist(), "logprobs": [round(v, 6) for v in best], "answer": out}


def load_model(directory):
    model = Gemma4UnifiedForConditionalGeneration.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    scale = model.model.language_model.embed_tokens.embed_scale
    scale.copy_(scale.to(torch.bfloat16).to(torch.float32))
    return model


def write(name, model, processor, wanted, most):
    cases = {name: answer(model, processor, files, question, most) for name, files, question in wanted}
    with open(os.path.join(ROOT, "tests", "golden", "media", name), "w", encoding="utf-8") as f:
        json.dump(cases, f, indent=None, separators=(",", ":"))
        f.write("\n")
    for case, of in cases.items():
        print(case, len(of["prompt"]), of["logprobs"][:3], of["answer"], repr(processor.tokenizer.decode(of["answer"])))


def main():
    demo = os.path.join(ROOT, "model", "demo")
    write("demo.json", load_model(demo), AutoProcessor.from_pretrained(demo), DEMO_CASES, DEMO_ANSWER)
    if sys.argv[1:] == ["demo"]:
        return
    with tempfile.TemporaryDirectory() as directory:
        seeing.make(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        processor = Gemma4UnifiedProcessor(Gemma4UnifiedAudioFeatureExtractor(), Gemma4UnifiedImageProcessor(max_soft_tokens=seeing.BUDGET), tokenizer, Gemma4UnifiedVideoProcessor())
        write("seeing.json", load_model(directory), processor, CASES, ANSWER)


if __name__ == "__main__":
    main()
