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
"""Asks a checkpoint about held-out forms and scores its answers, in confident decoding and one token per pass.

Command:
    python examples/forms/forms_evaluation.py [--model CHECKPOINT] [--rows 200] [--seed 0] [--output scores.json]

Hardware: one CPU core, some minutes. Its functions are also what the benchmarks ask with.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from forms_dataset import QUESTIONS, UNDER_PRIOR, forms_row
from forms_scores import summarize
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from dimple_hf import StructurePrior
from dimple_hf.checkpoints import FORMS_CHECKPOINT

DECODINGS: dict[str, dict[str, Any]] = {
    "confident": {},
    # The reference: the position that the model is surest of, one after the other.
    "one_by_one": {"confidence_threshold": None},
}


@dataclass(frozen=True)
class Answer:
    """
    What a model said.

    Args:
        text (`str`): Its answer, without special tokens.
        num_passes (`int`): Passes of the model.
        num_tokens (`int`): Tokens of the answer, without padding.
    """

    text: str
    num_passes: int
    num_tokens: int


def ask(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int = 1,
    priors: Sequence[StructurePrior] | None = None,
    description: str | None = None,
    **options: Any,
) -> list[Answer]:
    """Asks each row's question about its image.

    Args:
        model (`PreTrainedModel`): In bidirectional mode.
        processor (`ProcessorMixin`): The model's.
        rows (`Sequence[Mapping[str, Any]]`): Rows of `forms_dataset`.
        batch_size (`int`, defaults to 1): Rows of one call of `generate`.
        priors (`Sequence[StructurePrior]`, *optional*): The form of each answer.
        description (`str`, *optional*): What to write before the progress bar; none is shown without it.
        options: Of `generate`.

    Returns:
        `list[Answer]`: One for each row.
    """
    special = torch.tensor(processor.tokenizer.all_special_ids)
    answers: list[Answer] = []
    for start in tqdm(range(0, len(rows), batch_size), desc=description, disable=description is None):
        stop = start + batch_size
        chats = [[chat_turn(row)] for row in rows[start:stop]]
        form = {} if priors is None else {"structure_prior": list(priors[start:stop])}
        inputs = processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            **form,
        ).to(model.device)
        output = model.generate(**inputs, **options, return_dict_in_generate=True)
        tokens = output.sequences[:, inputs["input_ids"].shape[1] :].cpu()
        num_tokens = (~torch.isin(tokens, special)).sum(dim=1).tolist()
        texts = processor.batch_decode(tokens, skip_special_tokens=True)
        answers += map(Answer, texts, output.num_forward_passes.tolist(), num_tokens)
    return answers


def chat_turn(row: Mapping[str, Any]) -> dict[str, Any]:
    """The user's turn of a row, with its image, if it has one, in it."""
    images = [{"type": "image", "image": image} for image in row["images"]]
    return {"role": "user", "content": [*images, {"type": "text", "text": row["question"]}]}


def score(rows: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> dict[str, float]:
    """`summarize`, and `"passes_per_token"`: passes of the model for each token of an answer, padding not counted."""
    scored = (
        (row["kind"], answer.text, row["answer"], json.loads(row["fields"]))
        for row, answer in zip(rows, answers, strict=True)
    )
    num_passes, num_tokens = (
        sum(getattr(answer, name) for answer in answers) for name in ("num_passes", "num_tokens")
    )
    return summarize(scored) | {"passes_per_token": num_passes / max(1, num_tokens)}


def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    num_rows: int,
    batch_size: int,
    description: str | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Scores the first held-out forms of every kind of question.

    Args:
        model, processor, batch_size, description, options: See [`ask`].
        num_rows (`int`): Forms of each kind.
        seed (`int`, defaults to 0): Of `forms_row`: another one gives other forms of the same held-out digits.

    Returns:
        `dict[str, Any]`: The shares of [`score`] over all questions, and `"passes_per_token"` of each kind by name
        (`"text/passes_per_token"`, ...).
    """
    scores: dict[str, Any] = {}
    all_rows, all_answers = [], []
    for kind in QUESTIONS:
        rows = [forms_row("test", index, seed, kind) for index in range(num_rows)]
        form = options
        if kind in UNDER_PRIOR:  # the priors say how long answers are
            form = {name: value for name, value in options.items() if name != "max_new_tokens"}
            form["priors"] = [row["structure_prior"] for row in rows]
        name = f"{description}, {kind}" if description else None
        answers = ask(model, processor, rows, batch_size, description=name, **form)
        scores[f"{kind}/passes_per_token"] = score(rows, answers)["passes_per_token"]
        all_rows += rows
        all_answers += answers
    return dict(sorted((scores | score(all_rows, all_answers)).items()))


def format_scores(reports: Mapping[str, Mapping[str, float]]) -> str:
    """Scores of several decodings side by side, as a Markdown table."""
    names = list(next(iter(reports.values())))
    lines = ["| | " + " | ".join(reports) + " |", "|---|" + "---:|" * len(reports)]
    for name in names:
        values = [report[name] for report in reports.values()]
        shown = [f"{value:.3f}" if name.endswith("passes_per_token") else f"{100 * value:.1f} %" for value in values]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(FORMS_CHECKPOINT), help="checkpoint (default: the one of the package)")
    parser.add_argument("--rows", type=int, default=200, help="held-out forms of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other held-out forms (default: 0)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, help="positions of the answer (default: the checkpoint's)")
    parser.add_argument("--decodings", nargs="+", choices=DECODINGS, default=list(DECODINGS))
    parser.add_argument("--output", type=Path, help="JSON file for the scores")
    args = parser.parse_args(arguments)
    processor = AutoProcessor.from_pretrained(args.model)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=args.dtype).eval()
    length = {} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens}
    reports = {
        name: evaluate(model, processor, args.rows, args.batch_size, name, args.seed, **DECODINGS[name], **length)
        for name in args.decodings
    }
    print(format_scores(reports))
    settings = {"rows": args.rows, "seed": args.seed, "dtype": args.dtype, "batch_size": args.batch_size}
    report = {**settings, **length, "scores": reports}
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    main()
