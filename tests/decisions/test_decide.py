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
"""Decisions on the small model of the package, against distributions that are computed by hand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from transformers import AutoProcessor

from dimple_hf.checkpoints import FORMS_CHECKPOINT, FORMS_SAMPLE
from dimple_hf.decisions import Calibration, Choice, Predicate, Score, decide
from dimple_hf.decisions.layout import lay_out, rotated
from dimple_hf.decisions.prompt import decision_prompt, option_labels

QUESTIONS = [
    Predicate("Is the price above 500?", name="high"),
    Choice("Which label has the largest number?", ["price", "qty", "age"]),
    Score("How many digits has the age?", ["one", "two", "three", "four"]),
]


@pytest.fixture(scope="module")
def image_path(repo_root: Path) -> Path:
    return repo_root / "examples" / "forms" / "sample.png"


@pytest.fixture
def calls(forms_model: Any) -> Iterator[dict[str, int]]:
    """How often the vision tower and the language model run."""
    counts = {"visual": 0, "model": 0}

    def count(name: str) -> Any:
        def hook(*args: Any) -> None:
            counts[name] += 1

        return hook

    hooks = [getattr(forms_model, name).register_forward_hook(count(name)) for name in counts]
    yield counts
    for hook in hooks:
        hook.remove()


def probabilities(answer: Any) -> torch.Tensor:
    return torch.tensor(answer.option_probabilities)


def read_by_hand(
    forms_model: Any, forms_processor: Any, path: Path, question: Any, sees_question: bool
) -> torch.Tensor:
    """
    Log-probabilities of the whole vocabulary at the masked position of "1.?", about an image. The image and what is
    before it see the question, or they are read first, into a cache.
    """
    prompt = decision_prompt([question], option_labels(forms_processor.tokenizer, 4))
    content = [{"type": "image", "path": str(path)}, {"type": "text", "text": prompt}]
    inputs = forms_processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    mask, pad = forms_processor.tokenizer.mask_token, forms_processor.tokenizer.pad_token
    canvas = forms_processor.tokenizer(f"1.{mask}{pad}", return_tensors="pt")["input_ids"]
    ids = torch.cat([inputs["input_ids"], canvas], dim=1)
    images = {"pixel_values": inputs["pixel_values"], "image_grid_thw": inputs["image_grid_thw"]}
    with torch.no_grad():
        if sees_question:
            logits = forms_model(ids, **images).logits
        else:
            end = int((ids[0] == forms_processor.tokenizer.convert_tokens_to_ids("<|vision_end|>")).nonzero()) + 1
            past = forms_model(ids[:, :end], use_cache=True, **images).past_key_values
            logits = forms_model(ids[:, end:], past_key_values=past).logits
    logits = logits[0, -3]  # predicts the position after it, the last but one
    logits[forms_model.config.mask_token_id] = -torch.inf
    return logits.log_softmax(dim=-1)


@pytest.mark.parametrize("independent", [False, True])
def test_probabilities_are_the_models_at_the_labels(
    forms_model: Any, forms_processor: Any, image_path: Path, independent: bool
) -> None:
    """Softmax over the tokens " A", " B", .. at the masked position of each question, and their mass before that."""
    labels = [
        forms_processor.tokenizer(f" {label}")["input_ids"][0] for label in option_labels(forms_processor.tokenizer, 4)
    ]
    answers = decide(forms_model, forms_processor, image_path, QUESTIONS, independent=independent)
    for found, question, size in zip(answers, QUESTIONS, (2, 3, 4), strict=True):
        log_probs = read_by_hand(forms_model, forms_processor, image_path, question, independent)[labels[:size]]
        torch.testing.assert_close(probabilities(found), log_probs.softmax(dim=0), rtol=1e-4, atol=1e-5)
        assert found.label_mass == pytest.approx(float(log_probs.exp().sum()), rel=1e-3)
        assert abs(float(probabilities(found).double().sum()) - 1) < 1e-6
        other = read_by_hand(forms_model, forms_processor, image_path, question, not independent)[labels[:size]]
        assert not torch.allclose(other.softmax(dim=0), log_probs.softmax(dim=0), atol=1e-4)  # control
    assert [answer.to_dict()["type"] for answer in answers] == ["predicate", "choice", "score"]
    assert answers[0].name == "high"
    levels = probabilities(answers[2])
    assert answers[2].score == pytest.approx(float((levels * torch.arange(4)).sum()), abs=1e-5)


def test_eight_questions_take_one_forward_pass_and_one_image_encoding(
    forms_model: Any, forms_processor: Any, image_path: Path, calls: dict[str, int]
) -> None:
    decide(forms_model, forms_processor, image_path, [QUESTIONS[1]] * 8)
    assert calls == {"visual": 1, "model": 1}
    decide(
        forms_model, forms_processor, image_path, [QUESTIONS[1]] * 8, independent=True, permutations=3, batch_size=12
    )
    assert calls == {"visual": 2, "model": 3}  # 24 rows in two batches, about one image


def test_answers_do_not_depend_on_batch_mates(forms_model: Any, forms_processor: Any, image_path: Path) -> None:
    """Inputs of several kinds: images of two sizes, a text, a chat; alone and together."""
    image = PIL.Image.open(image_path)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "path": str(image_path)}, {"type": "text", "text": "A form."}]},
    ]
    inputs = [image_path, image.resize((84, 112)), "The price is 700.", chat, image, "Nothing.", chat[1:], image_path]
    together = decide(forms_model, forms_processor, inputs, QUESTIONS)
    for item, answers in zip(inputs, together, strict=True):
        (alone,) = decide(forms_model, forms_processor, [item], QUESTIONS)
        for one, other in zip(alone, answers, strict=True):
            torch.testing.assert_close(probabilities(one), probabilities(other), rtol=0, atol=1e-5)
    different = [probabilities(answers[1]) for answers in together]
    assert not torch.allclose(different[0], different[2], atol=1e-4)  # control


def test_permutations_average_over_rotated_options(forms_model: Any, forms_processor: Any, image_path: Path) -> None:
    question = QUESTIONS[1]
    expected = torch.zeros(3)
    for rotation in range(3):
        (answer,) = decide(forms_model, forms_processor, image_path, [rotated(question, rotation)])
        expected += probabilities(answer).roll(rotation) / 3
    (found,) = decide(forms_model, forms_processor, image_path, [question], permutations=3)
    torch.testing.assert_close(probabilities(found), expected, rtol=0, atol=1e-5)
    (unrotated,) = decide(forms_model, forms_processor, image_path, [question])
    assert not torch.allclose(probabilities(unrotated), expected, atol=1e-3)  # control
    assert [option.value for option in found.probabilities] == ["price", "qty", "age"]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("independent", [False, True])
def test_questions_do_not_see_each_other(
    forms_model: Any,
    forms_processor: Any,
    image_path: Path,
    independent: bool,
    is_causal: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Alone, with others, and with others in another order: in each mode and way to read."""
    monkeypatch.setattr(forms_model.config, "full_attn_mask", not is_causal)
    together = decide(forms_model, forms_processor, image_path, QUESTIONS, independent=independent)
    reverse = decide(forms_model, forms_processor, image_path, QUESTIONS[::-1], independent=independent)
    for question, answer, reversed_answer in zip(QUESTIONS, together, reverse[::-1], strict=True):
        (alone,) = decide(forms_model, forms_processor, image_path, [question], independent=independent)
        torch.testing.assert_close(probabilities(alone), probabilities(answer), rtol=0, atol=1e-5)
        torch.testing.assert_close(probabilities(reversed_answer), probabilities(answer), rtol=0, atol=1e-5)
    other = decide(forms_model, forms_processor, image_path, QUESTIONS, independent=not independent)
    is_equal = torch.allclose(probabilities(other[1]), probabilities(together[1]), atol=1e-4)
    assert is_equal == is_causal  # in causal mode the input sees no question in any case


def test_many_questions_are_spread_over_canvases(
    forms_model: Any, forms_processor: Any, calls: dict[str, int]
) -> None:
    """70 questions are five rows of at most 16."""
    answers = decide(forms_model, forms_processor, "The price is 700.", [QUESTIONS[0]] * 70)
    assert len(answers) == 70
    assert calls["model"] == 1
    long = [Predicate("x" * 5000)] * 2 + [QUESTIONS[0]] * 16  # at most 8,192 bytes in a row
    canvases = lay_out(forms_processor.tokenizer, 0, long).canvases(0)
    assert [len(canvas.branches) for canvas in canvases] == [1, 16, 1]
    with pytest.raises(ValueError, match=r"`questions` must hold 1 to 400 questions \(got 401\)"):
        decide(forms_model, forms_processor, "", [QUESTIONS[0]] * 401)
    with pytest.raises(ValueError, match=r"\(got 0\)"):
        decide(forms_model, forms_processor, "", [])


def test_texts_are_scored_token_by_token(forms_model: Any, forms_processor: Any) -> None:
    """ "92" is two tokens and the end: the product of three conditional probabilities, each from its own canvas."""
    tokenizer, mask = forms_processor.tokenizer, forms_model.config.mask_token_id
    question = Choice("What is the floor?", ["92", "93"])
    inputs = forms_processor.apply_chat_template(
        [{"role": "user", "content": "A form.\nWhat is the floor?"}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    totals = []
    for text in ("92", "93"):
        tokens = [*tokenizer(text)["input_ids"], tokenizer.pad_token_id]
        assert len(tokens) == 3
        total = 0.0
        for given in range(3):
            canvas = torch.tensor([[*tokens[:given], *[mask] * (3 - given)]])
            with torch.no_grad():
                logits = forms_model(torch.cat([inputs["input_ids"], canvas], dim=1)).logits[0, given - 4]
            logits[mask] = -torch.inf
            total += float(logits.log_softmax(dim=-1)[tokens[given]])
        totals.append(total)
    (answer,) = decide(forms_model, forms_processor, "A form.", [question], reading="text")
    expected = torch.tensor(totals).softmax(dim=0)
    torch.testing.assert_close(probabilities(answer), expected, rtol=0, atol=1e-5)


def test_flash_attention_reads_each_question_alone(
    forms_model: Any, forms_processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes no mask. The library itself needs a GPU, so the name alone is set."""
    monkeypatch.setattr(forms_model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match="`independent=True` must be set with FlashAttention"):
        decide(forms_model, forms_processor, "A text.", QUESTIONS)


def test_templates_that_change_a_question_are_refused(forms_processor: Any, forms_model: Any) -> None:
    changed = AutoProcessor.from_pretrained(FORMS_CHECKPOINT)
    changed.chat_template = forms_processor.chat_template.replace("part['text']", "part['text'] | upper")
    assert changed.chat_template != forms_processor.chat_template
    decide(forms_model, changed, "A TEXT.", QUESTIONS, independent=True)  # the control
    with pytest.raises(ValueError, match="`independent=True` must be set for a chat template that changes the text"):
        decide(forms_model, changed, "A TEXT.", QUESTIONS)


def test_calibration_divides_log_probabilities(forms_model: Any, forms_processor: Any) -> None:
    calibration = Calibration({"choice": 2.0})
    plain = decide(forms_model, forms_processor, "A text.", QUESTIONS)
    scaled = decide(forms_model, forms_processor, "A text.", QUESTIONS, calibration=calibration)
    torch.testing.assert_close(
        probabilities(scaled[1]), (probabilities(plain[1]).log() / 2).softmax(dim=0), rtol=0, atol=1e-5
    )
    assert scaled[0] == plain[0]  # no temperature for its type
    fitted = Calibration({"choice": 2.0}, independent=True)
    with pytest.raises(ValueError, match="`independent` must be True, as the calibration was fitted"):
        decide(forms_model, forms_processor, "A text.", QUESTIONS, calibration=fitted)
    assert scaled[1].label_mass == plain[1].label_mass


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (3, {}, r"`inputs` must be texts, images, paths or conversations \(got int\)"),
        (str(FORMS_SAMPLE), {}, "`inputs` must give a file as `pathlib.Path`"),
        ("missing.png", {}, r"`inputs` must give a file as `pathlib.Path`: a string is a text \(got 'missing.png'\)"),
        ("http://host/scan.jpg", {}, "`inputs` must give a file as `pathlib.Path`"),
        ("", {"permutations": 0}, r"`permutations` must be an integer from 1 to 255 \(got 0\)"),
        ("", {"permutations": 1 << 40}, r"`permutations` must be an integer from 1 to 255 \(got 1099511627776\)"),
        ("", {"batch_size": 1.5}, r"`batch_size` must be an integer >= 1 \(got 1.5\)"),
        ("", {"reading": "mind"}, r'`reading` must be "label" or "text" \(got \'mind\'\)'),
    ],
)
def test_bad_arguments_are_refused(
    forms_model: Any, forms_processor: Any, inputs: Any, options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        decide(forms_model, forms_processor, inputs, QUESTIONS, **options)


@pytest.mark.parametrize("questions", [QUESTIONS[0], ["Is it?"], [*QUESTIONS, None], None, "Is it?"])
def test_questions_that_are_none_are_refused(forms_model: Any, forms_processor: Any, questions: Any) -> None:
    with pytest.raises(ValueError, match=r"`questions` must be a list of Predicate, Choice and Score \(got "):
        decide(forms_model, forms_processor, "A text.", questions)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user"}, r"`conversation\[0\]\['content'\]` must be a string or a list of parts"),
        ({"role": "user", "content": None}, r"`conversation\[0\]\['content'\]` must be"),
        ({"content": "x"}, r"`conversation\[0\]\['role'\]` must be a string"),
        (
            {"role": "user", "content": [{"text": "x"}]},
            r"`conversation\[0\]\['content'\]\[0\]` must be a dict with a 'type'",
        ),
    ],
)
def test_messages_that_are_none_are_refused(forms_model: Any, forms_processor: Any, message: Any, reason: str) -> None:
    decide(forms_model, forms_processor, [{"role": "user", "content": "x"}], QUESTIONS)  # the control
    with pytest.raises(ValueError, match=reason):
        decide(forms_model, forms_processor, [message], QUESTIONS)


@pytest.mark.parametrize(
    "question",
    [Predicate("Is it <|im_end|>?"), Choice("Which?", ["a", "b<|image_pad|>"]), Score("s", ["<|mask|>", "b"])],
)
def test_special_tokens_in_questions_are_refused(forms_model: Any, forms_processor: Any, question: Any) -> None:
    with pytest.raises(ValueError, match="must not hold special tokens"):
        decide(forms_model, forms_processor, "A text.", [question])


@pytest.mark.parametrize("reading", ["label", "text"])
def test_more_tokens_than_positions_are_refused(forms_model: Any, forms_processor: Any, reading: str) -> None:
    """Beyond its positions a model answers anything. Just below the limit it is asked."""
    fits, question = "x" * 800, Predicate("Is it long?")
    decide(forms_model, forms_processor, fits, [question], reading=reading)
    with pytest.raises(ValueError, match=r"must fit `max_position_embeddings`=1024 \(got \d+ \+ \d tokens\)"):
        decide(forms_model, forms_processor, "x" * 1100, [question], reading=reading)


def test_more_options_than_labels_are_refused(forms_model: Any, forms_processor: Any) -> None:
    """The small model's vocabulary has fewer labels of one token than a large one."""
    with pytest.raises(ValueError, match="one for each single-token label of the tokenizer"):
        decide(forms_model, forms_processor, "A text.", [Choice("Which?", [str(number) for number in range(2000)])])
