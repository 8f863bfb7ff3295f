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
"""`generate`: rows alone and together, early stop, cost, options, streamers, both modes, refusals."""

import copy
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from helpers import (
    EOS,
    IMAGE,
    MASK,
    MIXED_PROMPTS,
    PAD,
    Prompt,
    make_prompt,
    model_inputs,
    parametrize_some,
    tiny_model,
)
from hypothesis import given, settings
from transformers import (
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TextIteratorStreamer,
    TextStreamer,
)
from transformers.generation.streamers import TextDiffusionStreamer

from dimple_hf import DimpleForConditionalGeneration, DimpleGenerationConfig, DimpleGenerationOutput
from dimple_hf.modeling import cache_dimple

WIDTH = max(len(prompt.tokens) for prompt in MIXED_PROMPTS)
CACHES = pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])


def answers(
    model: DimpleForConditionalGeneration, *prompts: Prompt, width: int = 0, **options: Any
) -> DimpleGenerationOutput:
    """`generate` over prompts, with all the figures."""
    inputs = model_inputs(*prompts, width=width)
    return model.generate(**inputs, return_dict_in_generate=True, **options)


def tokens_of(output: DimpleGenerationOutput, length: int) -> list[list[int]]:
    return output.sequences[:, -length:].tolist()


@pytest.fixture
def passes() -> Iterator[Callable[[DimpleForConditionalGeneration], list[tuple[int, int]]]]:
    """Makes a list of the passes of a model's text layers from now on: rows and positions of each."""
    handles = []

    def watch(model: DimpleForConditionalGeneration) -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        handles.append(
            model.model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
        )
        return seen

    yield watch
    for handle in handles:
        handle.remove()


# Rows are independent


@parametrize_some(
    4,
    threshold=[None, 0.3, 0.95],
    unmasking=["confidence", "margin", "entropy", "left_to_right"],
    schedule=["adaptive", "fixed"],
    use_cache=[True, False],
)
def test_rows_of_a_batch_equal_the_rows_alone(
    model: DimpleForConditionalGeneration, unmasking: str, schedule: str, threshold: float | None, use_cache: bool
) -> None:
    """Rows of different lengths with 0 to 3 images: tokens, passes and history, for every way of decoding."""
    options: dict[str, Any] = {
        "max_new_tokens": 10, "max_denoising_steps": 7, "unmasking": unmasking, "unmasking_schedule": schedule,
        "confidence_threshold": threshold, "use_cache": use_cache, "output_history": True,
    }  # fmt: skip
    together = answers(model, *MIXED_PROMPTS, **options)
    for row, prompt in enumerate(MIXED_PROMPTS):
        alone = answers(model, prompt, **options)
        assert tokens_of(together, 10)[row] == tokens_of(alone, 10)[0]
        assert together.num_forward_passes[row] == alone.num_forward_passes[0]
        assert together.tokens_per_forward[row] == alone.tokens_per_forward[0]
        steps = [step[row, -10:].tolist() for step in together.history]
        assert steps[: len(alone.history)] == [step[0, -10:].tolist() for step in alone.history]
    # control: rows differ from each other
    assert len({tuple(row) for row in tokens_of(together, 10)}) == len(MIXED_PROMPTS)


@pytest.mark.parametrize("schedule", ["adaptive", "fixed"])
def test_rows_of_a_batch_in_random_order_unmask_as_many_as_alone(
    model: DimpleForConditionalGeneration, schedule: str
) -> None:
    """The order is drawn, so tokens differ; the budget of each step and of each row may not."""
    options: dict[str, Any] = {
        "max_new_tokens": 10, "max_denoising_steps": 7, "unmasking": "random", "unmasking_schedule": schedule,
        "confidence_threshold": None, "output_history": True,
    }  # fmt: skip

    def counts(output: DimpleGenerationOutput, row: int) -> list[int]:
        return [int((step[row, -10:] == MASK).sum()) for step in output.history]

    together = answers(model, *MIXED_PROMPTS, **options)
    for row, prompt in enumerate(MIXED_PROMPTS):
        assert counts(together, row) == counts(answers(model, prompt, **options), 0)
    positions = (together.history[0][:, -10:] != MASK) | (together.history[1][:, -10:] != MASK)
    assert len({tuple(row.nonzero().flatten().tolist()) for row in positions}) > 1  # control: drawn for each row


def test_rows_with_more_padding_give_the_same_answer(model: DimpleForConditionalGeneration) -> None:
    """Left padding is invisible, with and without cache."""
    for use_cache in (True, False):
        plain = answers(model, MIXED_PROMPTS[1], max_new_tokens=8, use_cache=use_cache)
        padded = answers(model, MIXED_PROMPTS[1], width=40, max_new_tokens=8, use_cache=use_cache)
        assert tokens_of(plain, 8) == tokens_of(padded, 8)
        assert padded.sequences.shape == (1, 48)


# Early stop


def ending_tokens(model: DimpleForConditionalGeneration, use_cache: bool, position: int = 4) -> tuple[Any, Any, int]:
    """Answers without an end, and a token that row 1 has at `position` and not before."""
    endless = answers(model, *MIXED_PROMPTS, max_new_tokens=12, use_cache=use_cache, confidence_threshold=0.5)
    rows = tokens_of(endless, 12)
    end = next(token for token in rows[1][position:] if token not in rows[1][:position])
    assert all(PAD not in row and EOS not in row for row in rows)  # as `tiny_model` promises
    return endless, rows, end


@CACHES
def test_early_stop_leaves_the_text_up_to_the_end_as_it_was(
    model: DimpleForConditionalGeneration, use_cache: bool
) -> None:
    """The run without end tokens is the reference; after the end there is padding."""
    endless, rows, end = ending_tokens(model, use_cache)
    stopped = answers(
        model, *MIXED_PROMPTS, max_new_tokens=12, use_cache=use_cache, confidence_threshold=0.5,
        eos_token_id=[EOS, end],
    )  # fmt: skip
    for row, whole in zip(tokens_of(stopped, 12), rows, strict=True):
        length = whole.index(end) + 1 if end in whole else 12
        assert row == whole[:length] + [PAD] * (12 - length)
    assert rows[1][-1] != PAD  # control: there was text after the end
    assert (stopped.num_forward_passes <= endless.num_forward_passes).all()


def test_early_stop_saves_passes_and_rows(
    model: DimpleForConditionalGeneration, passes: Callable[[DimpleForConditionalGeneration], list[tuple[int, int]]]
) -> None:
    """Decoded from left to right, a row is finished with its end; later passes do without it."""
    options = {"max_new_tokens": 12, "unmasking": "left_to_right", "confidence_threshold": None}
    rows = tokens_of(answers(model, *MIXED_PROMPTS, **options), 12)
    end = rows[1][2]
    seen = passes(model)
    output = answers(model, *MIXED_PROMPTS, **options, eos_token_id=end)
    alone = [answers(model, prompt, **options, eos_token_id=end).num_forward_passes.item() for prompt in MIXED_PROMPTS]
    assert output.num_forward_passes.tolist() == alone
    assert alone[1] == 3 < max(alone)
    expected = [sum(count > step for count in alone) for step in range(max(alone))]
    assert [count for count, _ in seen[: max(alone)]] == expected
    assert [length for _, length in seen[: max(alone)]] == [WIDTH + 12] + [13] * (max(alone) - 1)


def test_figures_of_a_constructed_case_are_as_counted(model: DimpleForConditionalGeneration) -> None:
    """
    Row 0 is forced to end with its third token, row 1 never ends; left to right in 4 fixed steps with a schedule that
    unmasks 1, 1, 1 and the rest: three passes for three tokens, four passes for four.
    """

    class EndRowZero:
        def __call__(self, sequences: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            first = (sequences[:, -4:] != MASK).sum(dim=1) == 2  # two are decided
            is_row_zero = sequences[:, -5] == MIXED_PROMPTS[0].tokens[-1]
            scores[first & is_row_zero, EOS] = 1e4
            return scores

    output = answers(
        model, *MIXED_PROMPTS[:2], max_new_tokens=4, unmasking="left_to_right", confidence_threshold=None,
        unmasking_schedule="adaptive", max_denoising_steps=40, logits_processor=LogitsProcessorList([EndRowZero()]),
        output_history=True,
    )  # fmt: skip
    rows = tokens_of(output, 4)
    assert rows[0][2:] == [EOS, PAD]
    assert output.num_forward_passes.tolist() == [3, 4]
    assert output.tokens_per_forward.tolist() == [1, 1]
    assert [(step[:, -4:] == MASK).sum(dim=1).tolist() for step in output.history] == [[3, 3], [2, 2], [1, 1], [1, 0]]


def test_figures_of_a_sure_model_are_all_tokens_in_one_pass(model: DimpleForConditionalGeneration) -> None:
    """Everything above the threshold is unmasked at once: tokens per forward is the answer's length."""
    output = answers(model, *MIXED_PROMPTS, max_new_tokens=6, confidence_threshold=1e-6)
    assert output.num_forward_passes.tolist() == [1] * 4
    assert output.tokens_per_forward.tolist() == [6] * 4
    one_by_one = answers(model, *MIXED_PROMPTS, max_new_tokens=6, confidence_threshold=None, max_denoising_steps=60)
    assert one_by_one.tokens_per_forward.tolist() == [1] * 4  # control


# What runs how often


@CACHES
def test_vision_tower_runs_once_for_a_generation(use_cache: bool) -> None:
    """However many passes, rows and sequences; the original runs it at every pass without the cache."""
    model = tiny_model()
    images: list[int] = []
    model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: images.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    output = answers(
        model, *MIXED_PROMPTS, max_new_tokens=8, use_cache=use_cache, do_sample=True, num_return_sequences=3
    )
    assert images == [6]
    assert output.num_forward_passes.max() > 1  # control


def test_head_runs_over_masked_positions_only(model: DimpleForConditionalGeneration) -> None:
    """Not over the prompt, not over decided positions."""
    sizes: list[int] = []
    handle = model.lm_head.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[:-1].numel()))
    output = answers(model, *MIXED_PROMPTS, max_new_tokens=8, output_history=True, confidence_threshold=0.5)
    handle.remove()
    masked = [int((step[:, -8:] == MASK).sum()) for step in output.history]
    assert sizes == [32, *masked[:-1]]
    assert sizes[-1] < 32  # control


def test_prompt_cache_of_a_generation_keeps_its_memory(
    model: DimpleForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values lie where the first pass put them, in every layer, until rows leave."""
    pointers: dict[int, set[int]] = {}
    update = cache_dimple.CanvasCacheLayer.update

    def spy(layer: Any, *args: Any, **kwargs: Any) -> Any:
        result = update(layer, *args, **kwargs)
        pointers.setdefault(id(layer), set()).add(layer.keys.data_ptr())
        return result

    monkeypatch.setattr(cache_dimple.CanvasCacheLayer, "update", spy)
    output = answers(model, MIXED_PROMPTS[1], max_new_tokens=8)
    assert output.num_forward_passes.item() > 2
    assert [len(found) for found in pointers.values()] == [1, 1]


def test_generate_with_cache_differs_from_generate_without(model: DimpleForConditionalGeneration) -> None:
    """The control of all cache tests: `use_cache` does something (the prompt no longer sees the answer change)."""
    rows = [
        tokens_of(
            answers(model, *MIXED_PROMPTS, max_new_tokens=16, use_cache=use_cache, confidence_threshold=None), 16
        )
        for use_cache in (True, False)
    ]
    assert rows[0] != rows[1]
    assert tokens_of(answers(model, *MIXED_PROMPTS, max_new_tokens=16, confidence_threshold=None), 16) == rows[0]


@pytest.mark.parametrize("context", [torch.inference_mode, torch.enable_grad])
@CACHES
def test_generate_in_inference_mode_and_with_gradients_on_is_the_same(
    model: DimpleForConditionalGeneration, context: Callable[[], Any], use_cache: bool
) -> None:
    """The cache is written in place, which neither may forbid; no graph is kept."""
    expected = answers(model, *MIXED_PROMPTS, max_new_tokens=6, use_cache=use_cache).sequences
    with context():
        output = answers(model, *MIXED_PROMPTS, max_new_tokens=6, use_cache=use_cache)
    assert torch.equal(output.sequences, expected)
    assert not output.tokens_per_forward.requires_grad


def test_generate_with_a_model_in_bfloat16_gives_tokens_and_float32_confidences() -> None:
    """The released checkpoint's dtype; scores are compared in float32."""
    model = tiny_model().to(torch.bfloat16)
    dtypes: set[torch.dtype] = set()

    class Spy:
        def __call__(self, sequences: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            dtypes.add(scores.dtype)
            return scores

    for use_cache in (True, False):
        options: dict[str, Any] = {"max_new_tokens": 6, "use_cache": use_cache, "logits_processor": [Spy()]}
        output = answers(model, *MIXED_PROMPTS, **options)
        assert output.sequences.shape == (4, WIDTH + 6)
        assert not (output.sequences[:, -6:] == MASK).any()
    assert dtypes == {torch.float32}
    assert model.dtype == torch.bfloat16  # control


# Options


def test_generate_returns_prompt_and_answer_as_plain_tokens_by_default(model: DimpleForConditionalGeneration) -> None:
    """As every transformers model; 64 positions when nothing says otherwise."""
    inputs = model_inputs(*MIXED_PROMPTS[:2])
    sequences = model.generate(**inputs)
    assert sequences.shape == (2, inputs["input_ids"].shape[1] + 64)
    assert torch.equal(sequences[:, :-64], inputs["input_ids"])
    assert torch.equal(model.generate(inputs["input_ids"], **{k: v for k, v in inputs.items() if k != "input_ids"}),
                       sequences)  # fmt: skip
    assert not (sequences == MASK).any()


def test_generate_with_max_length_counts_the_prompt(model: DimpleForConditionalGeneration) -> None:
    """As in transformers; the two lengths are easily confused."""
    inputs = model_inputs(MIXED_PROMPTS[0])
    assert torch.equal(model.generate(**inputs, max_length=12), model.generate(**inputs, max_new_tokens=7))


def test_generate_history_shows_every_step(model: DimpleForConditionalGeneration) -> None:
    """Prompt and answer after each step; decided tokens stay; the last is the answer. Only on request."""
    output = answers(model, *MIXED_PROMPTS, max_new_tokens=8, output_history=True)
    assert len(output.history) == output.num_forward_passes.max()
    for before, after in zip(output.history[:-1], output.history[1:], strict=True):
        decided = before != MASK
        assert torch.equal(before[decided], after[decided])
    assert torch.equal(output.history[-1], output.sequences)
    assert torch.equal(output.history[0][:, :-8], model_inputs(*MIXED_PROMPTS)["input_ids"])
    assert answers(model, MIXED_PROMPTS[0], max_new_tokens=2).history is None


def test_generate_with_fewer_steps_unmasks_the_rest_in_the_last(model: DimpleForConditionalGeneration) -> None:
    """Quality is traded for speed, but an answer is always whole."""
    output = answers(model, *MIXED_PROMPTS, max_new_tokens=8, max_denoising_steps=3, confidence_threshold=None)
    assert output.num_forward_passes.tolist() == [3] * 4
    assert answers(model, MIXED_PROMPTS[0], max_new_tokens=8, max_denoising_steps=1).num_forward_passes.item() == 1


def test_generate_sampling_with_the_same_seed_gives_the_same_tokens(model: DimpleForConditionalGeneration) -> None:
    """An experiment can be repeated."""
    rows = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        rows.append(tokens_of(answers(model, *MIXED_PROMPTS, max_new_tokens=8, do_sample=True, temperature=2.0), 8))
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]  # control


def test_generate_sampling_options_shape_the_distribution(model: DimpleForConditionalGeneration) -> None:
    """`top_k=1` and a tiny `top_p` leave the greedy token; a high temperature does not."""
    greedy = tokens_of(answers(model, *MIXED_PROMPTS, max_new_tokens=8), 8)
    off = []
    for options in ({"top_p": 1.0}, {"top_k": 0}):  # both are transformers' way to switch it off
        torch.manual_seed(0)
        off.append(answers(model, MIXED_PROMPTS[0], max_new_tokens=4, do_sample=True, **options).sequences)
    assert torch.equal(*off)
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert tokens_of(answers(model, *MIXED_PROMPTS, max_new_tokens=8, do_sample=True, **options), 8) == greedy
    assert tokens_of(answers(model, *MIXED_PROMPTS, max_new_tokens=8, do_sample=True, temperature=5.0), 8) != greedy


@CACHES
def test_generate_several_sequences_for_prompts_with_images(
    model: DimpleForConditionalGeneration, use_cache: bool
) -> None:
    """The original raises. Sequences of a prompt are neighbours, and each is as if it stood there alone."""
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": True, "use_cache": use_cache}
    output = answers(model, *MIXED_PROMPTS, num_return_sequences=3, **options)
    assert output.sequences.shape == (12, WIDTH + 6)
    prompts = model_inputs(*MIXED_PROMPTS)["input_ids"]
    assert torch.equal(output.sequences[:, :-6], prompts.repeat_interleave(3, dim=0))
    assert output.num_forward_passes.shape == output.tokens_per_forward.shape == (12,)
    # With one possible token each, all three are the greedy answer of their own prompt and images.
    same = answers(model, *MIXED_PROMPTS, num_return_sequences=3, **options, top_k=1)
    greedy = answers(model, *MIXED_PROMPTS, max_new_tokens=6, use_cache=use_cache)
    assert torch.equal(same.sequences, greedy.sequences.repeat_interleave(3, dim=0))
    assert len({tuple(row) for row in tokens_of(output, 6)}) > 4  # control: drawn


def test_generate_takes_options_from_a_configuration_object_and_keywords_win(
    model: DimpleForConditionalGeneration,
) -> None:
    """Transformers' own object, or ours; what it leaves open is the model's."""
    inputs = model_inputs(*MIXED_PROMPTS)
    expected = model.generate(**inputs, max_new_tokens=5, unmasking="margin", confidence_threshold=None)
    config = DimpleGenerationConfig(max_new_tokens=5, unmasking="margin", confidence_threshold=None)
    assert torch.equal(model.generate(**inputs, generation_config=config), expected)
    config.max_new_tokens = 9
    assert torch.equal(model.generate(**inputs, generation_config=config, max_new_tokens=5), expected)
    plain = GenerationConfig(max_new_tokens=5)
    changed = copy.deepcopy(model)
    changed.generation_config.unmasking, changed.generation_config.confidence_threshold = "margin", None
    assert torch.equal(changed.generate(**inputs, generation_config=plain), expected)
    assert not torch.equal(model.generate(**inputs, generation_config=plain), expected)  # control
    assert model.generation_config.max_new_tokens is None  # and nothing is left after


def test_generate_accepts_what_transformers_server_and_processors_pass(model: DimpleForConditionalGeneration) -> None:
    """A tokenizer, options that say "off", and inputs that are `None`."""
    inputs = model_inputs(MIXED_PROMPTS[1])
    expected = model.generate(**inputs, max_new_tokens=4)
    extra: dict[str, Any] = {
        "tokenizer": object(), "pixel_values_videos": None, "num_beams": 1, "output_scores": False,
        "repetition_penalty": 1.0, "answer_ids": None,
    }  # fmt: skip
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, **extra), expected)


# Canvases


@CACHES
def test_answer_ids_fix_tokens_and_set_the_length(model: DimpleForConditionalGeneration, use_cache: bool) -> None:
    """A structure prior: fixed tokens stay, and the others are decided with them in sight."""
    canvas = torch.full((4, 7), MASK)
    canvas[:, 2], canvas[:2, 5] = 17, 23
    output = answers(model, *MIXED_PROMPTS, answer_ids=canvas, use_cache=use_cache, output_history=True)
    answer = output.sequences[:, -7:]
    assert output.sequences.shape == (4, WIDTH + 7)
    assert torch.equal(answer[canvas != MASK], canvas[canvas != MASK])
    assert not (answer == MASK).any()
    free = answers(model, *MIXED_PROMPTS, max_new_tokens=7, use_cache=use_cache).sequences[:, -7:]
    assert not torch.equal(answer[canvas == MASK], free[canvas == MASK])  # control: they are seen
    for row, prompt in enumerate(MIXED_PROMPTS):
        alone = answers(model, prompt, answer_ids=canvas[row : row + 1], use_cache=use_cache)
        assert alone.sequences[0, -7:].tolist() == answer[row].tolist()


def test_answer_ids_without_mask_tokens_need_no_pass(
    model: DimpleForConditionalGeneration, passes: Callable[[DimpleForConditionalGeneration], list[tuple[int, int]]]
) -> None:
    """There is nothing to decide, and nothing to divide by."""
    seen = passes(model)
    output = answers(model, MIXED_PROMPTS[0], answer_ids=torch.tensor([[1, 2, 3]]))
    assert output.sequences[0, -3:].tolist() == [1, 2, 3]
    assert output.num_forward_passes.tolist() == [0]
    assert output.tokens_per_forward.tolist() == [0]
    assert seen == []


@CACHES
def test_generated_image_placeholders_are_tokens_like_any_other(
    model: DimpleForConditionalGeneration, use_cache: bool
) -> None:
    """A model may write one in the middle of decoding; the images stay where they are."""

    class WriteOne:
        def __call__(self, sequences: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores[::3, IMAGE] = 1e4
            return scores

    output = answers(model, *MIXED_PROMPTS, max_new_tokens=6, use_cache=use_cache, logits_processor=[WriteOne()])
    assert (output.sequences[:, -6:] == IMAGE).any()
    assert output.num_forward_passes.max() > 1
    canvas = torch.tensor([[IMAGE, MASK, MASK]])
    assert answers(model, MIXED_PROMPTS[1], answer_ids=canvas, use_cache=use_cache).sequences[0, -3] == IMAGE


@settings(max_examples=15)
@given(data=st.data())
def test_generate_over_any_canvas_keeps_its_promises(
    model: DimpleForConditionalGeneration, data: st.DataObject
) -> None:
    """Fixed and decided tokens never change, the decided count never falls, passes <= steps, no mask in the output."""
    prompts = data.draw(st.lists(st.sampled_from(MIXED_PROMPTS), min_size=1, max_size=3))
    length = data.draw(st.integers(1, 9))
    token = st.one_of(st.just(MASK), st.integers(0, 98).filter(lambda token: token != MASK))
    rows = st.lists(token, min_size=length, max_size=length)
    canvas = torch.tensor(data.draw(st.lists(rows, min_size=len(prompts), max_size=len(prompts))))
    steps = data.draw(st.integers(1, 12))
    eos_token_ids = data.draw(st.lists(st.integers(0, 89), min_size=1, max_size=20))
    output = answers(
        model, *prompts, answer_ids=canvas, max_denoising_steps=steps, output_history=True,
        confidence_threshold=data.draw(st.one_of(st.none(), st.floats(1e-3, 1))),
        unmasking=data.draw(st.sampled_from(["confidence", "margin", "entropy", "random", "left_to_right"])),
        unmasking_schedule=data.draw(st.sampled_from(["adaptive", "fixed"])),
        use_cache=data.draw(st.booleans()), do_sample=data.draw(st.booleans()),
        eos_token_id=eos_token_ids,
    )  # fmt: skip
    before = canvas
    for step in output.history:
        after = step[:, -length:]
        decided = before != MASK
        assert torch.equal(after[decided], before[decided])
        before = after
    assert (output.num_forward_passes <= steps).all()
    # What is returned is what was decided, up to and with the first end, and padding after it.
    for row, decided in zip(tokens_of(output, length), before.tolist(), strict=True):
        stop = next((position + 1 for position, token in enumerate(decided) if token in (*eos_token_ids, PAD)), length)
        assert row == decided[:stop] + [PAD] * (length - stop)
        assert MASK not in row


# Processors and criteria


def test_logits_processors_change_tokens(model: DimpleForConditionalGeneration) -> None:
    """Transformers' own, and a user's that forces one token everywhere."""
    plain = answers(model, *MIXED_PROMPTS, max_new_tokens=8).sequences[:, -8:]
    common = plain.flatten().mode().values.item()
    suppress = LogitsProcessorList([SuppressTokensLogitsProcessor([common], device="cpu")])
    without = answers(model, *MIXED_PROMPTS, max_new_tokens=8, logits_processor=suppress).sequences[:, -8:]
    assert (plain == common).any()  # control
    assert not (without == common).any()

    def force_seven(sequences: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -math.inf).index_fill(1, torch.tensor([7]), 0)

    forced = answers(model, *MIXED_PROMPTS, max_new_tokens=8, logits_processor=[force_seven])
    assert tokens_of(forced, 8) == [[7] * 8] * 4
    assert forced.num_forward_passes.tolist() == [1] * 4  # its probability is 1


def test_mask_token_is_never_generated() -> None:
    """Even by a model that prefers it: it would look masked for ever."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[MASK] = 8 * model.lm_head.weight[3]
    inputs = model_inputs(*MIXED_PROMPTS)
    assert (model(**inputs).logits.argmax(dim=-1) == MASK).any()  # control
    assert not (model.generate(**inputs, max_new_tokens=8) == MASK).any()
    seen: list[torch.Tensor] = []

    def look(sequences: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(scores.clone())
        return scores

    model.generate(**inputs, max_new_tokens=8, logits_processor=[look])
    for scores in seen:
        assert scores[:, MASK].isneginf().all()
        assert scores[:, :MASK].isfinite().all()  # control: no other token is


def test_stopping_criteria_stop_rows_and_padding_fills_the_rest(model: DimpleForConditionalGeneration) -> None:
    """A row that is stopped keeps what is unmasked; the others go on as they would have."""

    def stop_short_prompt(sequences: torch.Tensor, scores: None, **kwargs: Any) -> torch.Tensor:
        is_short = sequences[:, -9] == MIXED_PROMPTS[0].tokens[-1]
        return is_short & ((sequences[:, -8:] != MASK).sum(dim=1) >= 2)

    options: dict[str, Any] = {
        "max_new_tokens": 8, "confidence_threshold": None, "unmasking": "left_to_right", "max_denoising_steps": 80
    }  # fmt: skip
    whole = answers(model, *MIXED_PROMPTS, **options)
    stopped = answers(model, *MIXED_PROMPTS, **options, stopping_criteria=StoppingCriteriaList([stop_short_prompt]))
    assert tokens_of(stopped, 8)[0] == tokens_of(whole, 8)[0][:2] + [PAD] * 6
    assert tokens_of(stopped, 8)[1:] == tokens_of(whole, 8)[1:]
    assert stopped.num_forward_passes.tolist() == [2, 8, 8, 8]


def test_max_time_stops_after_the_first_step(model: DimpleForConditionalGeneration) -> None:
    """Time is checked after each step, so something is always decided."""
    options = {"max_new_tokens": 8, "confidence_threshold": None}
    output = answers(model, *MIXED_PROMPTS, **options, max_time=1e-9)
    assert output.num_forward_passes.tolist() == [1] * 4
    assert not (output.sequences == MASK).any()
    assert answers(model, *MIXED_PROMPTS, **options, max_time=100.0).num_forward_passes.min() > 1  # control


# NaN


@pytest.mark.parametrize("value", [math.nan, math.inf])
@CACHES
def test_logits_that_are_no_numbers_raise(value: float, use_cache: bool) -> None:
    """Broken weights, an overflow in half precision: never an argmax over NaN; in both calls, greedy or not."""
    model = tiny_model()
    inputs = model_inputs(*MIXED_PROMPTS)
    model.generate(**inputs, max_new_tokens=3)  # control
    with torch.no_grad():
        model.lm_head.weight[5, 0] = value
    for do_sample in (False, True):
        with pytest.raises(ValueError, match="the logits must never be NaN"):
            model.generate(**inputs, max_new_tokens=3, use_cache=use_cache, do_sample=do_sample)
        with pytest.raises(ValueError, match="the logits must never be NaN"):
            model.diffusion_generate(**inputs, max_new_tokens=3, use_cache=use_cache, temperature=float(do_sample))


# Streamers


@pytest.fixture(scope="module")
def tokenizer(parity_dir: Path) -> PreTrainedTokenizerBase:
    """420 tokens of text; the tiny models know the first 99 of them."""
    return AutoTokenizer.from_pretrained(parity_dir / "tokenizer")


@pytest.mark.parametrize("unmasking", ["confidence", "left_to_right"])
def test_text_streamer_prints_the_decoded_answer(
    model: DimpleForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str],
    unmasking: str,
) -> None:  # fmt: skip
    """Whatever the order of decisions, what is printed is the text of what is returned; with the prompt or without."""
    inputs = model_inputs(MIXED_PROMPTS[1])
    for skip_prompt in (True, False):
        sequences = model.generate(
            **inputs, max_new_tokens=12, unmasking=unmasking, streamer=TextStreamer(tokenizer, skip_prompt=skip_prompt)
        )
        start = inputs["input_ids"].shape[1] if skip_prompt else 0
        assert capsys.readouterr().out == tokenizer.decode(sequences[0, start:]) + "\n"
        assert len(tokenizer.decode(sequences[0, -12:])) >= 12  # control: there was something to print


def test_text_iterator_streamer_yields_the_answer_from_another_thread(
    model: DimpleForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> None:
    """How a server streams: pieces whose sum is the text."""
    inputs = model_inputs(MIXED_PROMPTS[1])
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    options = {"max_new_tokens": 12, "unmasking": "left_to_right", "confidence_threshold": None}
    thread = threading.Thread(target=model.generate, kwargs={**inputs, **options, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == tokenizer.decode(model.generate(**inputs, **options)[0, -12:])
    assert "".join(pieces)  # control


def test_text_diffusion_streamer_shows_drafts_and_the_answer(
    model: DimpleForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    """Transformers' own streamer for diffusion models, as it is."""
    inputs = model_inputs(MIXED_PROMPTS[1])
    drafts: list[torch.Size] = []

    class Spy(TextDiffusionStreamer):
        def put_draft(self, value: torch.Tensor, **kwargs: Any) -> None:
            drafts.append(value.shape)
            super().put_draft(value=value, **kwargs)

    sequences = model.generate(**inputs, max_new_tokens=6, streamer=Spy(tokenizer, skip_prompt=True))
    num_passes = answers(model, MIXED_PROMPTS[1], max_new_tokens=6).num_forward_passes.item()
    assert num_passes > 1  # control
    assert drafts == [(1, 6)] * num_passes  # one after each step, and none before the first
    assert tokenizer.decode(sequences[0, -6:]) in capsys.readouterr().out


def test_streamed_text_ends_with_the_answers_end(
    model: DimpleForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    """No padding after an early end is streamed."""
    inputs = model_inputs(MIXED_PROMPTS[1])
    options: dict[str, Any] = {"max_new_tokens": 12, "unmasking": "left_to_right", "confidence_threshold": None}
    end = model.generate(**inputs, **options)[0, -10].item()
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    sequences = model.generate(**inputs, **options, eos_token_id=end, streamer=streamer)
    answer = sequences[0, -12:]
    answer = answer[answer != PAD]
    assert len(answer) < 12  # control: it did end early
    assert capsys.readouterr().out == tokenizer.decode(answer) + "\n"


# Causal mode


@torch.no_grad()
def greedy_reference(model: DimpleForConditionalGeneration, inputs: dict[str, torch.Tensor], length: int) -> Any:
    """Token by token, each from a whole pass without any cache."""
    inputs = dict(inputs)
    for _ in range(length):
        token = model(**inputs).logits[:, -1].argmax(dim=-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], dim=1)
    return inputs["input_ids"]


@CACHES
@pytest.mark.parametrize("prompts", [MIXED_PROMPTS, MIXED_PROMPTS[2:3]], ids=["batch", "one-row"])
def test_causal_checkpoint_generates_token_by_token(
    causal_model: DimpleForConditionalGeneration, prompts: tuple, use_cache: bool
) -> None:
    """Equal to a loop of whole passes: positions after images, left padding, transformers' own cache."""
    inputs = model_inputs(*prompts)
    expected = greedy_reference(causal_model, inputs, 6)
    assert torch.equal(causal_model.generate(**inputs, max_new_tokens=6, use_cache=use_cache), expected)
    # control: the modes differ
    assert not torch.equal(tiny_model().generate(**inputs, max_new_tokens=6), expected)


def test_causal_checkpoint_samples_several_sequences_with_images(causal_model: DimpleForConditionalGeneration) -> None:
    """Embeddings, masks and three-dimensional positions are all repeated; one possible token is the greedy answer."""
    inputs = model_inputs(*MIXED_PROMPTS)
    expected = greedy_reference(causal_model, inputs, 5).repeat_interleave(3, dim=0)
    options = {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 3}
    assert torch.equal(causal_model.generate(**inputs, **options, top_k=1), expected)
    drawn = causal_model.generate(**inputs, **options, top_k=0, temperature=2.0)
    assert drawn.shape == expected.shape
    assert not torch.equal(drawn, expected)  # control


def test_causal_checkpoint_takes_transformers_options(causal_model: DimpleForConditionalGeneration) -> None:
    """What diffusion decoding refuses, the parent class does: beams, criteria, scores, an early end, 64 tokens."""
    inputs = model_inputs(MIXED_PROMPTS[1])
    assert causal_model.generate(**inputs, num_beams=2, max_new_tokens=3).shape == (1, 14)
    output = causal_model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True, output_scores=True)
    assert len(output.scores) == 3
    whole = causal_model.generate(**inputs)
    assert whole.shape == (1, 11 + 64)
    end = whole[0, 13].item()
    stopped = causal_model.generate(**inputs, eos_token_id=end)
    assert stopped[0].tolist() == whole[0, : 11 + whole[0, 11:].tolist().index(end) + 1].tolist()
    assert causal_model.generate(**inputs, max_length=14).shape == (1, 14)


def test_causal_checkpoint_ends_its_answer_with_padding(causal_model: DimpleForConditionalGeneration) -> None:
    """Training closes answers with a run of padding in both modes, so padding ends them in both."""
    inputs = model_inputs(MIXED_PROMPTS[1])
    whole = causal_model.generate(**inputs, max_new_tokens=8)[0].tolist()
    written = whole[13]
    first = whole.index(written, 11)
    ended = causal_model.generate(**inputs, max_new_tokens=8, pad_token_id=written)[0].tolist()
    assert ended == whole[: first + 1]
    assert len(whole) == 11 + 8  # control: without it, the answer goes on


def test_causal_checkpoint_streams(
    causal_model: DimpleForConditionalGeneration, tokenizer: PreTrainedTokenizerBase,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Through transformers' own loop, with the `tokenizer` argument that its server passes."""
    inputs = model_inputs(MIXED_PROMPTS[1])
    sequences = causal_model.generate(
        **inputs, max_new_tokens=6, streamer=TextStreamer(tokenizer, skip_prompt=True), tokenizer=tokenizer
    )
    assert capsys.readouterr().out == tokenizer.decode(sequences[0, -6:]) + "\n"


def test_causal_checkpoint_runs_the_vision_tower_once() -> None:
    """The prompt is embedded before the loop."""
    model = tiny_model(full_attn_mask=False)
    calls: list[int] = []
    model.visual.register_forward_pre_hook(lambda module, args: calls.append(1))
    model.generate(**model_inputs(*MIXED_PROMPTS), max_new_tokens=5)
    assert calls == [1]


@pytest.mark.parametrize("name", ["unmasking", "max_denoising_steps", "confidence_threshold", "answer_ids"])
def test_causal_checkpoint_refuses_options_of_diffusion(
    causal_model: DimpleForConditionalGeneration, name: str
) -> None:
    """They would do nothing, in silence."""
    with pytest.raises(ValueError, match=f"`{name}` must be used in bidirectional mode"):
        causal_model.generate(**model_inputs(MIXED_PROMPTS[0]), max_new_tokens=2, **{name: 1})
    causal_model.generate(**model_inputs(MIXED_PROMPTS[0]), max_new_tokens=2)  # control


# Refusals


def refusals() -> Iterator[Any]:
    """Changes of good arguments for `generate` and `diffusion_generate`, the message, and whether both refuse them."""
    inputs = model_inputs(*MIXED_PROMPTS[:2])
    ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
    right, holes, only_padding, with_mask_token = mask.flip(1), mask.clone(), mask.clone(), ids.clone()
    holes[0, -3] = 0
    only_padding[0] = 0
    with_mask_token[1, -1] = MASK
    yield "no prompt", {"input_ids": None}, r"exactly one of `inputs` and `input_ids` .*\(got neither\)"
    yield "two prompts", {"inputs": ids}, r"exactly one of `inputs` and `input_ids` .*\(got both\)"
    embeds = {"input_ids": None, "inputs_embeds": torch.zeros(2, 11, 32)}
    yield "embeddings", embeds, "`inputs_embeds` must not be given in bidirectional mode: pass .* `input_ids`"
    yield "empty prompt", {"input_ids": ids[:, :0]}, r"`input_ids` must be an integer tensor .*\(2, 0\)"
    yield "flat prompt", {"input_ids": ids[0]}, r"`input_ids` must be an integer tensor .*\(11,\)"
    yield "text prompt", {"input_ids": "hi"}, r"`input_ids` must be a tensor, as of the processor .*\(got str\)"
    yield "float prompt", {"input_ids": ids.float()}, "`input_ids` must be an integer tensor .*float32"
    yield "right padding", {"attention_mask": right}, r"must be padded on the left .* in row 0\)"
    yield "interleaved padding", {"attention_mask": holes}, r"must be padded on the left .* in row 0\)"
    yield "only padding", {"attention_mask": only_padding}, r"have a token in each row \(got only padding in row 0\)"
    yield "mask shape", {"attention_mask": mask[:, 1:]}, r"must have the shape of `input_ids`, \(2, 11\) .*\(2, 10\)"
    yield "mask token", {"input_ids": with_mask_token}, r"must not hold the mask token 92.* in row 1\)"
    yield "too long", {"max_new_tokens": 118}, r"must fit `max_position_embeddings`=128 \(got 11 \+ 118 tokens\)"
    yield "no memory", {"max_new_tokens": 1 << 63}, r"must fit `max_position_embeddings`=128 \(got 11 \+ 9223372"
    yield "no length", {"max_new_tokens": 0}, "`max_new_tokens`"
    yield "no room", {"max_new_tokens": None, "max_length": 11}, "`max_length` must leave room .*11 tokens"
    yield "no grid", {"image_grid_thw": None}, "given together .*no `image_grid_thw`"
    yield "no pixels", {"pixel_values": None}, "given together .*no `pixel_values`"
    yield "too many images", {"image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}, "must hold 8 image placeholders"
    yield "pixels dtype", {"pixel_values": pixels.int()}, "`pixel_values` must be floating point"
    yield "pixels shape", {"pixel_values": pixels[:, 1:]}, r"shape \(num_patches, 96\) \(got \(16, 95\)\)"
    yield "grid dtype", {"image_grid_thw": torch.tensor([[1.0, 4.0, 4.0]])}, "`image_grid_thw` must be an integer"
    yield "video frames", {"image_grid_thw": torch.tensor([[4, 2, 2]])}, "video is not supported"
    yield "video", {"pixel_values_videos": pixels}, "`pixel_values_videos` must not be given: Dimple does not support"
    yield "video grid", {"video_grid_thw": torch.tensor([[1, 4, 4]])}, "`video_grid_thw` must not be given"
    yield "misspelt", {"pixel_value": pixels}, "`pixel_value` must be .*; did you mean `pixel_values`\\?"


@pytest.mark.parametrize("method", ["generate", "diffusion_generate"])
@pytest.mark.parametrize(("changes", "message"), [pytest.param(c, m, id=name) for name, c, m in refusals()])
def test_bad_input_is_refused_before_any_pass(
    model: DimpleForConditionalGeneration, method: str, changes: dict[str, Any], message: str,
    passes: Callable[[DimpleForConditionalGeneration], list[tuple[int, int]]],
) -> None:  # fmt: skip
    """The message names the argument, the rule and the value."""
    arguments = {**model_inputs(*MIXED_PROMPTS[:2]), "max_new_tokens": 3}
    seen = passes(model)
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(**{k: v for k, v in (arguments | changes).items() if v is not None})
    assert seen == []
    assert getattr(model, method)(**arguments).shape == (2, 14)  # control
    assert seen != []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unmaskin": "margin"}, "`unmaskin` must be .*; did you mean `unmasking`\\?"),
        ({"steps": 3}, "`steps` must be passed to `diffusion_generate`; `generate` has `max_denoising_steps`"),
        ({"alg": "entropy"}, "`alg` must be passed to .* has `unmasking`"),
        ({"alg_p_threshold": 0.5}, "`generate` has `confidence_threshold`"),
        ({"num_beams": 2}, "`num_beams` must not be set: diffusion decoding has no such option \\(got 2\\)"),
        ({"repetition_penalty": 1.2}, "`repetition_penalty` must not be set"),
        ({"do_sample": True, "temperature": float("inf")}, "`temperature` must be positive and finite"),
        ({"num_return_sequences": 2}, "num_return_sequences"),  # greedy: all would be the same
        ({"generation_config": GenerationConfig(min_new_tokens=3)}, "`min_new_tokens` must not be set"),
        (
            {"answer_ids": torch.zeros(3, 4, dtype=torch.long)},
            r"`answer_ids` must have shape \(batch_size=2.*\(3, 4\)",
        ),
        ({"answer_ids": torch.zeros(2, 0, dtype=torch.long)}, r"`answer_ids` must have shape .*\(2, 0\)"),
        ({"answer_ids": torch.zeros(2, dtype=torch.long)}, r"`answer_ids` must have shape .*\(2,\)"),
        (
            {"answer_ids": torch.zeros(2, 4, dtype=torch.long)},
            r"not be longer than `max_new_tokens`=3 \(got 4 tokens\)",
        ),
        ({"past_key_values": DynamicCache()}, "`past_key_values` must not be given in bidirectional mode$"),
        ({"assistant_model": "small"}, "`assistant_model` must not be given in bidirectional mode$"),
        ({"answer_ids": [[0, 0]]}, r"`answer_ids` must be a tensor, .* \(got list\)"),
        ({"attention_mask": [[1]]}, r"`attention_mask` must be a tensor, .* \(got list\)"),
        (
            {"answer_ids": torch.zeros(2, 2, dtype=torch.long), "answer_attention_mask": [[1, 1]]},
            r"`answer_attention_mask` must be a tensor, .* \(got list\)",
        ),
        ({"pixel_values": [0.0], "image_grid_thw": [[1, 2, 2]]}, r"`pixel_values` must be a tensor, .* \(got list\)"),
        ({"answer_constraint": "a+"}, r"`answer_constraint` must be an `AnswerConstraint` \(got 'a\+'\)"),
        (
            {"generation_config": {"top_k": 3}},
            r"`generation_config` must be a GenerationConfig \(got \{'top_k': 3\}\)",
        ),
        ({"logits_processor": print}, r"`logits_processor` must be a list of functions \(got <built-in"),
        ({"stopping_criteria": [3]}, r"`stopping_criteria` must be a list of functions \(got \[3\]\)"),
        ({"streamer": print}, r"`streamer` must have `put` and `end` \(got <built-in"),
        ({"mask_token_id": 10**6}, r"`mask_token_id` must be below `vocab_size`=\d+ \(got 1000000\)"),
        ({"eos_token_id": "<|im_end|>"}, r"`eos_token_id` must be an integer or a list of integers \(got '<"),
        ({"streamer": TextStreamer(None)}, r"`streamer` must be used with one sequence at a time \(got 2\)"),
    ],
)
def test_bad_option_of_generate_is_refused_before_any_pass(
    model: DimpleForConditionalGeneration, options: dict[str, Any], message: str,
    passes: Callable[[DimpleForConditionalGeneration], list[tuple[int, int]]],
) -> None:  # fmt: skip
    """Unknown names get the nearest known one, the original's names get ours."""
    seen = passes(model)
    with pytest.raises(ValueError, match=message):
        model.generate(**{**model_inputs(*MIXED_PROMPTS[:2]), "max_new_tokens": 3, **options})
    assert seen == []


def test_generate_without_any_padding_token_is_refused() -> None:
    """Something must stand after an end."""
    model = tiny_model(pad_token_id=None)
    inputs = model_inputs(MIXED_PROMPTS[0])
    model.model.layers[0].register_forward_pre_hook(lambda module, args: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match="`pad_token_id` must be set"):
        model.generate(**inputs, max_new_tokens=2)
    assert tiny_model(pad_token_id=None).generate(**inputs, max_new_tokens=2, pad_token_id=PAD).shape == (1, 7)


def test_causal_generation_beyond_the_positions_is_refused(causal_model: DimpleForConditionalGeneration) -> None:
    """The prompt is checked as in bidirectional mode, before any pass."""
    inputs = model_inputs(MIXED_PROMPTS[0])
    with pytest.raises(ValueError, match=r"`max_position_embeddings`=128 \(got 5 \+ 124 tokens\)"):
        causal_model.generate(**inputs, max_new_tokens=124)
    with pytest.raises(ValueError, match=r"`max_position_embeddings`=128"):
        causal_model.generate(**inputs, max_length=129)
    with pytest.raises(ValueError, match="padded on the left"):
        causal_model.generate(**model_inputs(*MIXED_PROMPTS[:2], padding_side="right"), max_new_tokens=2)
    assert causal_model.generate(**inputs, max_new_tokens=2).shape == (1, 7)  # control


def test_long_prompt_at_the_limit_of_positions_is_accepted(
    model: DimpleForConditionalGeneration, causal_model: DimpleForConditionalGeneration
) -> None:
    """128 positions in all, not one less, in both modes."""
    assert causal_model.generate(**model_inputs(make_prompt(120)), min_new_tokens=8, max_new_tokens=8).shape[1] == 128
    assert model.generate(**model_inputs(make_prompt(120)), max_new_tokens=8).shape == (1, 128)
