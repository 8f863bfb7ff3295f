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
"""Asks a checkpoint about held-out forms and scores its answers, in confident decoding and one position per pass.

Commands:
    python examples/forms/forms_evaluation.py [--model CHECKPOINT] [--rows 200] [--seed 0] [--output scores.json]
    python examples/forms/forms_evaluation.py --by-wording --decodings confident

The first prints the table of the model card: every kind of question on plain forms, some on rich forms and in held-out
words, with 95 % intervals. The second prints how far the wordings of a question differ from each other.
Hardware: one CPU core, some minutes.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from forms_dataset import KINDS, UNDER_PRIOR, forms_row
from forms_questions import LIST_WORDINGS, WORDINGS, wordings_of
from forms_scores import Points, add_points, summarize, wilson_interval
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from dimple_hf import StructurePrior
from dimple_hf.checkpoints import FORMS_CHECKPOINT

DECODINGS: dict[str, dict[str, Any]] = {
    "confident": {},
    # The reference: the position that the model is surest of, one after the other.
    "one_by_one": {"confidence_threshold": None},
}
GROUPS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind, "words": "all"} for kind in KINDS},
    **{
        f"rich {kind}": {"kind": kind, "words": "all", "rich_share": 1.0}
        for kind in ("text", "json", "shuffled", "field", "decide")
    },
    **{f"held-out words {kind}": {"kind": kind, "words": "held_out"} for kind in WORDINGS},
}
"""Name of a group of questions to arguments of `forms_row`."""


@dataclass(frozen=True)
class Answer:
    """
    What a model answered.

    Args:
        text (`str`): Its answer, without special tokens.
        num_passes (`int`): Forward passes.
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
    """`summarize`, and `"passes_per_token"`: forward passes for each token of an answer, padding not counted."""
    num_passes, num_tokens = (
        sum(getattr(answer, name) for answer in answers) for name in ("num_passes", "num_tokens")
    )
    return summarize(_to_score(rows, answers)) | {"passes_per_token": num_passes / max(1, num_tokens)}


def _to_score(rows: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> Iterator[tuple[str, str, str, Any]]:
    """The arguments of `score_answer`."""
    for row, answer in zip(rows, answers, strict=True):
        yield row["kind"], answer.text, row["answer"], json.loads(row["fields"])


def ask_group(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    num_rows: int,
    batch_size: int,
    seed: int = 0,
    description: str | None = None,
    options: Mapping[str, Any] | None = None,
    **row_arguments: Any,
) -> tuple[Points, float]:
    """Asks about the first held-out forms.

    Args:
        model, processor, batch_size, description: See [`ask`].
        num_rows (`int`): How many.
        seed (`int`, defaults to 0): Another one gives other forms of the same held-out digits.
        options (`Mapping[str, Any]`, *optional*): Of `generate`.
        row_arguments: Of `forms_row`.

    Returns:
        `tuple[Points, float]`: Points by the name of the score, and forward passes for each token.
    """
    rows = [forms_row("test", index, seed, **row_arguments) for index in range(num_rows)]
    form = dict(options or {})
    if row_arguments["kind"] in UNDER_PRIOR:  # the priors say how long answers are
        form.pop("max_new_tokens", None)
        form["priors"] = [row["structure_prior"] for row in rows]
    answers = ask(model, processor, rows, batch_size, description=description, **form)
    points = add_points(_to_score(rows, answers))
    return {name.split("/")[1]: value for name, value in points.items()}, score(rows, answers)["passes_per_token"]


def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    num_rows: int,
    batch_size: int,
    seed: int = 0,
    groups: Sequence[str] = tuple(GROUPS),
    **options: Any,
) -> tuple[Points, dict[str, float]]:
    """Scores the first held-out forms of every group of questions.

    Args:
        model, processor, num_rows, batch_size, seed: See [`ask_group`].
        groups (`Sequence[str]`, defaults to all of `GROUPS`): Names of the groups to ask about.
        options: Of `generate`.

    Returns:
        `tuple[Points, dict[str, float]]`: `"GROUP/SCORE"` to its points, and `"GROUP/passes_per_token"` to its value.
    """
    points: Points = {}
    passes: dict[str, float] = {}
    for group in groups:
        found, passes_per_token = ask_group(
            model, processor, num_rows, batch_size, seed, group, options, **GROUPS[group]
        )
        points |= {f"{group}/{name}": value for name, value in found.items()}
        passes[f"{group}/passes_per_token"] = passes_per_token
    return points, passes


def evaluate_wordings(
    model: PreTrainedModel, processor: ProcessorMixin, num_rows: int, batch_size: int, seed: int = 0, **options: Any
) -> dict[str, dict[str, float]]:
    """Asks about the same forms in each wording of a question.

    Args:
        model, processor, num_rows, batch_size, seed, options: See [`evaluate`].

    Returns:
        `dict[str, dict[str, float]]`: Kind of question to the share of right answers (whole forms, or exact) by
        wording, those of training first.
    """
    scores: dict[str, dict[str, float]] = {}
    for kind in (*WORDINGS, *LIST_WORDINGS):
        scores[kind] = {}
        wordings, held_out = wordings_of(kind)
        for number, wording in enumerate((*wordings, *held_out)):
            points, _ = ask_group(
                model, processor, num_rows, batch_size, seed, f"{kind} {number}", options, kind=kind, words=number
            )
            right, possible = points["whole" if "whole" in points else "exact"]
            scores[kind][wording] = right / possible
    return scores


def format_scores(report: Mapping[str, Any]) -> str:
    """What [`main`] returns, as a Markdown table: decodings side by side, shares with their 95 % intervals."""
    scores: Mapping[str, Mapping[str, float]] = report["scores"]
    lines = ["| score | cases | " + " | ".join(scores) + " |", "|---|---:|" + "---:|" * len(scores)]
    for name in next(iter(scores.values())):
        cases = report["cases"].get(name)
        values = [of_decoding[name] for of_decoding in scores.values()]
        cells = [f"{value:.3f}" if cases is None else format_share(round(value * cases), cases) for value in values]
        lines.append(f"| {name} | {'' if cases is None else cases} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_share(points: int, possible: int) -> str:
    """A share with its 95 % interval, for example `"99.0 % (96.4 to 99.7)"`."""
    low, high = wilson_interval(points, possible)
    return f"{100 * points / possible:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def format_wordings(scores: Mapping[str, Mapping[str, float]]) -> str:
    """How far the wordings of each kind of question differ, as a Markdown table."""
    lines = ["| question | worst and best wording of training | mean | worst and best held-out wording | mean |"]
    lines.append("|---|---:|---:|---:|---:|")
    for kind, by_wording in scores.items():
        shares = [100 * share for share in by_wording.values()]
        num_training = len(wordings_of(kind)[0])
        parts = shares[:num_training], shares[num_training:]
        cells = [f"{min(part):.1f} to {max(part):.1f} % | {sum(part) / len(part):.1f} %" for part in parts]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(FORMS_CHECKPOINT), help="checkpoint (default: the one of the package)")
    parser.add_argument("--rows", type=int, default=200, help="held-out forms of each group (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other held-out forms (default: 0)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, help="positions of the answer (default: the checkpoint's)")
    parser.add_argument("--decodings", nargs="+", choices=DECODINGS, default=list(DECODINGS))
    parser.add_argument(
        "--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="of questions (default: all)"
    )
    parser.add_argument("--by-wording", action="store_true", help="score each wording of a question by itself")
    parser.add_argument("--output", type=Path, help="JSON file for the scores")
    args = parser.parse_args(arguments)
    processor = AutoProcessor.from_pretrained(args.model)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=args.dtype).eval()
    length = {} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens}
    settings = {"rows": args.rows, "seed": args.seed, "dtype": args.dtype, "batch_size": args.batch_size, **length}
    common = model, processor, args.rows, args.batch_size, args.seed
    report: dict[str, Any]
    if args.by_wording:
        wordings = {name: evaluate_wordings(*common, **DECODINGS[name], **length) for name in args.decodings}
        print("\n\n".join(format_wordings(scores) for scores in wordings.values()))
        report = settings | {"wordings": wordings}
    else:
        reports = {name: evaluate(*common, args.groups, **DECODINGS[name], **length) for name in args.decodings}
        shares = {
            name: {score: right / possible for score, (right, possible) in points.items()} | passes
            for name, (points, passes) in reports.items()
        }
        cases = {score: possible for score, (_, possible) in next(iter(reports.values()))[0].items()}
        report = settings | {"cases": cases, "scores": shares}
        print(format_scores(report))
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    main()
