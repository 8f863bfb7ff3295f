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
"""Decisions on held-out forms: what they cost, what a shared canvas changes, how often they are right and how sure.

Six parts, each a part of the output file, in which other parts stay as they are:

- `speed`: eight questions about one image in one call, against eight calls with one question each; and one call with
  one question. Median of interleaved repetitions, in processor time, which other programs do not change.
- `recording`: how much of a denoising step it takes to note `token_logprobs` and `commit_steps`: with and without, as
  shares of the time of `generate`, in processor time.
- `shared`: probabilities of questions that share a row against `independent=True`.
- `accuracy`: typed questions about forms with known answers, read by the labels of options, in a row that the
  questions of a form share and in a row each, and by the texts of options. The first half of the forms fits one
  temperature for each type of question; the second half is scored with and without it. What is asked is scored over
  all forms.
- `learned`: the same for the questions that the small model has learned to answer by label (`FIXED_OPTIONS`).
- `fields`: numbers read under the forms' schemas. The confidence of a number is the product of the probabilities of
  its tokens when they were committed (`processor.parse(..., return_confidence=True)`).

Command:
    python benchmarks/decisions.py --output benchmarks/results/decisions.json --figure docs/figures/reliability.svg

Hardware: one CPU core, about a quarter of an hour with 1,000 forms.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from decode import describe_machine, write_json
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.decisions import decide
from dimple_hf.decisions.calibration import (
    QUESTION_TYPES,
    draw_reliability,
    fit_calibration,
    score_confidence,
    score_decisions,
)
from dimple_hf.modeling.denoising_dimple import DecodingState

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "forms"))

from forms_data import draw_form, form_rng, render_form
from forms_dataset import forms_row
from forms_decisions import FIXED_OPTIONS, draw_decisions, draw_names
from forms_evaluation import chat_turn

NUM_QUESTIONS = 8
BATCH_SIZE = 20
READINGS: dict[str, dict[str, Any]] = {
    "label": {},
    "label, independent": {"independent": True},
    "text": {"reading": "text"},
}
"""Ways to read an answer, to arguments of [`decide`]."""
PARTS = ("speed", "recording", "shared", "accuracy", "learned", "fields")


def held_out(
    index: int, seed: int, num_questions: int | None = None, known: Sequence[str] | None = None
) -> tuple[Any, list[str], list[Any], list[int]]:
    """Image, names of questions (of `known`, or any), questions and right options of a held-out form."""
    rng = form_rng("test", index, seed)
    form = draw_form("test", rng)
    image = render_form(form, "test", rng)
    names: list[str] = []
    decisions: list[tuple[Any, int]] = []
    while len(decisions) < (num_questions or 1):
        drawn = draw_decisions(form, "test", rng, names=known and draw_names(rng, known))
        names, decisions = names + drawn[0], decisions + drawn[1]
    questions, right = zip(*decisions[:num_questions], strict=True)
    return image, names[:num_questions], list(questions), list(right)


def log_probs(row: Sequence[float]) -> torch.Tensor:
    """Log-probabilities of an answer's options; finite where a probability has no float."""
    return torch.tensor(row).clamp(min=1e-30).log()


def measure_speed(model: Any, processor: Any, args: argparse.Namespace) -> dict[str, float]:
    """Medians in seconds over interleaved repetitions."""
    image, _, questions, _ = held_out(0, args.seed, NUM_QUESTIONS)
    ways: dict[str, Callable[[], Any]] = {
        "together": lambda: decide(model, processor, image, questions),
        "one by one": lambda: [decide(model, processor, image, [question]) for question in questions],
        "one question": lambda: decide(model, processor, image, questions[:1]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(args.repeats + 1):
        for name, run in ways.items():
            start = time.process_time()
            run()
            if repeat:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    pairs = zip(seconds["together"], seconds["one by one"], strict=True)
    return medians | {"together / one by one": statistics.median(together / apart for together, apart in pairs)}


def record_tokens_only(state: DecodingState, *arguments: object) -> None:
    """[`DecodingState.record`] without log-probabilities and steps."""
    state.result.answer_ids[state.rows] = state.answer


def measure_recording(model: Any, processor: Any, args: argparse.Namespace) -> dict[str, float]:
    """Medians over repetitions of the shares of `generate` that the two ways to record take."""
    row = forms_row("test", 0, args.seed, kind="json")
    inputs = processor.apply_chat_template(
        [chat_turn(row)], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    shares: dict[str, list[float]] = {"with": [], "without": []}
    ways = {"with": DecodingState.record, "without": record_tokens_only}
    for repeat in range(args.repeats + 1):
        for name, record in ways.items():
            taken = 0.0

            def timed(*arguments: Any, record: Callable[..., None] = record) -> None:
                nonlocal taken
                start = time.process_time()
                record(*arguments)
                taken += time.process_time() - start

            with patch.object(DecodingState, "record", timed):
                start = time.process_time()
                model.generate(**inputs, max_new_tokens=48)
                total = time.process_time() - start
            if repeat:
                shares[name].append(taken / total)
    medians = {name: statistics.median(values) for name, values in shares.items()}
    return medians | {"difference": medians["with"] - medians["without"]}


def measure_shared(model: Any, processor: Any, args: argparse.Namespace) -> dict[str, float]:
    """Mean and largest difference of probabilities, and how often the most probable option is another."""
    differences, changed = [], []
    for index in tqdm(range(min(args.rows, 100)), desc="shared"):
        image, _, questions, _ = held_out(index, args.seed, NUM_QUESTIONS)
        shared = decide(model, processor, image, questions)
        independent = decide(model, processor, image, questions, independent=True)
        for one, other in zip(shared, independent, strict=True):
            pair = torch.tensor([one.option_probabilities, other.option_probabilities])
            differences.append(float((pair[0] - pair[1]).abs().max()))
            changed.append(bool(pair[0].argmax() != pair[1].argmax()))
    return {
        "mean difference": statistics.mean(differences),
        "largest difference": max(differences),
        "other option": statistics.mean(changed),
    }


def score(examples: Sequence[tuple[Any, list[float], int]]) -> dict[str, Any]:
    """Scores of questions, each with the probabilities of its options and its right one."""
    return score_decisions([row for _, row, _ in examples], [right for *_, right in examples])


def measure_accuracy(
    model: Any, processor: Any, args: argparse.Namespace, known: Sequence[str] | None = None
) -> dict[str, Any]:
    """Scores of all ways to read an answer, to questions of `known` or any."""
    return {reading: measure_reading(model, processor, args, reading, known) for reading in READINGS}


def measure_reading(
    model: Any, processor: Any, args: argparse.Namespace, reading: str, known: Sequence[str] | None
) -> dict[str, Any]:
    """Scores of each type of question, before and after calibration; and the bins of a reliability diagram."""
    examples: list[list[tuple[Any, list[float], int]]] = [[], []]
    of_name: dict[str, list[tuple[Any, list[float], int]]] = {}
    for index in tqdm(range(args.rows), desc=f"accuracy by {reading}"):
        image, names, questions, right = held_out(index, args.seed, known=known)
        permutations = 1 if reading == "text" else args.permutations
        options = READINGS[reading] | {"permutations": permutations, "batch_size": BATCH_SIZE}
        answers = decide(model, processor, image, questions, **options)
        rows = [list(answer.option_probabilities) for answer in answers]
        of_form = list(zip(questions, rows, right, strict=True))
        examples[index >= args.rows // 2] += of_form
        for name, example in zip(names, of_form, strict=True):
            of_name.setdefault(name, []).append(example)
    calibration = fit_calibration([(question, log_probs(row), right) for question, row, right in examples[0]])
    calibrated = [
        (question, (log_probs(row) / calibration.temperature(question)).softmax(dim=0).tolist(), right)
        for question, row, right in examples[1]
    ]
    groups = {"all": examples[1]} | {
        name: [example for example in examples[1] if isinstance(example[0], kind)]
        for kind, name in QUESTION_TYPES.items()
    }
    return {
        "temperatures": dict(calibration.temperatures),
        **{name: score(group) for name, group in groups.items() if group},
        "calibrated": score(calibrated),
        "by question": {
            name: {measure: score(of_name[name])[measure] for measure in ("number", "accuracy")}
            for name in sorted(of_name)
        },
    }


def measure_fields(model: Any, processor: Any, args: argparse.Namespace) -> dict[str, Any]:
    """How sure the model is of the numbers of forms, and how often it is right."""
    confidences, correct = [], []
    for start in tqdm(range(0, args.rows, BATCH_SIZE), desc="fields"):
        rows = [
            forms_row("test", index, args.seed, kind="schema")
            for index in range(start, min(start + BATCH_SIZE, args.rows))
        ]
        priors = [row["structure_prior"] for row in rows]
        inputs = processor.apply_chat_template(
            [[chat_turn(row)] for row in rows], structure_prior=priors,
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True,
        ).to(model.device)  # fmt: skip
        output = model.generate(**inputs, return_dict_in_generate=True)
        values, trees = processor.parse(output, priors, return_confidence=True)
        for row, value, tree in zip(rows, values, trees, strict=True):
            for label, number in json.loads(row["fields"]).items():
                confidences.append(tree[label])
                correct.append(value[label] == number)
    return score_confidence(torch.tensor(confidences), torch.tensor(correct))


def reliability_lines(results: dict[str, Any]) -> dict[str, Any]:
    """What was measured of decisions and of values, by the name of its line in the diagram."""
    lines = {}
    if "fields" in results:
        lines["values of forms"] = results["fields"]["reliability"]
    for reading, scores in results.get("learned", results.get("accuracy", {})).items():
        lines[f"decisions by {reading}, calibrated"] = scores["calibrated"]["reliability"]
    return lines


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the parts and prints what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(FORMS_CHECKPOINT), help="directory or Hub id of a checkpoint")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--rows", type=int, default=1000, help="held-out forms (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the forms (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="of `speed` (default: %(default)s)")
    parser.add_argument("--permutations", type=int, default=1, help="rotated option orders (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--figure", type=Path, help="SVG file for the reliability diagram")
    args = parser.parse_args(arguments)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    measures = {
        "speed": measure_speed,
        "recording": measure_recording,
        "shared": measure_shared,
        "accuracy": measure_accuracy,
        "learned": partial(measure_accuracy, known=FIXED_OPTIONS),
        "fields": measure_fields,
    }
    results: dict[str, Any] = {}
    if args.output is not None and args.output.is_file():
        results = json.loads(args.output.read_text())
    results |= {"machine": describe_machine(model.device), "rows": args.rows, "seed": args.seed}
    for part in args.parts:
        results[part] = measures[part](model, processor, args)
        print(json.dumps({part: results[part]}, indent=2))
    if args.output is not None:
        write_json(args.output, results)
    lines = reliability_lines(results)
    if args.figure is not None and lines:
        draw_reliability(args.figure, lines)
    return results


if __name__ == "__main__":
    main()
