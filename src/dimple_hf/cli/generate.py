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
"""Ask a model about images. In a terminal the answer is shown as it is denoised, in a pipe only when it is done."""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from ..hub.doctor import explain_failure
from ..training.adapters import load_adapter
from .arguments import add_model_argument

HELP = "ask a model about images"

#: Shown in place of a token that is not yet decided.
MASK_SIGN = "░"

#: Colours of unmasked tokens, by the pass that unmasked them, over and over.
STEP_STYLES = ("green", "cyan", "blue", "magenta", "yellow")


class LiveAnswer(BaseStreamer):
    """
    Shows an answer while it is denoised: masked positions as shades, decided ones in the colour of their pass.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Decodes single tokens.
        mask_token_id (`int`):
            The token of masked positions.
        live (`rich.live.Live`):
            Where to draw.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mask_token_id: int, live: Live):
        self.tokenizer = tokenizer
        self.mask_token_id = mask_token_id
        self.live = live
        self.pass_of_position: list[int | None] = []
        self.num_passes = 0

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt and the finished answer, which are printed elsewhere."""

    def put_draft(self, value: torch.Tensor) -> None:
        """Draws `value` (`torch.LongTensor` of shape `(1, answer_length)`), the answer after a pass."""
        tokens = value[0].tolist()
        if not self.pass_of_position:
            self.pass_of_position = [None] * len(tokens)
        for position, token in enumerate(tokens):
            if token != self.mask_token_id and self.pass_of_position[position] is None:
                self.pass_of_position[position] = self.num_passes
        self.num_passes += 1
        self.live.update(self.render(tokens), refresh=True)

    def end(self) -> None:
        """Leaves the last drawing to its owner."""

    def render(self, tokens: list[int]) -> Text:
        """
        Args:
            tokens (`list[int]`):
                Answer tokens.

        Returns:
            `rich.text.Text`: The answer in colours, padding left out.
        """
        text = Text()
        special = set(self.tokenizer.all_special_ids)
        for token, unmasked_in in zip(tokens, self.pass_of_position, strict=True):
            if unmasked_in is None:
                text.append(MASK_SIGN, style="dim")
            elif token not in special:
                text.append(self.tokenizer.decode([token]), style=STEP_STYLES[unmasked_in % len(STEP_STYLES)])
        return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument("question", help="what to ask")
    add_model_argument(parser)
    parser.add_argument("--adapter", help="directory or Hub id of a PEFT adapter for the model")
    parser.add_argument("--image", type=Path, action="append", default=[], help="image; may be given several times")
    parser.add_argument("--max-new-tokens", type=int, help="positions of the answer")
    parser.add_argument("--confidence-threshold", type=float, help="unmask every position surer than this")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Runs the command and prints the answer."""
    for image in args.image:
        if not image.is_file():
            raise FileNotFoundError(f"`--image` must be a file (got {image})")
    console = Console()
    if not console.is_terminal or args.json:
        logging.disable_progress_bar()
    with explain_failure(args.model):
        processor = AutoProcessor.from_pretrained(args.model)
        model = AutoModelForImageTextToText.from_pretrained(args.model, dtype="auto")
    if args.adapter is not None:
        model = load_adapter(model, args.adapter)
    model = model.to(args.device).eval()
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": message_content(args.question, args.image)}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(args.device)
    names = ("max_new_tokens", "confidence_threshold")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}

    start = time.perf_counter()
    if console.is_terminal and not args.json and model.config.full_attn_mask:
        with Live(console=console, transient=True, auto_refresh=False) as live:
            streamer = LiveAnswer(processor.tokenizer, model.config.mask_token_id, live)
            output = model.generate(**inputs, **options, streamer=streamer, return_dict_in_generate=True)
    else:
        output = model.generate(**inputs, **options, return_dict_in_generate=True)
    seconds = time.perf_counter() - start

    tokens = output.sequences[0, inputs["input_ids"].shape[1] :]
    report = {
        "model": str(args.model),
        "question": args.question,
        "images": [str(image) for image in args.image],
        "answer": processor.decode(tokens, skip_special_tokens=True),
        # A causal checkpoint makes one pass for each token.
        "passes": output.num_forward_passes.item() if model.config.full_attn_mask else len(tokens),
        "seconds": round(seconds, 3),
    }
    if args.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print(report["answer"])
        print(f"{report['passes']} passes, {seconds:.2f} s", file=sys.stderr)
    return 0


def message_content(question: str, images: list[Path]) -> list[dict[str, str]]:
    """
    Args:
        question (`str`):
            What to ask.
        images (`list[Path]`):
            Images, which come before the question.

    Returns:
        `list[dict[str, str]]`: Content of a chat message.
    """
    return [*({"type": "image", "path": str(image)} for image in images), {"type": "text", "text": question}]
