# Copyright 2026 The dimple_hf team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
# /// script
# dependencies = ["dimple_hf"]
# ///
"""Ask a Dimple checkpoint about an image.

What it shows: (1) load a model and its processor with transformers' Auto classes, (2) put an image and a question
into the chat form, (3) decode by diffusion, (4) read the answer, the number of passes and the time.

Command:
    python examples/generate.py --model rp-yu/Dimple-7B --image photo.jpg --question "What is in the image?"
    make demo

Hardware: the 7B model in bfloat16 needs a GPU of 24 GB. Without `--model`, as in `make demo`, the small model of the
package reads an image of a form, on any CPU in less than a second.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from dimple_hf.checkpoints import FORMS_CHECKPOINT  # importing dimple_hf registers Dimple with the Auto classes

SAMPLE = Path(__file__).resolve().parent / "forms" / "sample.png"


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(FORMS_CHECKPOINT), help="directory or Hub id of a checkpoint")
    parser.add_argument("--image", type=Path, default=SAMPLE, help="image to ask about (default: a form)")
    parser.add_argument("--question", default="Read the form.")
    parser.add_argument("--max-new-tokens", type=int, help="positions of the answer (default: the checkpoint's)")
    args = parser.parse_args(arguments)
    if not args.image.is_file():
        parser.error(f"--image must be a file (got {args.image})")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = AutoProcessor.from_pretrained(args.model)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype="auto").to(device).eval()
    content = [{"type": "image", "path": str(args.image)}, {"type": "text", "text": args.question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(device)

    start = time.perf_counter()
    length = {} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens}
    output = model.generate(**inputs, **length, return_dict_in_generate=True)
    seconds = time.perf_counter() - start

    tokens = output.sequences[0, inputs["input_ids"].shape[1] :]
    answer = processor.decode(tokens, skip_special_tokens=True)
    print(f"image   {args.image}")
    print(f"question  {args.question}")
    print("answer    " + answer.replace("\n", "\n          "))
    print(f"passes    {output.num_forward_passes.item()} for {len(tokens)} positions, {seconds:.2f} s")
    return answer


if __name__ == "__main__":
    main()
