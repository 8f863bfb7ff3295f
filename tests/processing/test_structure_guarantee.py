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
"""The guarantee of structure priors: whatever the weights and options, the answer validates against the schema.

Random schemas meet random weights under random options of decoding. Some twenty run with the other tests; with `-m
slow` two thousand do.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_config
from jsonschema import Draft202012Validator
from random_schemas import random_schema

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.processing import DimpleProcessor, StructurePrior
from dimple_hf.processing.answer_layout_dimple import CanvasConstraint

#: Longer canvases only cost time.
MAX_POSITIONS = 200


@pytest.fixture(scope="module")
def processor(parity_dir: Path) -> DimpleProcessor:
    return DimpleProcessor.from_pretrained(parity_dir / "tokenizer")


@pytest.fixture(scope="module")
def models(processor: DimpleProcessor) -> list[DimpleForConditionalGeneration]:
    """Four models of random weights, from nearly uniform probabilities to nearly certain ones."""
    tokenizer = processor.tokenizer
    models = []
    for seed, scale in enumerate((0.02, 0.3, 1.0, 3.0)):
        torch.manual_seed(seed)
        config = tiny_config(
            vocab_size=448,  # more than the tokenizer has, as released
            max_position_embeddings=1024,
            initializer_range=scale,
            mask_token_id=tokenizer.mask_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        models.append(DimpleForConditionalGeneration(config).eval())
    return models


#: Rules that unmask positions together, each with options under which random weights make use of it.
RULES: dict[str, dict[str, Any]] = {
    "factor": {"confidence_factor": 3.0},
    "entropy_bound": {"entropy_bound": 4.0},
    "klass": {"confidence_threshold": 0.2, "kl_threshold": 0.5, "kl_history_length": 1},
    "prophet": {"confidence_threshold": None, "gap_thresholds": [2.0, 1.0, 0.5]},
    "wino": {"draft_threshold": 0.2, "verify_threshold": 0.5},
}


def random_options(rng: random.Random) -> dict[str, Any]:
    """
    Options of `generate`, among them few steps, in which positions that exclude each other are committed together.
    """
    rule = rng.choice(("threshold", "threshold", *RULES))
    threshold = rng.choice((0.3, 0.5, 0.7, 0.9, 0.95, 1.0, None))
    options: dict[str, Any] = {
        "sampler": rule,
        "sampler_config": RULES.get(rule, {"confidence_threshold": threshold}),
        "unmasking": rng.choice(("confidence", "margin", "entropy", "random", "left_to_right")),
        "unmasking_schedule": rng.choice(("adaptive", "fixed")),
        "use_cache": rng.random() < 0.5,
        "max_denoising_steps": rng.choice((1, 2, 3, 5, 8, 13)),
    }
    if rng.random() < 0.3:
        # Each block needs a step.
        options["block_length"] = rng.choice((2, 5, 1)) * -(-MAX_POSITIONS // options["max_denoising_steps"])
    if rng.random() < 0.5:
        options |= {"do_sample": True, "temperature": rng.choice((0.5, 1.0, 2.0)), "top_p": rng.choice((0.5, 1.0))}
        options["num_return_sequences"] = rng.choice((1, 2))
    if rng.random() < 0.05:
        del options["max_denoising_steps"]
    return options


def check_random_schemas(
    processor: DimpleProcessor, models: list[DimpleForConditionalGeneration], num_schemas: int, seed: int
) -> int:
    """Answers random schemas in random batches; returns how many answers were checked."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    num_answers = num_done = 0
    while num_done < num_schemas:
        schemas, priors = [], []
        size = rng.choice((1, 1, 2, 4))
        while len(priors) < size:
            schema = random_schema(rng)
            Draft202012Validator.check_schema(schema)
            prior = StructurePrior.from_json_schema(schema, max_items=2, layout=rng.choice(("padded", "compact")))
            try:
                length = len(prior.canvas(processor.tokenizer).ids)
            except ValueError as error:
                assert '`layout` must be "compact"' in str(error)  # noqa: PT017
                continue
            if length <= MAX_POSITIONS:
                schemas.append(schema)
                priors.append(prior)
        inputs = processor(
            text=["question " * index for index in range(1, size + 1)], structure_prior=priors, return_tensors="pt"
        )
        options = random_options(rng)
        output = rng.choice(models).generate(**inputs, **options)
        values = processor.parse(output, priors)
        repeats = options.get("num_return_sequences", 1)
        for index, value in enumerate(values):
            validator = Draft202012Validator(
                schemas[index // repeats], format_checker=Draft202012Validator.FORMAT_CHECKER
            )
            errors = [error.message for error in validator.iter_errors(value)]
            assert not errors, (schemas[index // repeats], value, options)
        num_answers += len(values)
        num_done += size
    return num_answers


def test_answers_of_random_weights_validate_against_random_schemas(
    processor: DimpleProcessor, models: list[DimpleForConditionalGeneration]
) -> None:
    """The guarantee itself, in the ordinary run."""
    assert check_random_schemas(processor, models, num_schemas=20, seed=0) >= 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_answers_of_random_weights_validate_against_two_thousand_schemas(
    processor: DimpleProcessor, models: list[DimpleForConditionalGeneration]
) -> None:
    """The guarantee at the size that the project promises."""
    assert check_random_schemas(processor, models, num_schemas=2000, seed=1) >= 2000


def test_answers_without_accepting_break_the_form(
    processor: DimpleProcessor, models: list[DimpleForConditionalGeneration], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: tokens that are possible one by one are not so together, and then no answer can be read."""
    monkeypatch.setattr(CanvasConstraint, "accept", lambda self, rows, answer, masked, proposed, chosen, conf: chosen)
    prior = StructurePrior.from_json_schema({"type": "integer", "minimum": 95, "maximum": 104})
    inputs = processor(text="question", structure_prior=prior, return_tensors="pt")
    torch.manual_seed(0)
    output = models[0].generate(
        **inputs, max_denoising_steps=1, do_sample=True, num_return_sequences=20, confidence_threshold=None
    )
    with pytest.raises(ValueError, match="must be a complete filling"):
        processor.parse(output, prior)
    # and with it, every one of them is fine
    monkeypatch.undo()
    output = models[0].generate(
        **inputs, max_denoising_steps=1, do_sample=True, num_return_sequences=20, confidence_threshold=None
    )
    assert all(95 <= value <= 104 for value in processor.parse(output, prior))
