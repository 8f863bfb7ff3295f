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
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import FORMS_CHECKPOINT, FORMS_SAMPLE
from .arguments import add_device_argument, add_model_argument, checkpoint_name, default_question, seed_number

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from transformers import PreTrainedModel, ProcessorMixin

HELP = "ask a model about images"

#: Seconds that `--slow` shows each step for.
SLOW_STEP = 0.25

#: Options of `generate` that have an argument of their name.
OPTIONS = ("max_new_tokens", "confidence_threshold", "sampler", "block_length", "temperature")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument("question", nargs="?", help="what to ask (default: to read the form, or describe the image)")
    add_model_argument(parser)
    parser.add_argument("--adapter", type=checkpoint_name, help="directory or Hub id of a PEFT adapter for the model")
    parser.add_argument("--image", type=Path, action="append", default=[], help="image; may be given several times")
    parser.add_argument("--max-new-tokens", type=int, help="positions of the answer")
    parser.add_argument("--confidence-threshold", type=float, help="unmask every position above this confidence")
    parser.add_argument("--sampler", help="rule that unmasks positions; see docs/decoding.md")
    parser.add_argument("--block-length", type=int, help="denoise the answer in blocks, from left to right")
    parser.add_argument("--temperature", type=float, help="draw tokens; 0 (default) takes the most probable ones")
    parser.add_argument("--seed", type=seed_number, help="of the tokens that are drawn")
    parser.add_argument("--slow", action="store_true", help="in a terminal: show each step long enough to be seen")
    add_device_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Runs the command and prints the answer."""
    question, images = resolve_question(args)
    import torch
    from rich.console import Console
    from transformers.utils import logging

    from .loading import load_model, load_processor

    console = Console()
    if not console.is_terminal or args.json:
        logging.disable_progress_bar()
    processor = load_processor(args.model)
    model = load_model(args.model, args.device, args.adapter)
    if images and not args.image:
        print(f"no `--image` is given: reading the sample of the package, {FORMS_SAMPLE}", file=sys.stderr)
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": message_content(question, images)}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    if args.seed is not None:
        torch.manual_seed(args.seed)

    start = time.perf_counter()
    output = generate(model, processor, inputs, args, console)
    seconds = time.perf_counter() - start

    tokens = output.sequences[0, inputs["input_ids"].shape[1] :]
    answer = processor.decode(tokens, skip_special_tokens=True)
    # A causal checkpoint makes one forward pass for each token.
    passes = output.num_forward_passes.item() if model.config.full_attn_mask else len(tokens)
    if args.json:
        report = {
            "model": str(args.model),
            "question": question,
            "images": [str(image) for image in images],
            "answer": answer,
            "passes": passes,
            "seconds": round(seconds, 3),
        }
        if model.config.full_attn_mask:
            report |= answer_confidences(processor, tokens.tolist(), output.token_logprobs[0])
        print(json.dumps(report, ensure_ascii=False))
    else:
        print(answer)
        print(f"{passes} forward pass{'' if passes == 1 else 'es'}, {seconds:.2f} s", file=sys.stderr)
    return 0


def answer_confidences(
    processor: "ProcessorMixin", tokens: list[int], token_logprobs: "torch.Tensor"
) -> dict[str, Any]:
    """
    Args:
        processor ([`DimpleProcessor`]):
            Decodes single tokens.
        tokens (`list[int]`), token_logprobs (`torch.FloatTensor` of shape `(answer_length,)`):
            The answer, and what [`DimpleGenerationOutput`] has about it; NaN after the end.

    Returns:
        `dict[str, Any]`: `confidence`, the probability of the answer if its tokens were independent, and `tokens`, the
        `token` and the `confidence` of each up to the end.
    """
    generated = [(token, logprob) for token, logprob in zip(tokens, token_logprobs, strict=True) if logprob == logprob]
    return {
        "confidence": token_logprobs.nansum().exp().item(),
        "tokens": [{"token": processor.decode([token]), "confidence": p.exp().item()} for token, p in generated],
    }


def resolve_question(args: argparse.Namespace) -> tuple[str, list[Path]]:
    """
    Args:
        args (`argparse.Namespace`):
            With `question`, `image` and `model`.

    Returns:
        `tuple[str, list[Path]]`: What is asked about which images: without any, the package's small model is asked
        about the package's sample.

    Raises:
        ValueError: If an image is a folder, or stands where the question does.
        FileNotFoundError: If an image is no file.
    """
    for image in args.image:
        if os.path.isdir(image):
            raise ValueError(f"`--image` must be a file (got the folder {image}; `dimple-hf extract` reads folders)")
        if not os.path.isfile(image):  # also of a name that is too long for a file
            raise FileNotFoundError(f"`--image` must be a file (got {image})")
    if args.question is not None and os.path.isfile(args.question):
        raise ValueError(
            f"the question must be text (got the file {args.question}); an image is given by `--image {args.question}`"
        )
    images = args.image
    if not images and args.model == str(FORMS_CHECKPOINT):  # which answers about an image only
        images = [FORMS_SAMPLE]
    return args.question or default_question(args.model, "Read the form.", "Describe the image."), images


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `generate` among the arguments that are set; a temperature above 0 draws tokens."""
    options = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    if options.get("temperature") == 0:
        del options["temperature"]
    return options | ({"do_sample": True} if "temperature" in options else {})


def generate(
    model: "PreTrainedModel", processor: "ProcessorMixin", inputs: Any, args: argparse.Namespace, console: "Console"
) -> Any:
    """
    Calls `model.generate`, in a terminal with a drawing of each step.

    Args:
        model ([`DimpleForConditionalGeneration`]), processor ([`DimpleProcessor`]), inputs (`BatchFeature`):
            What answers what.
        args (`argparse.Namespace`):
            Options of decoding and drawing.
        console (`rich.console.Console`):
            Where to draw.

    Returns:
        [`DimpleGenerationOutput`]
    """
    options = generation_options(args) | {"return_dict_in_generate": True}
    if not console.is_terminal or args.json or not model.config.full_attn_mask:
        return model.generate(**inputs, **options)
    from rich.live import Live

    from .live_answer import LiveAnswer

    with Live(console=console, transient=True, auto_refresh=False) as live:
        delay = SLOW_STEP if args.slow else 0.0
        streamer = LiveAnswer(processor.tokenizer, model.config.mask_token_id, live, delay)
        return model.generate(**inputs, **options, streamer=streamer)


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
