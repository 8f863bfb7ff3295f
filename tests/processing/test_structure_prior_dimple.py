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
"""Structure priors from end to end: templates, slots, batches of different forms, and what `parse` makes of them."""

import datetime
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from helpers import tiny_config
from safetensors.torch import load_file
from transformers import AutoModel, LogitsProcessor

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.processing import DimpleProcessor, DimpleTokenizer, OptionalPart, RepeatedPart, Slot, StructurePrior

REASONING = "Reasoning: {reasoning:12}\nThe answer is {answer:4}."


@pytest.fixture(scope="module")
def model(parity_dir: Path) -> DimpleForConditionalGeneration:
    """Random weights after the toy tokenizer, with confidences all over the range."""
    tokenizer = DimpleTokenizer.from_pretrained(parity_dir / "tokenizer")
    torch.manual_seed(0)
    config = tiny_config(
        vocab_size=448,
        max_position_embeddings=1024,
        initializer_range=0.5,
        mask_token_id=tokenizer.mask_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        image_token_id=427,
    )
    return DimpleForConditionalGeneration(config).eval()


def inputs_of(processor: DimpleProcessor, prior: Any, *questions: str) -> Any:
    return processor(text=list(questions), structure_prior=prior, return_tensors="pt")


class PreferPadding(LogitsProcessor):
    """Raises the scores of the padding, as a model does that has little to say."""

    def __init__(self, amount: float) -> None:
        self.amount = amount

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = scores.clone()
        scores[:, 420] += self.amount
        return scores


def canvas_text(prior: StructurePrior, tokenizer: DimpleTokenizer) -> str:
    """The fixed text of a prior, with `_` for gaps."""
    canvas = prior.canvas(tokenizer)
    texts = ["_" if i == canvas.vocabulary.mask_id else canvas.text([i]) for i in canvas.ids]
    return "".join(texts)


# Templates


def test_template_positions_its_text_and_leaves_positions_for_slots(tokenizer: DimpleTokenizer) -> None:
    """The space before a word belongs to the word's token, so the slot takes it; the text decodes exactly all the
    same."""
    prior = StructurePrior.from_template(REASONING)
    assert canvas_text(prior, tokenizer) == "Reasoning:" + "_" * 12 + "\nThe answer is" + "_" * 4 + "."
    canvas = prior.canvas(tokenizer)
    encode, padding = canvas.vocabulary.encode, canvas.vocabulary.pad_id
    reasoning, answer = encode(" three the"), encode(" five")
    ids = [*encode("Reasoning:"), *reasoning, *[padding] * (12 - len(reasoning)), *encode("\nThe answer is")]
    ids += [*answer, *[padding] * (4 - len(answer)), *encode(".")]
    assert prior.read(tokenizer, ids) == {"reasoning": "three the", "answer": "five"}
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Reasoning: three the\nThe answer is five."


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("do_sample", [True, False])
def test_answer_reads_back_as_the_text_that_was_asked(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration, use_cache: bool, do_sample: bool
) -> None:
    """The exact template with the values in it: nothing lost at the borders of tokens, no padding in sight."""
    prior = StructurePrior.from_template(REASONING)
    inputs = inputs_of(processor, prior, "question")
    sequences = model.generate(**inputs, use_cache=use_cache, do_sample=do_sample)
    values = processor.parse(sequences, prior)
    text = processor.tokenizer.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == REASONING.replace(":12", "").replace(":4", "").format(**values)


@pytest.mark.parametrize(
    ("slot", "kind"), [("int", int), ("float", (int, float)), ("bool", bool), ("date", datetime.date), ("4:str", str)]
)
def test_slot_of_a_type_reads_as_a_value_of_it(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration, slot: str, kind: Any
) -> None:
    """Five samples of random weights each; the type and its spelling are sure."""
    prior = StructurePrior.from_template(f"x = {{x:{slot}}};")
    output = model.generate(**inputs_of(processor, prior, "question"), do_sample=True, num_return_sequences=5)
    values = processor.parse(output, prior)
    assert len(values) == 5
    assert all(isinstance(value["x"], kind) for value in values)


def test_slots_with_choices_and_patterns_hold_nothing_else(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration
) -> None:
    """Described beside the template, as objects, as dicts, or with a length inside it."""
    prior = StructurePrior.from_template(
        "{colour} {code:6}-{n}",
        slots={
            "colour": Slot(choices=["red", "dark green"]),
            "code": {"pattern": "[A-F]+"},
            "n": Slot(type=int, length=2),
        },
    )
    output = model.generate(**inputs_of(processor, prior, "question"), do_sample=True, num_return_sequences=8)
    for value in processor.parse(output, prior):
        assert value["colour"] in ("red", "dark green")
        assert 1 <= len(value["code"]) <= 6
        assert set(value["code"]) <= set("ABCDEF")
        assert -9 <= value["n"] <= 99


def test_range_of_length_asks_for_that_many_tokens(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration
) -> None:
    """`{x:3-5}`: paddings never before the fourth position, and never more than two."""
    padding = processor.tokenizer.pad_token_id
    counts = {}
    for length in ("3-5", "5-5", "0-5"):
        prior = StructurePrior.from_template(f"{{x:{length}}}")
        inputs = inputs_of(processor, prior, "question")
        output = model.generate(
            **inputs,
            do_sample=True,
            num_return_sequences=16,
            max_denoising_steps=2,
            logits_processor=[PreferPadding(100)],
        )
        counts[length] = (output[:, -5:] != padding).sum(dim=1)
    assert counts["3-5"].unique().tolist() == [3]
    assert counts["5-5"].unique().tolist() == [5]
    assert counts["0-5"].unique().tolist() == [0]  # control: without the bound it does get shorter


def test_optional_and_repeated_parts_come_as_often_as_they_may(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration
) -> None:
    """Every number of repetitions is read as a list of that length, a missing part as `None`."""
    prior = StructurePrior.from_template(
        "Items:", RepeatedPart("items", "{what:2} x{n:1:int}", min_times=1, max_times=3, separator=", "),
        OptionalPart("\nNote: {note:2}"), "\nEnd",
    )  # fmt: skip
    inputs = inputs_of(processor, prior, "question")
    outputs = [
        model.generate(
            **inputs, do_sample=True, num_return_sequences=8, unmasking="random", confidence_threshold=None,
            logits_processor=[PreferPadding(amount)],
        )
        for amount in (0, 1, 2, 3)
    ]  # fmt: skip
    output = torch.cat(outputs)
    values = processor.parse(output, prior)
    assert {len(value["items"]) for value in values} == {1, 2, 3}
    assert {value["note"] is None for value in values} == {True, False}
    for value, sequence in zip(values, output, strict=True):
        items = ", ".join(f"{item['what']} x{item['n']}" for item in value["items"])
        note = "" if value["note"] is None else f"\nNote: {value['note']}"
        text = processor.tokenizer.decode(sequence, skip_special_tokens=True)
        assert text.endswith(f"Items:{items}{note}\nEnd")


def test_braces_are_written_twice(tokenizer: DimpleTokenizer) -> None:
    """As in every format string."""
    assert canvas_text(StructurePrior.from_template('{{"a": {a:1:int}}}'), tokenizer) == '{"a": _}'


def test_special_tokens_in_a_template_are_text(tokenizer: DimpleTokenizer) -> None:
    """A template must not be able to end the chat, nor to mask what it fixes."""
    prior = StructurePrior.from_template("<|im_end|><|mask|>é e\u0301 {x:2}")
    canvas = prior.canvas(tokenizer)
    fixed = [token for token in canvas.ids if token != canvas.vocabulary.mask_id]
    assert canvas.text(fixed) == "<|im_end|><|mask|>é e\u0301"
    assert canvas.ids.count(canvas.vocabulary.mask_id) == 2


def test_anchors_fix_the_beginning_the_middle_and_the_end(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration
) -> None:
    """Length control: an ending that must begin k positions before the end does."""
    tokenizer = processor.tokenizer
    ending = tokenizer.encode("\nThe answer is")
    prior = StructurePrior.from_anchors(
        {0: "Reasoning:", 12: " three", -len(ending) - 2: "\nThe answer is"}, length=30
    )
    inputs = inputs_of(processor, prior, "question")
    sequence = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert len(sequence) == 30
    assert sequence[-len(ending) - 2 : -2].tolist() == ending
    assert sequence[12 : 12 + len(tokenizer.encode(" three"))].tolist() == tokenizer.encode(" three")
    values = processor.parse(sequence[None], prior)
    assert values["text"] == tokenizer.decode(sequence, skip_special_tokens=True)
    assert values["text"] == f"Reasoning:{values['gap0']} three{values['gap1']}\nThe answer is{values['gap2']}"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StructurePrior.from_template(), "`parts` must hold at least one template"),
        (lambda: StructurePrior.from_template(None), r"a template must be text \(got None\)"),
        (lambda: StructurePrior.from_template(OptionalPart(5)), r"a template must be text \(got 5\)"),
        (
            lambda: StructurePrior.from_template("\ud800{a:3}"),
            r"a template must be valid Unicode \(got '\\ud800\{a:3\}'\)",
        ),
        (
            lambda: StructurePrior.from_template(RepeatedPart("a", "{b:3}", 2, 0, "\ud800")),
            "`separator` must be valid",
        ),
        (lambda: StructurePrior.from_anchors({0: "\ud800"}, 8), "an anchor must be valid Unicode"),
        (lambda: StructurePrior.from_anchors({0: None}, 8), r"an anchor must be text \(got None\)"),
        (lambda: Slot(choices=["\ud800"]), "a choice must be valid Unicode"),
        (lambda: StructurePrior.from_template("{a:3} {a:4}"), r"each name must come once \(got 'a' twice\)"),
        (lambda: StructurePrior.from_template("{a:3}", OptionalPart("{a:3}")), "each name must come once"),
        (lambda: StructurePrior.from_template("{a:3}", RepeatedPart("a", "{b:3}", 2)), "each name must come once"),
        (lambda: StructurePrior.from_template(RepeatedPart("a", "{b:3}", 2), "{a:3}"), "each name must come once"),
        (lambda: StructurePrior.from_template(RepeatedPart("a", "x", 2)), "'a' must have a slot"),
        (lambda: StructurePrior.from_template("{a:0}"), r"slot 'a': `length` must be at least 1 token.*got 0"),
        (lambda: StructurePrior.from_template("{a:4-0}"), "slot 'a': `length` must be at least 1 token"),
        (lambda: StructurePrior.from_template("{a:4-3}"), "slot 'a': `length` must not be a range upside down"),
        (lambda: StructurePrior.from_template("{a}"), r"slot 'a' must have a length, as in \{a:16\}"),
        (lambda: StructurePrior.from_template("{a:long}"), "slot 'a' must be followed by a length .*got 'long'"),
        (lambda: StructurePrior.from_template("{:3}"), r"must name its slots, as \{name:8\} \(got ''"),
        (lambda: StructurePrior.from_template("{a.b:3}"), "must name its slots"),
        (lambda: StructurePrior.from_template("{a!r:3}"), "must name its slots"),
        (lambda: StructurePrior.from_template("{a:3"), "must be text with slots"),
        (lambda: StructurePrior.from_template("{a:3}", slots={"b": Slot(3)}), r"must name slots .*\['b'\]"),
        (lambda: StructurePrior.from_template("{a:3}", slots={"a": {"size": 3}}), "slot 'a': .*size"),
        (lambda: Slot(length=(1, 2, 3)), "`length` must be at least 1 token"),
        (lambda: Slot(type="text"), r"`type` must be one of str, int, float, bool, date \(got 'text'\)"),
        (lambda: Slot(type=dict), "`type` must be one of"),
        (lambda: Slot(choices=["a"], pattern="b"), "only one of `choices`, `pattern` and a `type`"),
        (lambda: Slot(choices=[]), "`choices` must be a list of at least one text"),
        (lambda: Slot(choices="ab"), "`choices` must be a list of at least one text"),
        (lambda: Slot(choices=["a", ""]), "`choices` must be texts that are not empty"),
        (lambda: Slot(choices=["a", "a"]), "`choices` must differ"),
        (lambda: RepeatedPart("a", "{b:3}", max_times=0), "must satisfy 0 <= min_times <= max_times"),
        (lambda: RepeatedPart("a", "{b:3}", min_times=3, max_times=2), "must satisfy 0 <= min_times <= max_times"),
        (lambda: StructurePrior.from_anchors({}, length=0), "`length` must be an integer >= 1"),
        (lambda: StructurePrior.from_anchors({8: "x"}, length=8), r"different positions of 8 \(got 8\)"),
        (lambda: StructurePrior.from_anchors({-9: "x"}, length=8), r"different positions of 8 \(got -9\)"),
        (lambda: StructurePrior.from_anchors({7: "x", -1: "y"}, length=8), r"different positions of 8 \(got -1\)"),
        (lambda: StructurePrior.from_anchors({0: "x"}, length=None), r"`length` must be an integer >= 1 \(got None\)"),
        (
            lambda: StructurePrior.from_anchors({"x": "y"}, length=8),
            r"`anchors` must be a dict from positions to texts",
        ),
        (lambda: StructurePrior.from_anchors(None, length=8), r"`anchors` must be a dict .* \(got None\)"),
        (lambda: StructurePrior.from_template("{a}", slots=[1]), r"`slots` must be a dict .* \(got \[1\]\)"),
        (lambda: Slot(pattern=5), r"`pattern` must be text \(got 5\)"),
        (lambda: Slot(length=2.5), r"`length` must be a number of tokens, or a range of such \(got 2.5\)"),
        (lambda: Slot(choices=iter("ab")), "`choices` must be a list of at least one text"),
        (
            lambda: StructurePrior.from_json_schema({}, max_tokens="x"),
            r"`max_tokens` must lie between 1 .* \(got 'x'\)",
        ),
    ],
)
def test_bad_template_is_refused_when_it_is_made(build: Callable[[], object], message: str) -> None:
    """Long before a model is loaded, and with the name of the slot."""
    with pytest.raises(ValueError, match=message):
        build()


def test_prior_survives_pickling(processor: DimpleProcessor) -> None:
    """A data loader that starts new processes pickles the examples, which may have priors that are already in use."""
    prior = StructurePrior.from_json_schema({"type": "object", "properties": {"a": {"type": "integer"}}})
    canvas = prior.canvas(processor.tokenizer)
    assert pickle.loads(pickle.dumps(prior)).canvas(processor.tokenizer).ids == canvas.ids


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (
            lambda: StructurePrior.from_template("{a:2}", slots={"a": Slot(choices=["x", "qqqqq"])}),
            r"slot 'a' must be as long as its choice 'qqqqq', 5 tokens \(got 2\)",
        ),
        (
            lambda: StructurePrior.from_template("{a:3}", slots={"a": Slot(pattern=r"\d{5,}")}),
            "slot 'a' must be longer: nothing that it may hold has between 0 and 3 tokens",
        ),
        (
            lambda: StructurePrior.from_template("{a:5-9}", slots={"a": Slot(pattern="x{2}")}),
            "slot 'a' must be longer: nothing that it may hold has between 5 and 9 tokens",
        ),
        (
            lambda: StructurePrior.from_template("{a}", slots={"a": Slot(pattern="x+")}),
            "slot 'a' must have a length in tokens",
        ),
        (
            lambda: StructurePrior.from_template("{a:3}", slots={"a": Slot(pattern="(")}),
            "slot 'a': the pattern must be",
        ),
        (lambda: StructurePrior.from_template(""), "must hold at least one token"),
        (lambda: StructurePrior.from_template("{a:9000}"), "must need at most 8192 tokens"),
        (
            lambda: StructurePrior.from_anchors({0: "Reasoning: long", 1: "x"}, length=9),
            "the text before 'x' must begin before position 1",
        ),
        (
            lambda: StructurePrior.from_json_schema(
                {"type": "string", "pattern": "^x{9}$", "x-max-tokens": 4}, layout="padded"
            ),
            r"\$ must be longer: nothing that it may hold has between 0 and 4 tokens",
        ),
    ],
)
def test_prior_that_cannot_hold_its_values_is_refused_with_the_tokenizer(
    processor: DimpleProcessor, prior: Callable[[], StructurePrior], message: str
) -> None:
    """What depends on tokens shows when the inputs are made, still before the model."""
    with pytest.raises(ValueError, match=message):
        inputs_of(processor, prior(), "question")


# With the processor and the model


def test_processor_adds_the_canvases_of_all_rows(processor: DimpleProcessor) -> None:
    """The exact tensors: shorter canvases are padded and hidden, free rows are as long as the longest."""
    number = StructurePrior.from_template("={n:2:int}")
    word = StructurePrior.from_template("{w}", slots={"w": Slot(choices=["a"])})
    inputs = inputs_of(processor, [number, word, None], "one", "two", "three")
    mask, pad, equals = 423, 420, processor.tokenizer.encode("=")[0]
    assert inputs["answer_ids"].tolist() == [[equals, mask, mask], [mask, pad, pad], [mask, mask, mask]]
    assert inputs["answer_attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 1]]
    assert inputs["answer_constraint"].constrained_rows.tolist() == [True, True, False]
    same = inputs_of(processor, number, "one", "two")
    assert same["answer_ids"].tolist() == [[equals, mask, mask]] * 2
    assert "answer_attention_mask" not in same
    assert "answer_ids" not in processor(text="one", return_tensors="pt")  # control
    assert processor(text="one", structure_prior=number, return_tensors="pt").to("cpu")["answer_ids"].shape == (1, 3)


@pytest.mark.parametrize("use_cache", [True, False])
def test_rows_with_different_priors_equal_the_rows_alone(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration, use_cache: bool
) -> None:
    """A neighbour's form, its length and its number of steps change nothing."""
    priors = [
        StructurePrior.from_template(REASONING),
        StructurePrior.from_json_schema({"type": "array", "items": {"type": "integer"}, "maxItems": 2}),
        StructurePrior.from_template("{x}", slots={"x": Slot(choices=["red", "green", "blue"])}),
        None,
    ]
    questions = ["one two three", "four", "five six", "seven"]
    options = {"use_cache": use_cache, "confidence_threshold": 0.5, "return_dict_in_generate": True}
    together = model.generate(**inputs_of(processor, priors, *questions), **options)
    values = processor.parse(together, priors)
    for row, (prior, question) in enumerate(zip(priors, questions, strict=True)):
        if prior is None:
            length = together.sequences.shape[1] - inputs_of(processor, priors, *questions)["input_ids"].shape[1]
            alone = model.generate(**processor(text=question, return_tensors="pt"), max_new_tokens=length, **options)
            assert alone.sequences[0, -length:].tolist() == together.sequences[row, -length:].tolist()
            continue
        alone = model.generate(**inputs_of(processor, prior, question), **options)
        assert processor.parse(alone, prior) == values[row]
        assert alone.num_forward_passes[0] == together.num_forward_passes[row]
        assert alone.tokens_per_forward[0] == together.tokens_per_forward[row]
    assert len(set(together.num_forward_passes.tolist())) > 1  # control: rows do leave the batch at different times


def test_positions_with_one_possible_token_are_unmasked_at_once(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration
) -> None:
    """Confidences are taken under the constraint: what is certain passes every threshold below 1."""
    prior = StructurePrior.from_template(OptionalPart("The answer is five"), "{x:1:int}")
    inputs = inputs_of(processor, prior, "question")
    output = model.generate(**inputs, confidence_threshold=0.99, return_dict_in_generate=True, output_history=True)
    length = inputs["answer_ids"].shape[1]
    masked = [(step[0, -length:] == 423).sum().item() for step in output.history]
    # The first decided position decides whether the text stands there, and so all of it.
    assert output.num_forward_passes[0] < length // 2
    assert masked[-1] == 0


def test_several_sequences_are_read_by_the_priors_of_their_inputs(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration
) -> None:
    """Three sequences for each of two prompts, in the order of `generate`."""
    priors = [StructurePrior.from_template("{n:int}"), StructurePrior.from_template("{yes:bool}")]
    inputs = inputs_of(processor, priors, "one", "two")
    values = processor.parse(model.generate(**inputs, do_sample=True, num_return_sequences=3), priors)
    assert [list(value) for value in values] == [["n"]] * 3 + [["yes"]] * 3


def test_padding_is_no_end_of_the_answer(processor: DimpleProcessor, model: DimpleForConditionalGeneration) -> None:
    """The padding token ends a free answer; inside a canvas it fills a slot, and what follows is still decided."""
    prior = StructurePrior.from_template("{a:3}; {b:3}!")
    inputs, wish = inputs_of(processor, prior, "question"), [PreferPadding(100)]
    output = model.generate(
        **inputs, logits_processor=wish, do_sample=True, return_dict_in_generate=True, num_return_sequences=4
    )
    free = model.generate(**processor(text="question", return_tensors="pt"), logits_processor=wish, max_new_tokens=8)
    assert [set(value) for value in processor.parse(output, prior)] == [{"a", "b"}] * 4
    assert (output.sequences[:, -1] == processor.tokenizer.encode("!")[0]).all()
    assert free[0, -8] == 420  # control: such scores do end a free answer
    answers = output.sequences[:, -inputs["answer_ids"].shape[1] :]
    generated = ((inputs["answer_ids"] == 423) & (answers != 420)).sum(dim=1)
    assert (output.tokens_per_forward * output.num_forward_passes).tolist() == generated.tolist()


def test_streamer_gets_all_of_a_constrained_answer(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration
) -> None:
    """A stream must not stop at the first padding either."""

    class Collector:
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.tokens.append(-1)

    prior = StructurePrior.from_template("{a:3}, {b:3}!")
    streamer = Collector()
    inputs = inputs_of(processor, prior, "question")
    output = model.generate(**inputs, streamer=streamer)
    assert streamer.tokens == [*output[0].tolist(), -1]


def test_chat_template_takes_a_prior(processor: DimpleProcessor, model: DimpleForConditionalGeneration) -> None:
    """The call of the README."""
    prior = StructurePrior.from_template("{n:int}")
    chat = [{"role": "user", "content": "How many?"}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(chat, structure_prior=prior, **options)
    value = processor.parse(model.generate(**inputs), prior)
    assert isinstance(value["n"], int)
    batch = processor.apply_chat_template([chat, chat], structure_prior=[prior, None], **options)
    values = processor.parse(model.generate(**batch), [prior, None])
    assert values[0] == value
    assert isinstance(values[1], str)
    with pytest.raises(ValueError, match="`tokenize` and `return_dict` must be True"):
        processor.apply_chat_template(chat, structure_prior=prior)


def test_infill_asks_for_the_gaps_of_a_text(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration, images: list[Any]
) -> None:
    """The prompt shows the text with lines for gaps; the answer is the text with the gaps filled."""
    inputs, prior = processor.infill("The {gap:6} is red because {gap2:12}.")
    prompt = processor.tokenizer.decode(inputs["input_ids"][0])
    assert "user\nFill in the gaps: The ____ is red because ____.<|im_end|>" in prompt
    sequences = model.generate(**inputs)
    values = processor.parse(sequences, prior)
    text = processor.tokenizer.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == "The {gap} is red because {gap2}.".format(**values)
    with_image, _ = processor.infill("A {x}", images=images[0], prompt="Say:", slots={"x": {"choices": ["b", "c"]}})
    assert processor.tokenizer.decode(with_image["input_ids"][0]).count("<|image_pad|>") == 4
    assert "Say: A ____" in processor.tokenizer.decode(with_image["input_ids"][0])
    with pytest.raises(ValueError, match="`template` must have a gap"):
        processor.infill("No gap")


class Reading(pydantic.BaseModel):
    label: str = pydantic.Field(max_length=4)
    value: int = pydantic.Field(ge=0, le=99)
    day: datetime.date | None = None


@pytest.mark.parametrize("layout", ["padded", "compact"])
def test_pydantic_class_is_read_as_an_object_of_it(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration, layout: str
) -> None:
    """Nested, optional and bounded fields, in either layout."""
    prior = StructurePrior.from_json_schema(Reading, layout=layout, separators=(", ", ": "))
    inputs = inputs_of(processor, prior, "question")
    output = model.generate(**inputs, do_sample=True, num_return_sequences=8, max_denoising_steps=4)
    readings = processor.parse(output, prior)
    assert all(isinstance(reading, Reading) and 0 <= reading.value <= 99 for reading in readings)
    text = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert json.loads(text) == json.loads(readings[0].model_dump_json(exclude_unset=True))
    assert text.startswith('{"label": "')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"structure_prior": "{x:3}"}, "`structure_prior` must be a StructurePrior or a list"),
        ({"structure_prior": ["{x:3}", None]}, "`structure_prior` must be a StructurePrior or a list"),
        ({"structure_prior": [None, None]}, "must hold at least one prior"),
        ({"structure_prior": [StructurePrior.from_template("a")]}, r"one for each of 2 rows \(got 1\)"),
        (
            {"structure_prior": StructurePrior.from_template("a"), "return_tensors": "np"},
            '`return_tensors` must be "pt"',
        ),
        (
            {"structure_prior": StructurePrior.from_template("a"), "return_tensors": None},
            '`return_tensors` must be "pt"',
        ),
    ],
)
def test_processor_refuses_priors_that_do_not_fit_the_call(
    processor: DimpleProcessor, arguments: dict[str, Any], message: str
) -> None:
    """One prior, or one for each row, and tensors that `generate` can take."""
    with pytest.raises(ValueError, match=message):
        processor(**{"text": ["one", "two"], "return_tensors": "pt"} | arguments)


def test_processor_refuses_a_prior_without_text(processor: DimpleProcessor, images: list[Any]) -> None:
    """An answer follows a prompt."""
    with pytest.raises(ValueError, match="`structure_prior` must be given with `text`"):
        processor(images=images[0], structure_prior=StructurePrior.from_template("a"))


def test_parse_refuses_what_is_no_answer_of_the_prior(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration
) -> None:
    """Free answers, cut ones, and the wrong number of rows."""
    prior = StructurePrior.from_template("The answer is {n:int}")
    free = model.generate(**processor(text="question", return_tensors="pt"), max_new_tokens=30)
    with pytest.raises(ValueError, match="must be a complete filling"):
        processor.parse(free, prior)
    with pytest.raises(ValueError, match=r"must hold the answer's 13 positions \(got 3\)"):
        processor.parse(free[:, :3], StructurePrior.from_template("{x:13}"))
    with pytest.raises(ValueError, match=r"`prior` must hold one for each of 3 rows \(got 2\)"):
        processor.parse(free.repeat(3, 1), [prior, prior])
    with pytest.raises(ValueError, match="must be an integer tensor of shape"):
        processor.parse(free[0], prior)
    with pytest.raises(ValueError, match="must be a StructurePrior or a list"):
        processor.parse(free, None)


@pytest.mark.parametrize("call", ["generate", "diffusion_generate"])
def test_generate_refuses_canvases_that_do_not_fit(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration, call: str
) -> None:
    """The model's own limits: its context, the asked length, the number of rows."""
    generate = getattr(model, call)
    prior = StructurePrior.from_template("{x:20}")
    inputs = inputs_of(processor, prior, "question")
    if call == "generate":
        with pytest.raises(ValueError, match=r"must not be longer than `max_new_tokens`=19 \(got 20 tokens\)"):
            generate(**inputs, max_new_tokens=19)
        assert generate(**inputs, max_new_tokens=20).shape[1] == inputs["input_ids"].shape[1] + 20  # control
    long = inputs_of(processor, StructurePrior.from_template("{x:1020}"), "question question")
    with pytest.raises(ValueError, match="prompt and answer must fit `max_position_embeddings`=1024"):
        generate(**long)
    two = inputs_of(processor, prior, "one", "two")
    with pytest.raises(ValueError, match=r"`answer_constraint` must be for 1 rows \(got one for 2\)"):
        generate(**inputs | {"answer_constraint": two["answer_constraint"]})
    with pytest.raises(ValueError, match=r"`answer_attention_mask` must have the shape of `answer_ids`, \(1, 20\)"):
        generate(**inputs, answer_attention_mask=torch.ones(1, 19, dtype=torch.long))


@pytest.mark.parametrize("alg", ["maskgit_plus", "origin", "origin-ratio", "autoregressive", "entropy"])
@pytest.mark.parametrize("decoding_pipeline", ["dim", "dream"])
def test_diffusion_generate_keeps_the_form_with_all_its_habits(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration, alg: str, decoding_pipeline: str
) -> None:
    """The original's call takes the same inputs, and its last step may come early."""
    schema = {"type": "array", "items": {"type": "integer", "minimum": 95, "maximum": 104}, "maxItems": 3}
    prior = StructurePrior.from_json_schema(schema)
    output = model.diffusion_generate(
        **inputs_of(processor, prior, "question"), alg=alg, decoding_pipeline=decoding_pipeline, steps=3,
        temperature=1.0, num_return_sequences=4,
    )  # fmt: skip
    assert all(95 <= number <= 104 for value in processor.parse(output, prior) for number in value)


# Against the original


@pytest.mark.parametrize("case", ["generate.structure_prior.cache0", "generate.structure_prior.cache1"])
@pytest.mark.parametrize("through", ["answer_ids", "hook", "generate"])
def test_fixed_tokens_give_the_originals_answers(parity_dir: Path, case: str, through: str) -> None:
    """The original positions a prior by a hook of its user; canvases must decode to the same tokens, step by step."""
    goldens = load_file(parity_dir / "tiny" / "goldens.safetensors")
    settings = json.loads((parity_dir / "tiny" / "goldens.json").read_text())["cases"][case]
    model = AutoModel.from_pretrained(parity_dir / "tiny").eval()
    prompt, (image,) = goldens[f"{case}.input_ids"], settings["images"]
    inputs = {
        "attention_mask": goldens[f"{case}.attention_mask"],
        "pixel_values": goldens[f"image_processor.{image}.pixel_values"],
        "image_grid_thw": goldens[f"image_processor.{image}.grid_thw"],
    }
    options = dict(settings["kwargs"])
    canvas = torch.full((1, options["max_new_tokens"]), model.config.mask_token_id)
    for position, token in settings["prior"].items():
        canvas[0, int(position)] = token

    def hook(step: int | None, x: torch.Tensor, logits: torch.Tensor | None) -> torch.Tensor:
        if step is None:
            x[:, prompt.shape[1] :] = canvas
        return x

    if through == "generate":
        # Nothing ends an answer here, as nothing does in the original.
        model.generation_config.eos_token_id = None
        output = model.generate(
            prompt, **inputs, answer_ids=canvas, confidence_threshold=options["alg_p_threshold"],
            use_cache=options["use_cache"], max_denoising_steps=options["steps"], pad_token_id=0, output_history=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    else:
        canvas_input = {"answer_ids": canvas} if through == "answer_ids" else {"generation_tokens_hook_func": hook}
        output = model.diffusion_generate(
            prompt, **inputs, **canvas_input, **options, output_history=True, return_dict_in_generate=True
        )
    assert torch.equal(output.sequences, goldens[f"{case}.sequences"])
    history = torch.stack([step[:, prompt.shape[1] :] for step in output.history])
    assert torch.equal(history, goldens[f"{case}.history"])
    assert output.num_forward_passes.tolist() == [settings["forward_passes"]]
