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
"""What a batch answers is what each of its rows answers alone, and one bad row harms no other."""

import math
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from forms_dataset import forms_row
from pydantic import BaseModel, field_validator
from transformers import PreTrainedModel, ProcessorMixin

from dimple_hf import StructurePrior
from dimple_hf.batch.answers import Answerer, answer_batches, prepare
from dimple_hf.batch.prompts import Prompt, PromptReader, make_prompt

OPTIONS = {"max_new_tokens": 6, "confidence_threshold": None}
NAMES = ("floor", "price", "table")
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}}}


@pytest.fixture(scope="module")
def prompts(processor: ProcessorMixin) -> list[Prompt]:
    rows = [forms_row("test", index, kind=kind) for index, kind in enumerate(("text", "json", "field", "rows"))]
    return [make_prompt({"row": index}, row, processor) for index, row in enumerate(rows)]


def alone(model: PreTrainedModel, processor: ProcessorMixin, prompt: Prompt, **options: Any) -> dict[str, Any]:
    """A plain call of `generate`."""
    inputs = processor(text=prompt.text, images=prompt.images, return_tensors="pt")
    output = model.generate(**inputs, **options, return_dict_in_generate=True)
    tokens = output.sequences[0, inputs["input_ids"].shape[1] :]
    return {
        "answer": processor.decode(tokens, skip_special_tokens=True),
        "passes": output.num_forward_passes.item(),
    }


def test_answers_are_those_of_plain_calls(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: list[Prompt]
) -> None:
    """Options that are `None` are the model's; prompts of different lengths share a batch."""
    answerer = Answerer(model, processor, options=OPTIONS)
    lines = answerer.answer(prompts)
    assert lines == [alone(model, processor, prompt, max_new_tokens=6) for prompt in prompts]
    assert len({len(processor.tokenizer(prompt.text)["input_ids"]) for prompt in prompts}) > 1
    assert len({line["answer"] for line in lines}) > 1  # control
    assert answerer.generate(prepare(prompts, processor)) == lines
    assert answerer.answer([]) == []


def test_rows_of_a_batch_about_one_image_encode_it_once(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: list[Prompt]
) -> None:
    """In each batch anew: what a batch answers must not depend on the batches before it."""
    row = forms_row("test", 0)
    images: list[int] = []
    hook = model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: images.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    try:
        questions = [dict(row, messages=[{"role": "user", "content": f"<image>Read the {name}."}]) for name in NAMES]
        asked = [make_prompt({"row": index}, question, processor) for index, question in enumerate(questions)]
        answerer = Answerer(model, processor, options=OPTIONS)
        lines = answerer.answer(asked)
        assert images == [1]
        answerer.answer(asked[:1])
        assert images == [1, 1]
        answerer.answer([asked[0], prompts[1]])
        assert images == [1, 1, 2]  # control
    finally:
        hook.remove()
    assert lines == [alone(model, processor, prompt, max_new_tokens=6) for prompt in asked]


def test_answers_are_greedy_whatever_the_model_says(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint may ask for sampling, which would make answers depend on the batch."""
    greedy = Answerer(model, processor, options=OPTIONS).answer(prompts)
    monkeypatch.setattr(model.generation_config, "do_sample", True)
    monkeypatch.setattr(model.generation_config, "temperature", 5.0)
    assert Answerer(model, processor, options=OPTIONS).answer(prompts) == greedy
    sampled = [alone(model, processor, prompt, max_new_tokens=6) for prompt in prompts]
    assert sampled != greedy  # control


def test_answers_under_a_prior_are_its_values(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: list[Prompt]
) -> None:
    """The canvas is the prior's, and what comes out is what it reads."""
    prior = StructurePrior.from_json_schema(SCHEMA | {"required": ["age"]})
    lines = Answerer(model, processor, prior).answer(prompts[:2])
    assert [set(line) for line in lines] == [{"value", "passes"}] * 2
    assert all(0 <= line["value"]["age"] <= 99 for line in lines)


def test_confidence_is_that_of_all_generated_tokens(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: list[Prompt]
) -> None:
    """Their product, from `token_logprobs`; the rest of each line stays as it is."""
    lines = Answerer(model, processor, options=OPTIONS, return_confidence=True).answer(prompts[:2])
    plain = Answerer(model, processor, options=OPTIONS).answer(prompts[:2])
    assert [{name: line[name] for name in ("answer", "passes")} for line in lines] == plain
    assert ["confidence" in line for line in plain] == [False, False]  # control
    inputs = prepare(prompts[:2], processor)
    output = model.generate(**inputs, max_new_tokens=6, return_dict_in_generate=True)
    for line, logprobs in zip(lines, output.token_logprobs.tolist(), strict=True):
        expected = math.prod(math.exp(logprob) for logprob in logprobs if not math.isnan(logprob))
        assert line["confidence"] == pytest.approx(expected, rel=1e-4)
        assert 0 < line["confidence"] < 1


def test_confidence_under_a_prior_is_a_tree_of_its_values(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: list[Prompt]
) -> None:
    """That of `parse`."""
    prior = StructurePrior.from_json_schema(SCHEMA | {"required": ["age"]})
    lines = Answerer(model, processor, prior, return_confidence=True).answer(prompts[:2])
    assert [set(line) for line in lines] == [{"value", "confidence", "passes"}] * 2
    assert all(0 < line["confidence"]["age"] < 1 for line in lines)
    text = [prompt.text for prompt in prompts[:2]]
    inputs = processor(text=text, images=[p.images for p in prompts[:2]], structure_prior=prior, return_tensors="pt")
    _, expected = processor.parse(
        model.generate(**inputs, return_dict_in_generate=True), [prior, prior], return_confidence=True
    )
    for line, tree in zip(lines, expected, strict=True):
        assert line["confidence"] == pytest.approx(tree, rel=1e-4)


class Age(BaseModel):
    """An age that its class may refuse."""

    age: int
    refuses: ClassVar[bool] = False

    @field_validator("age")
    @classmethod
    def check(cls, age: int) -> int:
        if cls.refuses:
            raise ValueError("too old")
        return age


@pytest.mark.parametrize("return_confidence", [False, True])
def test_value_that_its_class_refuses_is_a_line_with_an_error(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: list[Prompt], return_confidence: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """`parse` returns the exception as the value."""
    answerer = Answerer(model, processor, StructurePrior.from_json_schema(Age), return_confidence=return_confidence)
    (line,) = answerer.answer(prompts[:1])
    assert isinstance(line["value"], Age)  # control
    monkeypatch.setattr(Age, "refuses", True)
    (line,) = answerer.answer(prompts[:1])
    assert set(line) == {"error", "passes"}
    assert "too old" in line["error"]


def test_confidence_in_causal_mode_is_refused(
    model: PreTrainedModel, processor: ProcessorMixin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is answered."""
    monkeypatch.setattr(model.config, "full_attn_mask", False)
    with pytest.raises(ValueError, match="confidences must be read in bidirectional mode"):
        Answerer(model, processor, return_confidence=True)


def test_answers_in_causal_mode_have_no_passes(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers' own decoding does not count them."""
    monkeypatch.setattr(model.config, "full_attn_mask", False)
    assert [set(line) for line in Answerer(model, processor, options=OPTIONS).answer(prompts[:2])] == [{"answer"}] * 2


def test_bad_prompt_is_found_and_the_others_are_answered(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: list[Prompt]
) -> None:
    """Whatever processor or model refuse: a placeholder too many, the mask token, an image like a thread, no room."""
    answerer = Answerer(model, processor, options=OPTIONS)
    prompts = prompts[:2]
    good = answerer.answer(prompts)
    text = prompts[0].text
    bad = {
        "must match the <|image_pad|> placeholders": replace(prompts[0], text=text + processor.image_token),
        "must not hold the mask token": replace(prompts[0], text=text + processor.tokenizer.mask_token),
        "sides of a ratio of at most 200 to 1": replace(prompts[0], images=[prompts[0].images[0].resize((2001, 10))]),
        "must fit `max_position_embeddings`": replace(prompts[0], text=text + " a" * 40000),
    }
    for reason, prompt in bad.items():
        first, refused, second = answerer.answer([prompts[0], prompt, prompts[1]])
        assert reason in refused["error"]
        assert [first, second] == good


class Reader(PromptReader):
    """Prompts that are there already."""

    def __init__(self, prompts: list[Prompt], processor: ProcessorMixin) -> None:
        super().__init__([], processor)
        self.prompts = [replace(prompt, row=row) for row, prompt in enumerate(prompts)]

    def read(self, index: int) -> Prompt:
        return self.prompts[index]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_answer_batches_has_a_line_for_each_prompt(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: list[Prompt], num_workers: int
) -> None:
    """In the order of the batches, labels first; prompts with an error are not asked. Workers change nothing."""
    bad = Prompt({"row": 4}, error="broken")
    refused = replace(prompts[1], text=prompts[1].text + processor.image_token)
    answerer = Answerer(model, processor, options=OPTIONS)
    reader = Reader([prompts[0], refused, prompts[2], prompts[3], bad], processor)
    batches = [[2, 4, 0], [4], [1, 3]]
    found = list(answer_batches(answerer, reader, batches, num_workers))
    (third, broken, first), only, (other, last) = found
    expected = answerer.answer(prompts)
    assert [third, first, last] == [{"row": row} | expected[row] for row in (2, 0, 3)]
    assert broken == {"row": 4, "error": "broken"}
    assert only == [broken]
    assert other["row"] == 1
    assert "placeholders" in other["error"]


def test_answer_batches_raises_what_reading_a_row_raises(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: list[Prompt]
) -> None:
    """Here, and not in a worker where nobody sees it."""
    batches = answer_batches(Answerer(model, processor), Reader(prompts, processor), [[9]], num_workers=1)
    with pytest.raises(IndexError):
        next(batches)
