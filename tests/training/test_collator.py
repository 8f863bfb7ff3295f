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
"""Rows become exactly these tensors, whoever reads them, and bad rows are named or counted."""

import gc
import logging
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader
from training_run import CHECKPOINT, make_rows

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor, StructurePrior
from dimple_hf.modeling import DimpleOutput
from dimple_hf.training import BadExampleError, DimpleDataCollator
from dimple_hf.training.collator import answer_length_bounds

PAD = 420
IMAGE = {"type": "image"}


def row(*turns: str, images: tuple[PIL.Image.Image, ...] = (), **columns: Any) -> dict[str, Any]:
    """User and assistant in turn; the images stand before the first question."""
    messages = [{"role": ("user", "assistant")[position % 2], "content": turn} for position, turn in enumerate(turns)]
    if images:
        messages[0]["content"] = [IMAGE] * len(images) + [{"type": "text", "text": turns[0]}]
    return {"messages": messages, "images": list(images)} | columns


PIL_IMAGE = PIL.Image.new("RGB", (56, 28))  # 4 x 2 patches, 2 image tokens


@pytest.mark.parametrize(
    ("num_tokens", "bounds"),
    [(1, (2, 2)), (2, (3, 4)), (3, (4, 4)), (4, (5, 8)), (7, (8, 8)), (8, (9, 16)), (15, (16, 16)), (16, (17, 32)),
     (31, (32, 32)), (32, (33, 48))],
)  # fmt: skip
def test_answer_length_bounds_known_lengths_follow_the_formula(num_tokens: int, bounds: tuple[int, int]) -> None:
    """The released code's rule: powers of two below 16 tokens, then the next multiple of 16."""
    assert answer_length_bounds(num_tokens) == bounds


def test_collator_docstring_example_gives_these_tensors(processor: DimpleProcessor) -> None:
    """What the docstring shows, number by number."""
    batch = DimpleDataCollator(processor)([row("ab", "cdef", images=(PIL_IMAGE,)), row("ab", "cdef")])
    assert list(batch) == ["input_ids", "attention_mask", "labels", "pixel_values", "image_grid_thw"]
    assert batch["input_ids"].tolist() == [
        [48, 25, 424, 427, 427, 425, 64, 65, 220, 32, 25, 66, 67, 68, 69, PAD],
        [48, 25, 64, 65, 220, 32, 25, 66, 67, 68, 69, PAD, PAD, PAD, PAD, PAD],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 16, [1] * 15 + [0]]
    assert batch["labels"].tolist() == [
        [-100] * 11 + [66, 67, 68, 69, PAD],
        [-100] * 7 + [66, 67, 68, 69, PAD, PAD, PAD, PAD] + [-100],
    ]
    assert batch["pixel_values"].shape == (8, 1176)
    assert batch["image_grid_thw"].tolist() == [[1, 2, 4]]
    shown = "".join(DimpleDataCollator.__doc__.split())
    for name in ("input_ids", "attention_mask", "labels", "image_grid_thw"):
        assert "".join(str(batch[name]).split()) in shown


def test_collator_prompt_equals_the_processors_own() -> None:
    """A trained model must see at inference what it saw in training, with the checkpoint's real chat template."""
    processor = DimpleProcessor.from_pretrained(CHECKPOINT)
    image = row("What is it?", "red", images=(PIL_IMAGE, PIL_IMAGE))
    batch = DimpleDataCollator(processor)([image])
    inputs = processor.apply_chat_template(
        image["messages"][:1],
        processor_kwargs={"images": image["images"]},
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    length = inputs["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][:, :length], inputs["input_ids"])
    assert (batch["labels"][:, :length] == -100).all()
    assert batch["labels"][0, length] != -100
    assert torch.equal(batch["pixel_values"], inputs["pixel_values"])


def test_collator_padding_lengths_cover_the_range_and_depend_on_seed_and_tokens(processor: DimpleProcessor) -> None:
    """Drawn, but from nothing that changes between two readings of a row."""

    def lengths(seed: int) -> list[int]:
        batch = DimpleDataCollator(processor, seed=seed)([row(f"q{index}", "abcd") for index in range(40)])
        return [int((labels != -100).sum()) for labels in batch["labels"]]

    assert set(lengths(0)) == {5, 6, 7, 8}
    assert lengths(0) == lengths(0)
    assert lengths(0) != lengths(1)


def test_collator_padding_length_does_not_tell_the_answer_of_an_image(processor: DimpleProcessor) -> None:
    """Images about which the same is asked and answered: all lengths that the answer can have. A model under full
    attention would otherwise learn the answer from the length of its canvas, and nothing from the image."""
    collator = DimpleDataCollator(processor)

    def length(image: PIL.Image.Image) -> int:
        return int((collator([row("ab", "cdef", images=(image,))])["labels"] != -100).sum())

    images = [PIL.Image.new("RGB", (56, 28), (tone, 0, 0)) for tone in range(40)]
    assert {length(image) for image in images} == {5, 6, 7, 8}
    assert len({length(images[0]) for _ in range(3)}) == 1  # control: an image has one length


def test_collator_canvas_length_widens_the_range_and_never_narrows_it(processor: DimpleProcessor) -> None:
    """On a canvas of any length up to the given one; the original's bounds where they are wider."""

    def lengths(canvas_length: int | None, answer: str) -> set[int]:
        collator = DimpleDataCollator(processor, canvas_length=canvas_length)
        batch = collator([row(f"q{index}", answer) for index in range(200)])
        return {int((labels != -100).sum()) for labels in batch["labels"]}

    assert lengths(12, "abcd") == set(range(5, 13))
    assert lengths(6, "abcd") == lengths(None, "abcd") == {5, 6, 7, 8}


def test_collator_batches_do_not_depend_on_neighbours_or_loading_processes() -> None:
    """Two processes that load, none, other batches: the same rows are the same tensors."""
    collator = DimpleDataCollator(DimpleProcessor.from_pretrained(CHECKPOINT))
    rows = make_rows(8)
    alone = [DataLoader(rows, batch_size=2, collate_fn=collator), DataLoader(rows, 2, False, None, None, 2, collator)]
    for first, second in zip(*alone, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    single = collator(rows[1:2])["input_ids"]
    assert torch.equal(collator(rows[:2])["input_ids"][1, : single.shape[1]], single[0])


def test_collator_answer_under_a_prior_lies_on_its_canvas(processor: DimpleProcessor) -> None:
    """Fixed text is given, values and fillers are learned, and no run of padding follows."""
    prior = StructurePrior.from_template("a{n:3:int}b{m:2:int}")
    plain, laid_out = DimpleDataCollator(processor)([row("q", "a7b12"), row("q", "a7b12", structure_prior=prior)])[
        "labels"
    ]
    assert plain[plain != -100].tolist()[:5] == [64, 22, 65, 16, 17]
    assert laid_out[-7:].tolist() == [-100, 22, PAD, PAD, -100, 16, 17]
    assert (laid_out[:-7] == -100).all()


@pytest.mark.parametrize("max_length", [11, 10])
def test_collator_canvas_of_a_prior_is_never_shortened(processor: DimpleProcessor, max_length: int) -> None:
    """Half a canvas would teach a form that no prior has."""
    laid_out = row("q", "a7", structure_prior=StructurePrior.from_template("a{n:4:int}"))  # 6 + 5 tokens
    collator = DimpleDataCollator(processor, max_length=max_length)
    if max_length == 11:
        assert collator([laid_out])["input_ids"].shape == (1, 11)
        return
    with pytest.raises(BadExampleError, match=r"`max_length`=10 \(its prompt has 6 tokens, the canvas .* 5\)"):
        collator([laid_out])


def test_collator_several_turns_share_a_row(processor: DimpleProcessor) -> None:
    """The conversation, with a run of padding after each answer; that of the first one is a branch."""
    batch = DimpleDataCollator(processor)([row("a", "bcd", "e", "fgh", images=(PIL_IMAGE,)), row("a", "b")])
    assert batch["input_ids"][0].tolist() == (
        [48, 25, 424, 427, 427, 425, 64, 220, 32, 25, 65, 66, 67, PAD, 422, 48, 25, 68, 220, 32, 25, 69, 70, 71, PAD]
    )
    assert batch["labels"][0].tolist() == [-100] * 10 + [65, 66, 67, PAD] + [-100] * 7 + [69, 70, 71, PAD]
    assert batch["branch_ids"].tolist() == [[0] * 13 + [1] + [0] * 11, [0] * 25]
    assert batch["image_grid_thw"].tolist() == [[1, 2, 4]]
    apart = DimpleDataCollator(processor, join_turns=False)([row("a", "bcd", "e", "fgh", images=(PIL_IMAGE,))])
    assert apart["input_ids"].tolist() == [
        [48, 25, 424, 427, 427, 425, 64, 220, 32, 25, 65, 66, 67, PAD] + [PAD] * 10,
        [48, 25, 424, 427, 427, 425, 64, 220, 32, 25, 65, 66, 67, 422, 48, 25, 68, 220, 32, 25, 69, 70, 71, PAD],
    ]
    assert apart["labels"].tolist() == [
        [-100] * 10 + [65, 66, 67, PAD] + [-100] * 10,
        [-100] * 20 + [69, 70, 71, PAD],
    ]
    assert apart["image_grid_thw"].tolist() == [[1, 2, 4]] * 2
    assert "branch_ids" not in apart


def test_collator_turns_that_do_not_fit_together_are_rows_of_their_own(processor: DimpleProcessor) -> None:
    """Here 25 tokens with both, 24 in the longer sequence; and a template that rewrites what came before."""
    chat = row("a", "bcd", "e", "fgh", images=(PIL_IMAGE,))
    assert len(DimpleDataCollator(processor, max_length=25)([chat])["input_ids"]) == 1
    assert len(DimpleDataCollator(processor, max_length=24)([chat])["input_ids"]) == 2
    processor.chat_template = "{{ messages | length }}" + processor.chat_template
    assert len(DimpleDataCollator(processor)([chat])["input_ids"]) == 2


def test_collator_image_of_a_later_turn_is_not_in_earlier_sequences(processor: DimpleProcessor) -> None:
    """The model takes images in the order of placeholders, so each sequence must bring exactly its own."""
    later = row("a", "bcd", "e", "fgh")
    later["messages"][2]["content"] = [IMAGE, {"type": "text", "text": "e"}]
    later["images"] = [PIL_IMAGE]
    batch = DimpleDataCollator(processor, join_turns=False)([later])
    assert (batch["input_ids"] == 427).sum(dim=1).tolist() == [0, 2]
    assert batch["image_grid_thw"].tolist() == [[1, 2, 4]]
    assert DimpleDataCollator(processor)([later])["image_grid_thw"].tolist() == [[1, 2, 4]]


def losses_by_token(output: DimpleOutput, batch: dict[str, torch.Tensor]) -> list[tuple[int, float]]:
    """Each learned token and its loss, sorted: rows may be divided in any way."""
    counted = output.token_losses != -100
    return sorted(zip(batch["labels"][counted].tolist(), output.token_losses[counted].tolist(), strict=True))


@pytest.mark.parametrize("options", [{}, {"complementary_masks": True}, {"causal_loss_weight": 0.5}])
@pytest.mark.parametrize("is_causal", [True, False])
def test_turns_in_one_row_are_learned_as_turns_in_rows_of_their_own(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration, is_causal: bool, options: dict[str, Any]
) -> None:
    """Exactly, in loss and gradients: an answer sees what came before it, no padding and no later turn."""
    for name, value in options.items():
        setattr(model.config, name, value)
    chats = [row("a", "bcd", "e", "fgh", "i", "jklmno", images=(PIL_IMAGE,)), row("p", "qrs")]
    chats[0]["messages"][2]["content"] = [IMAGE, {"type": "text", "text": "e"}]
    chats[0]["images"].append(PIL_IMAGE.rotate(180))
    results = []
    encoded: list[int] = []
    model.visual.register_forward_hook(lambda module, args, output: encoded.append(len(output.pooler_output)))
    for joins in (True, False):
        batch = DimpleDataCollator(processor, join_turns=joins)(chats)
        given: dict[str, Any] = {}
        if not is_causal:  # all answer tokens but the first of a run
            learned = batch["labels"] != -100
            given["masked_positions"] = learned & learned.roll(1, dims=1)
        model.zero_grad()
        output = model(**batch, **given, is_causal=is_causal, num_items_in_batch=24)
        output.loss.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        results.append((output.loss, losses_by_token(output, batch), gradients))
    (loss, tokens, gradients), (expected_loss, expected_tokens, expected_gradients) = results
    assert encoded == [4, 10]  # two images of two tokens; apart, one and two and two
    assert [token for token, _ in tokens] == [token for token, _ in expected_tokens]
    assert [value for _, value in tokens] == pytest.approx([value for _, value in expected_tokens], rel=1e-4)
    if not options.get("complementary_masks"):  # whose levels follow from the masks that were given for a whole row
        torch.testing.assert_close(loss, expected_loss)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-4, msg=name)


def test_turns_in_one_row_under_full_attention_draw_a_noise_level_for_each_answer(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration
) -> None:
    """As answers in rows of their own do, with the same masks: they follow from what a sequence holds."""
    chat = [row("a", "bcdefg", "e", "fghijk")]
    results = []
    for joins in (True, False):
        batch = DimpleDataCollator(processor, join_turns=joins)(chat)
        model.mask_seed = 3
        with torch.no_grad():
            results.append(model(**batch).token_noise_levels)
    levels = [sorted(set(found[found != -100].tolist())) for found in results]
    assert len(levels[0]) == 2
    assert levels[0] == levels[1]


@pytest.mark.parametrize("is_causal", [True, False])
def test_branch_ids_without_what_they_need_are_refused(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration, is_causal: bool
) -> None:
    """They are for training; and flash attention takes no such mask."""
    batch = DimpleDataCollator(processor)([row("a", "bcd", "e", "fgh")])
    model(**batch, is_causal=is_causal)  # control
    for name in ("labels", "attention_mask"):
        with pytest.raises(ValueError, match="`branch_ids` must come with `labels` and an `attention_mask` of two"):
            model(**{key: value for key, value in batch.items() if key != name}, is_causal=is_causal)
    if is_causal:
        model.config._attn_implementation = "flash_attention_2"
        with pytest.raises(ValueError, match="set `join_turns=False` in the collator"):
            model(**batch, is_causal=True)


def shortened(processor: DimpleProcessor, question: str, max_length: int) -> str:
    """A row with an answer of 20 tokens, shortened, as text: `|` before what is learned, `_` for padding."""
    sample = row(question, "98765432109876543210", images=(PIL_IMAGE,))
    batch = DimpleDataCollator(processor, max_length=max_length, seed=41)([sample])
    assert batch["input_ids"].shape[1] <= max_length
    learned = batch["labels"][0] != -100
    prompt = processor.tokenizer.decode(batch["input_ids"][0, ~learned])
    answer = processor.tokenizer.decode(batch["input_ids"][0, learned])
    image = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    return f"{prompt}|{answer}".replace(image, "#").replace("<|endoftext|>", "_")


@pytest.mark.parametrize(
    ("num_digits", "max_length", "expected"),
    [
        # 6 + 10 + 3 tokens of prompt, 20 of answer, 10 of padding.
        (10, 49, "Q:#0123456789 A:|98765432109876543210__________"),
        (10, 45, "Q:#0123456789 A:|98765432109876543210______"),
        (10, 40, "Q:#0123456789 A:|98765432109876543210_"),
        (10, 39, "Q:#0123456789 A:|98765432109876543210"),
        (10, 35, "Q:#0123456789 A:|9876543210987654"),
        # 30 digits and ` A:` are one text of 33 tokens, of which at least 16 stay.
        (30, 55, "Q:#012345678901234567890123456789 A:|9876543210987654"),
        (30, 54, "Q:#01234567890123457890123456789 A:|9876543210987654"),
        (30, 38, "Q:#0123456756789 A:|9876543210987654"),
    ],
)
def test_collator_long_row_is_shortened_in_padding_then_answer_then_text(
    processor: DimpleProcessor, num_digits: int, max_length: int, expected: str
) -> None:
    """In this order, and the image and the chat's markers stay whole."""
    assert shortened(processor, ("0123456789" * 3)[:num_digits], max_length) == expected


@pytest.mark.parametrize(("num_digits", "max_length"), [(10, 34), (30, 37)])
def test_collator_row_too_long_for_its_images_is_refused_by_name(
    processor: DimpleProcessor, num_digits: int, max_length: int
) -> None:
    """One position less than the last row that can be shortened."""
    long = row("0123456789" * 3, "9" * 20, images=(PIL_IMAGE,), id="scan-9")
    long["messages"][0]["content"][1]["text"] = ("0123456789" * 3)[:num_digits]
    with pytest.raises(
        BadExampleError, match=rf"example 'scan-9' is bad: it must fit `max_length`={max_length} .* 2 of them"
    ):
        DimpleDataCollator(processor, max_length=max_length)([long])
    DimpleDataCollator(processor, max_length=max_length + 1)([long])


BAD_ROWS = {
    "example 1 of its batch is bad: it must have an assistant turn": row("hi"),
    "example 'a' is bad: roles must be one of": {"id": "a", "messages": [{"role": "bot", "content": "hi"}]},
    "example 'b' is bad: answers must not be empty": row("hi", "", id="b"),
    "example 'c' is bad: it must have as many images as placeholders": row("hi", "ho", images=(PIL_IMAGE,), id="c")
    | {"images": [PIL_IMAGE, PIL_IMAGE]},
    "example 'd' is bad: image 0 ('no/file.png') must be a readable image": row(
        "hi", "ho", images=(PIL_IMAGE,), id="d"
    )
    | {"images": ["no/file.png"]},
    "example 'e' is bad: image 0 (of 4 bytes) must be a PNG": row("hi", "ho", images=(PIL_IMAGE,), id="e")
    | {"images": [b"junk"]},
    "example 'g' is bad: its text must not hold the mask token <|mask|>": row("hi", "<|mask|>", id="g"),
    "example 'h' is bad: its text must not spell the image placeholder": row("hi <|image_pad|>", "ho", id="h"),
    "example 'j' is bad: `structure_prior` must be a StructurePrior (got str)": row(
        "hi", "ho", id="j", structure_prior="a"
    ),
    "example 'k' is bad: its answers must be ones of its `structure_prior`: `text` must have the prior's form": row(
        "hi", "ho", id="k", structure_prior=StructurePrior.from_template("ho{n:1:int}")
    ),
    "example 'i' is bad: answers must not hold the image placeholder": row("hi", "<|image_pad|>", id="i"),
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_collator_bad_example_is_refused_by_name(processor: DimpleProcessor, message: str) -> None:
    """The first error of a long run must say where to look."""
    with pytest.raises(BadExampleError) as error:
        DimpleDataCollator(processor)([row("good", "row"), BAD_ROWS[message]])
    assert str(error.value).startswith(message)


def test_collator_cut_off_image_file_is_refused_by_name(processor: DimpleProcessor, tmp_path: Path) -> None:
    """A file that begins as an image does and then ends: downloads that broke off."""
    PIL.Image.effect_noise((64, 64), 90).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    collator = DimpleDataCollator(processor, image_folder=tmp_path)
    cut_off = row("hi", "ho", images=(PIL_IMAGE,), id=7)
    collator([cut_off | {"images": ["whole.png"]}])
    with pytest.raises(BadExampleError, match=r"example 7 is bad: .*half\.png"):
        collator([cut_off | {"images": ["half.png"]}])


def test_collator_fault_of_the_code_is_not_taken_for_a_bad_row(processor: DimpleProcessor) -> None:
    """Leaving rows out must not hide a bug: only what is wrong with a row is skipped."""
    with pytest.raises(AttributeError):
        DimpleDataCollator(processor, on_bad_example="skip")([None])


def test_collator_skipped_rows_are_left_out_counted_and_reported(
    processor: DimpleProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of the batch is as if they had not been there; one warning at the end tells how many."""
    caplog.set_level(logging.INFO, logger="dimple_hf")
    collator = DimpleDataCollator(processor, on_bad_example="skip")
    good = row("ab", "cdef", images=(PIL_IMAGE,))
    batch = collator([row("hi", "", id="empty"), good, {}])
    assert all(torch.equal(batch[name], tensor) for name, tensor in DimpleDataCollator(processor)([good]).items())
    assert collator.num_skipped_examples == 2
    assert "example 'empty' is bad: answers must not be empty" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    del collator
    gc.collect()
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("2 bad examples were left out of training batches")


def test_collator_too_many_bad_rows_stop_the_run_with_their_list(processor: DimpleProcessor, tmp_path: Path) -> None:
    """As with a wrong folder of images: skipping all rows would train on nothing, and say so to nobody."""
    rows = [row("a", "b", id=f"r{index}") | {"image": "a.png"} for index in range(8)]
    PIL_IMAGE.save(tmp_path / "a.png")
    good = DimpleDataCollator(processor, on_bad_example="skip", image_folder=tmp_path)
    assert len(good(rows)["input_ids"]) == 8  # control
    with pytest.raises(
        BadExampleError, match=r"(?s)3 of 3 examples are bad, more than `max_bad_share`=0.1:.*'r0'.*'r2' is bad"
    ):
        DimpleDataCollator(processor, on_bad_example="skip", image_folder=tmp_path / "wrong")(rows)
    tolerant = DimpleDataCollator(processor, on_bad_example="skip", image_folder=tmp_path / "wrong", max_bad_share=1.0)
    assert len(tolerant(rows)["input_ids"]) == 1


def test_collator_image_address_is_refused_unless_allowed(processor: DimpleProcessor) -> None:
    """A data set must not make a run fetch what it names."""
    address = row("a", "b") | {"image": "http://127.0.0.1:9/a.png"}
    with pytest.raises(
        BadExampleError, match=r"image 0 must be a file, not 'http.*`allow_urls=True` lets it be fetched"
    ):
        DimpleDataCollator(processor)([address])
    with pytest.raises(BadExampleError, match="must be a readable image"):  # control: it is tried
        DimpleDataCollator(processor, allow_urls=True)([address])


def test_collator_without_skipped_rows_is_silent_at_the_end(
    processor: DimpleProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning that always comes is not read."""
    gc.collect()  # collators of other tests, which may warn
    caplog.clear()
    collator = DimpleDataCollator(processor, on_bad_example="skip")
    collator([row("ab", "cd")])
    del collator
    gc.collect()
    assert not caplog.records


def test_collator_skipped_rows_of_loading_processes_are_counted(processor: DimpleProcessor) -> None:
    """Rows are mostly read by other processes, which end without a word."""
    collator = DimpleDataCollator(processor, on_bad_example="skip", max_bad_share=0.5)
    rows = [row("ab", "cd"), {}, row("ab", "cd"), {}, {}, row("ab", "cd")]
    batches = list(DataLoader(rows, batch_size=2, num_workers=2, collate_fn=collator))
    assert [len(batch["input_ids"]) for batch in batches] == [1, 1, 1]
    assert collator.num_skipped_examples == 3


@pytest.mark.parametrize("is_causal", [True, False])
def test_collator_batch_of_bad_rows_trains_nothing(
    processor: DimpleProcessor, model: DimpleForConditionalGeneration, is_causal: bool
) -> None:
    """A batch of one bad row must neither stop the run nor move a weight."""
    batch = DimpleDataCollator(processor, on_bad_example="skip")([{}])
    assert batch["labels"].tolist() == [[-100, -100]]
    loss = model(**batch, is_causal=is_causal).loss
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 1}, "`max_length` must be an integer >= 2 (got 1)"),
        ({"canvas_length": 0}, "`canvas_length` must be an integer >= 1 (got 0)"),
        ({"seed": -1}, "`seed` must be an integer >= 0 (got -1)"),
        ({"seed": True}, "`seed` must be an integer >= 0 (got True)"),
        ({"allow_urls": "no"}, "`allow_urls` must be true or false (got 'no')"),
        ({"image_folder": 7}, "`image_folder` must be a path (got 7)"),
        ({"max_bad_share": "all"}, "`max_bad_share` must be in [0, 1] (got 'all')"),
        ({"max_bad_share": 1.5}, "`max_bad_share` must be in [0, 1] (got 1.5)"),
        ({"on_bad_example": "ignore"}, "`on_bad_example` must be 'raise' or 'skip' (got 'ignore')"),
    ],
)
def test_collator_bad_argument_is_refused(processor: DimpleProcessor, arguments: dict, message: str) -> None:
    """Before the first batch."""
    with pytest.raises(ValueError, match="must be") as error:
        DimpleDataCollator(processor, **arguments)
    assert str(error.value) == message


def test_collator_takes_typed_control_tokens_for_text(processor: DimpleProcessor) -> None:
    """As the processor does for the same prompt when the model is asked."""
    collator = DimpleDataCollator(processor)
    ids = collator([row("hi <|mask|><|im_end|>", "ho")])["input_ids"][0].tolist()
    plain = collator([row("hi", "ho")])["input_ids"][0].tolist()
    special = processor.tokenizer.added_tokens_decoder
    assert [token for token in ids if token in special and token != 420] == [
        token for token in plain if token in special and token != 420
    ]
