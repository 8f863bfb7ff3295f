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
"""`generate_steps`: the answers of any number of rows while they come into being, and work that ends with the loop."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import EOS, MASK, MIXED_PROMPTS, PAD, make_prompt, model_inputs, tiny_model
from transformers import AutoTokenizer

from dimple_hf import DimpleForConditionalGeneration, DimpleGenerationStep
from dimple_hf.modeling.rules_dimple import SAMPLER_RULES, EntropyBoundConfig, WinoConfig

LENGTH = 10

#: Every rule, with options under which the tiny model sometimes unmasks several positions at once.
RULES: dict[str, dict[str, Any]] = {name: {"sampler": name} for name in SAMPLER_RULES}
RULES["threshold"] |= {"confidence_threshold": 0.3}
RULES["entropy_bound"] |= {"sampler_config": EntropyBoundConfig(3.0)}
RULES["wino"] |= {"sampler_config": WinoConfig(0.3, 0.4)}
EACH_RULE = pytest.mark.parametrize("rule", [pytest.param(options, id=name) for name, options in RULES.items()])


@pytest.fixture
def num_passes(model: DimpleForConditionalGeneration) -> Iterator[Callable[[], int]]:
    """A function that says how often the tiny model has run since the test began."""
    passes: list[None] = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda module, args: passes.append(None))
    yield lambda: len(passes)
    handle.remove()


def with_ends(model: DimpleForConditionalGeneration, **options: Any) -> dict[str, Any]:
    """The options, with an end token that row 1 has in the middle of its answer."""
    end = model.generate(**model_inputs(MIXED_PROMPTS[1]), max_new_tokens=LENGTH, **options)[0, -5].item()
    return {"max_new_tokens": LENGTH, "eos_token_id": [EOS, end], **options}


@EACH_RULE
def test_steps_are_those_of_generate_and_the_last_is_its_output(
    model: DimpleForConditionalGeneration, rule: dict[str, Any]
) -> None:
    """One loop for both: the same drafts, the same passes, one item for each step and one before the first."""
    inputs, options = model_inputs(*MIXED_PROMPTS), with_ends(model, **rule)
    output = model.generate(**inputs, **options, return_dict_in_generate=True, output_history=True)
    steps = list(model.generate_steps(**inputs, **options))
    assert [step.step for step in steps] == list(range(len(output.history) + 1))
    assert (steps[0].answer_ids == MASK).all()
    assert not steps[0].is_final.any()
    assert not steps[0].num_forward_passes.any()
    for step, drafts in zip(steps[1:], output.history, strict=True):
        unfinished = ~step.finished
        assert torch.equal(step.answer_ids[unfinished], drafts[unfinished, -LENGTH:])
    assert torch.equal(steps[-1].answer_ids, output.sequences[:, -LENGTH:])
    assert torch.equal(steps[-1].num_forward_passes, output.num_forward_passes)
    assert steps[-1].finished.all()
    assert steps[-1].is_final.all()
    assert len(steps) > 3  # control
    assert (steps[-1].answer_ids == PAD).any()


@EACH_RULE
def test_final_tokens_stay_up_to_the_end_of_their_row(
    model: DimpleForConditionalGeneration, rule: dict[str, Any]
) -> None:
    """A consumer may show them for good; under a rule that takes back, what it may take back is not among them."""
    steps = list(model.generate_steps(**model_inputs(*MIXED_PROMPTS), **with_ends(model, **rule)))
    last = steps[-1].answer_ids
    in_answer = (last == PAD).cumsum(dim=1) == 0
    for before, after in zip(steps[:-1], steps[1:], strict=True):
        assert torch.equal(before.answer_ids[before.is_final & in_answer], last[before.is_final & in_answer])
        assert torch.equal(before.is_final & after.is_final, before.is_final)
        assert not (before.is_final & (before.answer_ids == MASK)).any()
        assert torch.equal(before.answer_ids[before.finished], last[before.finished])
    decided_first = [(step.answer_ids != MASK).sum() - step.is_final.sum() for step in steps[:-1]]
    assert (max(decided_first) > 0) == hasattr(SAMPLER_RULES[rule["sampler"]], "remask")  # control


def test_work_ends_within_one_step_when_the_consumer_leaves(
    model: DimpleForConditionalGeneration, num_passes: Callable[[], int]
) -> None:
    """Each item costs one pass, which runs when it is asked for, in the consumer's own thread."""
    num_threads = threading.active_count()
    options = {"max_new_tokens": LENGTH, "confidence_threshold": None}
    steps = model.generate_steps(**model_inputs(*MIXED_PROMPTS), **options)
    assert num_passes() == 0
    for item in range(4):
        assert next(steps).step == item == num_passes()
    steps.close()
    assert num_passes() == 3
    assert next(steps, None) is None
    for step in model.generate_steps(**model_inputs(*MIXED_PROMPTS), **options):
        if step.step == 2:
            break
    del step
    assert num_passes() == 5
    assert threading.active_count() == num_threads
    list(model.generate_steps(**model_inputs(*MIXED_PROMPTS), **options))
    assert num_passes() > 5 + 6  # control: there was more to do


def test_items_are_the_consumers_to_keep_and_to_change(model: DimpleForConditionalGeneration) -> None:
    """What it does with one changes nothing in the next."""
    options = {"max_new_tokens": LENGTH, "confidence_threshold": 0.3}
    expected = list(model.generate_steps(**model_inputs(*MIXED_PROMPTS), **options))
    steps = []
    for step in model.generate_steps(**model_inputs(*MIXED_PROMPTS), **options):
        steps.append(DimpleGenerationStep(step.step, *(getattr(step, name).clone() for name in TENSORS)))
        for name in TENSORS:
            getattr(step, name).zero_()
    for step, same in zip(steps, expected, strict=True):
        for name in TENSORS:
            torch.testing.assert_close(getattr(step, name), getattr(same, name), rtol=0, atol=0, equal_nan=True)
    assert any(step.is_final.any() for step in steps)  # control


TENSORS = ("answer_ids", "is_final", "finished", "num_forward_passes", "token_logprobs", "commit_steps")


def test_steps_need_no_gradient_and_leave_the_consumers_mode_alone(model: DimpleForConditionalGeneration) -> None:
    """Between the steps the consumer's code runs as it would elsewhere."""
    sizes = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.requires_grad))
    for _ in model.generate_steps(**model_inputs(MIXED_PROMPTS[0]), max_new_tokens=3):
        assert torch.is_grad_enabled()
    handle.remove()
    assert sizes
    assert not any(sizes)


def test_steps_of_several_sequences_and_of_a_canvas(model: DimpleForConditionalGeneration) -> None:
    """A row for each returned sequence; a canvas' own tokens are final from the start."""
    inputs = model_inputs(*MIXED_PROMPTS)
    torch.manual_seed(1)
    steps = list(model.generate_steps(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=2))
    torch.manual_seed(1)
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=2)
    assert torch.equal(steps[-1].answer_ids, expected[:, -4:])
    assert all(len(step.finished) == 8 for step in steps)
    canvas = torch.full((4, 6), MASK)
    canvas[:, 2] = 17
    first = next(model.generate_steps(**inputs, answer_ids=canvas))
    assert torch.equal(first.answer_ids, canvas)
    assert torch.equal(first.is_final, canvas == 17)
    whole = torch.tensor([[1, 2, 3]])
    only = list(model.generate_steps(**model_inputs(MIXED_PROMPTS[0]), answer_ids=whole))
    assert len(only) == 1
    assert torch.equal(only[0].answer_ids, whole)
    assert only[0].finished.all()


def test_steps_of_a_canvas_that_grows_begin_when_it_has_grown(
    model: DimpleForConditionalGeneration, num_passes: Callable[[], int]
) -> None:
    """Probes are passes too, and run when the first item is asked for."""
    steps = model.generate_steps(**model_inputs(MIXED_PROMPTS[1]), max_new_tokens=8, initial_answer_length=2)
    assert num_passes() == 0
    seen = []
    for step in steps:
        seen.append((int((step.answer_ids == MASK).sum()), int(step.num_forward_passes), num_passes()))
        if step.step == 1:
            break
    # The tiny model never ends: probes of 2 and 4 positions, then the canvas has 8.
    assert seen[0] == (8, 2, 2)
    assert seen[1][1:] == (3, 3)


def test_bad_input_is_refused_when_the_steps_are_asked_for(
    model: DimpleForConditionalGeneration, causal_model: DimpleForConditionalGeneration, num_passes: Callable[[], int]
) -> None:
    """Not in the middle of the consumer's loop; the checks are those of `generate`."""
    inputs = model_inputs(*MIXED_PROMPTS)
    for changes, message in (
        ({"unmaskin": "margin"}, "`unmaskin` must be .*; did you mean `unmasking`"),
        ({"steps": 3}, "`steps` must be passed to `diffusion_generate`"),
        ({"cache_policy": "dual"}, "`block_length` must be given"),
        ({"image_grid_thw": None}, "`image_grid_thw` must be given"),
        ({"streamer": object()}, "`streamer` must be"),
    ):
        arguments = {name: value for name, value in {**inputs, **changes}.items() if value is not None}
        with pytest.raises(ValueError, match=message):
            model.generate_steps(**arguments)
    with pytest.raises(ValueError, match="`generate_steps` must be used in bidirectional mode"):
        causal_model.generate_steps(**inputs)
    assert num_passes() == 0
    assert next(model.generate_steps(**inputs)).step == 0  # control


def test_text_of_each_step_comes_from_the_tokenizer(parity_dir: Any) -> None:
    """`batch_decode` leaves out mask and padding; with them, the gaps show."""
    tokenizer = AutoTokenizer.from_pretrained(parity_dir / "tokenizer")
    model = tiny_model(
        vocab_size=440, pad_token_id=tokenizer.pad_token_id, mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id, image_token_id=438,
    )  # fmt: skip
    with torch.no_grad():
        model.lm_head.weight[400:] = 0  # text only
    inputs = model_inputs(make_prompt(4, seed=1), make_prompt(6, seed=2))
    texts, drafts = [], []
    for step in model.generate_steps(**inputs, max_new_tokens=6, confidence_threshold=None):
        texts.append(tokenizer.batch_decode(step.answer_ids, skip_special_tokens=True))
        drafts.append(tokenizer.batch_decode(step.answer_ids))
    assert texts[0] == ["", ""]
    assert drafts[0] == [tokenizer.mask_token * 6] * 2
    assert texts[-1] == drafts[-1]
    assert all(texts[-1])
    lengths = [[len(text) for text in step] for step in texts]
    assert lengths == sorted(lengths)
