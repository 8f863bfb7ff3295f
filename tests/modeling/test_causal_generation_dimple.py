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
"""The causal mode's `generate`: all ways that transformers offers end in the same greedy answer.

Prompts hold images and left padding, because positions and image features are what Dimple adds to these ways.
"""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import EOS, IMAGE, MASK, MIXED_PROMPTS, model_inputs, tiny_model
from transformers import (
    AutoTokenizer,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from dimple_hf import DimpleForConditionalGeneration, DimpleGenerationConfig

LENGTH = 8


@torch.no_grad()
def greedy_reference(
    model: DimpleForConditionalGeneration, inputs: dict[str, torch.Tensor], length: int
) -> torch.LongTensor:
    """Token by token, each from a whole forward pass without any cache."""
    inputs = dict(inputs)
    for _ in range(length):
        token = model(**inputs).logits[:, -1].argmax(dim=-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], dim=1)
    return inputs["input_ids"]


@pytest.fixture(scope="module")
def tokenizer(parity_dir: Path) -> PreTrainedTokenizerBase:
    """420 tokens of text; the tiny models have the first 99 of them."""
    return AutoTokenizer.from_pretrained(parity_dir / "tokenizer")


@pytest.fixture
def assisted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' assisted decoding calls `generate` in a way that transformers itself announces as deprecated."""
    monkeypatch.setattr(logging.getLogger("transformers.generation.utils"), "disabled", True)


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    return model_inputs(*MIXED_PROMPTS)


@pytest.fixture(scope="module")
def row() -> dict[str, torch.Tensor]:
    """A prompt of one row with two images."""
    return model_inputs(MIXED_PROMPTS[2])


#: Ways of decoding that change the work and not the answer.
WAYS: dict[str, dict[str, Any]] = {
    "cache": {},
    "no-cache": {"use_cache": False},
    "static-cache": {"cache_implementation": "static"},
    "no-defaults": {"generation_config": GenerationConfig(max_new_tokens=LENGTH)},
    "trainer": {"synced_gpus": False, "labels": torch.zeros(4, 22, dtype=torch.long), "assistant_model": None},
    "labelled-tokens": {"mm_token_type_ids": torch.zeros(4, 22, dtype=torch.int)},
    "logits-to-keep": {"logits_to_keep": 1},
    "one-beam": {"num_beams": 1},
    "stopping": {"stop_strings": ["no such text"]},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_way_of_decoding_does_not_change_the_answer(
    causal_model: DimpleForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    batch: dict[str, torch.Tensor],
    options: dict[str, Any],
) -> None:
    if "stop_strings" in options:
        options = options | {"tokenizer": tokenizer}
    expected = greedy_reference(causal_model, batch, LENGTH)
    length = {} if "generation_config" in options else {"max_new_tokens": LENGTH}
    assert torch.equal(causal_model.generate(**batch, **length, **options), expected)


def test_generation_config_of_dimple_counts_like_transformers_own(
    causal_model: DimpleForConditionalGeneration, row: dict[str, torch.Tensor]
) -> None:
    """Options that both modes have are honoured; those of the other mode are refused, as they are by name."""
    model = copy.deepcopy(causal_model)
    model.generation_config.confidence_threshold = 0.99
    options: dict[str, Any] = {"max_new_tokens": 5, "repetition_penalty": 50.0}
    expected = model.generate(**row, **options)
    assert not torch.equal(expected, model.generate(**row, max_new_tokens=5))  # control
    for config_class in (GenerationConfig, DimpleGenerationConfig):
        assert torch.equal(model.generate(**row, generation_config=config_class(**options)), expected)
    own = copy.deepcopy(model.generation_config)
    own.update(**options)
    assert torch.equal(model.generate(**row, generation_config=own), expected)
    for change in ({"confidence_threshold": 0.5}, {"block_length": 2}):
        with pytest.raises(ValueError, match=f"`{next(iter(change))}` must be used in bidirectional mode"):
            model.generate(**row, generation_config=DimpleGenerationConfig(**options, **change))


#: The same for ways that transformers offers for one row only.
ROW_WAYS: dict[str, dict[str, Any]] = {
    "prompt-lookup": {"prompt_lookup_num_tokens": 2},
    "early-exit": {"assistant_early_exit": 1},
    "chunked-prefill": {"prefill_chunk_size": 4},
}


@pytest.mark.usefixtures("assisted")
@pytest.mark.parametrize("options", ROW_WAYS.values(), ids=ROW_WAYS)
def test_way_of_decoding_one_row_does_not_change_the_answer(
    causal_model: DimpleForConditionalGeneration, row: dict[str, torch.Tensor], options: dict[str, Any]
) -> None:
    expected = greedy_reference(causal_model, row, LENGTH)
    assert torch.equal(causal_model.generate(**row, max_new_tokens=LENGTH, **options), expected)


@pytest.mark.usefixtures("assisted")
@pytest.mark.parametrize("assistant_seed", [0, 1], ids=["itself", "another"])
def test_assistant_drafts_do_not_change_the_answer(
    causal_model: DimpleForConditionalGeneration, row: dict[str, torch.Tensor], assistant_seed: int
) -> None:
    """The assistant sees the images, and what it drafts is taken only where the model would write it."""
    assistant = tiny_model(assistant_seed, full_attn_mask=False)
    expected = greedy_reference(causal_model, row, 20)
    assert torch.equal(causal_model.generate(**row, max_new_tokens=20, assistant_model=assistant), expected)


@pytest.mark.usefixtures("assisted")
def test_early_exit_runs_the_first_layers_only(
    causal_model: DimpleForConditionalGeneration, row: dict[str, torch.Tensor]
) -> None:
    """Drafts come from fewer layers, so the last layer runs less often than the first."""
    calls = {0: 0, 1: 0}
    hooks = [
        layer.register_forward_hook(lambda *args, i=i: calls.__setitem__(i, calls[i] + 1))
        for i, layer in enumerate(causal_model.model.layers)
    ]
    causal_model.generate(**row, max_new_tokens=LENGTH, assistant_early_exit=1)
    for hook in hooks:
        hook.remove()
    assert 0 < calls[1] < calls[0]


def test_embeddings_alone_are_a_prompt(
    causal_model: DimpleForConditionalGeneration, row: dict[str, torch.Tensor]
) -> None:
    """Text embeddings need no tokens, and give the answer alone; with the tokens, prompt and answer."""
    ids = row["input_ids"][:, :6]
    expected = greedy_reference(causal_model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, LENGTH)
    embeds = causal_model.get_input_embeddings()(ids).detach()
    alone = causal_model.generate(inputs_embeds=embeds, max_new_tokens=LENGTH)
    assert torch.equal(alone, expected[:, 6:])
    assert torch.equal(causal_model.generate(ids, inputs_embeds=embeds, max_new_tokens=LENGTH), expected)
    assert not torch.equal(causal_model.generate(inputs_embeds=-embeds, max_new_tokens=LENGTH), alone)  # control


def test_given_positions_are_used(
    causal_model: DimpleForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    expected = greedy_reference(causal_model, batch, LENGTH)
    positions = causal_model.get_rope_index(batch["input_ids"], batch["image_grid_thw"], batch["attention_mask"])
    got = causal_model.generate(**batch, position_ids=positions, max_new_tokens=LENGTH)
    assert torch.equal(got, expected)
    other = causal_model.generate(**batch, position_ids=positions * 3, max_new_tokens=LENGTH)
    assert not torch.equal(other, expected)  # control


def test_hidden_states_and_attentions_are_returned(causal_model: DimpleForConditionalGeneration) -> None:
    """Of each new token: 3 states (embeddings, 2 layers) of width 32, and the attention of 2 layers with 4 heads."""
    model = copy.deepcopy(causal_model)
    model.set_attn_implementation("eager")
    inputs = model_inputs(MIXED_PROMPTS[1])
    length = inputs["input_ids"].shape[1]
    output = model.generate(
        **inputs,
        max_new_tokens=3,
        return_dict_in_generate=True,
        output_hidden_states=True,
        output_attentions=True,
        output_scores=True,
    )
    assert [[tuple(state.shape) for state in step] for step in output.hidden_states] == [
        [(1, length, 32)] * 3, [(1, 1, 32)] * 3, [(1, 1, 32)] * 3,
    ]  # fmt: skip
    assert [tuple(step[1].shape) for step in output.attentions] == [
        (1, 4, length, length), (1, 4, 1, length + 1), (1, 4, 1, length + 2),
    ]  # fmt: skip
    torch.testing.assert_close(model.lm_head(output.hidden_states[0][-1][:, -1]), output.scores[0])


def test_use_cache_false_returns_no_cache(
    causal_model: DimpleForConditionalGeneration, row: dict[str, torch.Tensor]
) -> None:
    options = {"max_new_tokens": 2, "return_dict_in_generate": True}
    assert causal_model.generate(**row, **options, use_cache=False).past_key_values is None
    assert causal_model.generate(**row, **options).past_key_values is not None  # control


@pytest.mark.parametrize("images", ["none", "again"])
def test_generation_continues_from_a_cache(
    causal_model: DimpleForConditionalGeneration, batch: dict[str, torch.Tensor], images: str
) -> None:
    """The cache remembers how far the images moved the positions, and holds their features."""
    expected = greedy_reference(causal_model, batch, LENGTH)
    first = causal_model.generate(**batch, max_new_tokens=3, return_dict_in_generate=True)
    mask = torch.cat([batch["attention_mask"], torch.ones(4, 3, dtype=torch.long)], dim=1)
    inputs = dict(batch) if images == "again" else {}
    inputs |= {"input_ids": first.sequences, "attention_mask": mask, "past_key_values": first.past_key_values}
    assert torch.equal(causal_model.generate(**inputs, max_new_tokens=LENGTH - 3), expected)


def test_chat_goes_on_with_a_new_image(causal_model: DimpleForConditionalGeneration) -> None:
    """The second turn gives the whole chat, as a processor makes it; only its new image is put into the sequence."""
    whole = model_inputs(MIXED_PROMPTS[2])
    expected = greedy_reference(causal_model, whole, LENGTH)
    cut = whole["input_ids"][0].tolist().index(IMAGE) + 8 + 1  # after the first image of 8 tokens
    cache = DynamicCache(config=causal_model.config)
    with torch.no_grad():
        causal_model(
            input_ids=whole["input_ids"][:, :cut],
            pixel_values=whole["pixel_values"][:32],
            image_grid_thw=whole["image_grid_thw"][:1],
            past_key_values=cache,
        )
    assert torch.equal(causal_model.generate(**whole, past_key_values=cache, max_new_tokens=LENGTH), expected)


def test_forward_continues_a_cache_without_positions(
    causal_model: DimpleForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    """As classifier-free guidance runs the model: tokens, a mask and the cache of the forward pass before."""
    expected = greedy_reference(causal_model, batch, 2)
    with torch.no_grad():
        first = causal_model(**batch, use_cache=True)
        token = first.logits[:, -1:].argmax(dim=-1)
        mask = torch.cat([batch["attention_mask"], torch.ones_like(token)], dim=1)
        second = causal_model(token, attention_mask=mask, past_key_values=first.past_key_values)
    assert torch.equal(torch.cat([token, second.logits[:, -1:].argmax(dim=-1)], dim=1), expected[:, -2:])


def test_forward_refuses_a_cache_of_unknown_positions(
    causal_model: DimpleForConditionalGeneration, row: dict[str, torch.Tensor]
) -> None:
    with torch.no_grad():
        cache = causal_model(**row, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="`position_ids` must be given for images after a filled cache"):
        causal_model(torch.tensor([[IMAGE]]), past_key_values=cache)
    with pytest.raises(ValueError, match="did not fill for these rows"):
        causal_model(torch.ones(3, 1, dtype=torch.long), past_key_values=cache)
    del cache.position_offset
    with pytest.raises(ValueError, match="`position_ids` must be given with a cache that this model did not fill"):
        causal_model(torch.ones(1, 1, dtype=torch.long), past_key_values=cache)
    position_ids = torch.full((3, 1, 1), 20)
    assert (
        causal_model(torch.ones(1, 1, dtype=torch.long), position_ids=position_ids, past_key_values=cache)
        .logits.isfinite()
        .all()
    )


def test_images_with_half_of_the_tokens_are_refused(
    causal_model: DimpleForConditionalGeneration, row: dict[str, torch.Tensor]
) -> None:
    first = causal_model.generate(**row, max_new_tokens=3, return_dict_in_generate=True)
    inputs = {name: row[name] for name in ("pixel_values", "image_grid_thw")}
    mask = torch.ones_like(first.sequences)
    with pytest.raises(ValueError, match="`input_ids` must hold the tokens of a filled cache, too"):
        causal_model.generate(
            first.sequences[:, -1:],
            attention_mask=mask,
            past_key_values=first.past_key_values,
            max_new_tokens=2,
            **inputs,
        )


def test_stop_strings_end_an_answer(
    causal_model: DimpleForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, row: dict[str, torch.Tensor]
) -> None:
    whole = causal_model.generate(**row, max_new_tokens=LENGTH)
    text = tokenizer.decode(whole[0, -LENGTH + 2])
    stopped = causal_model.generate(**row, max_new_tokens=LENGTH, stop_strings=[text], tokenizer=tokenizer)
    assert stopped.shape[1] <= whole.shape[1] - LENGTH + 3
    assert torch.equal(stopped, whole[:, : stopped.shape[1]])


def test_sequences_of_one_prompt_share_its_images(
    causal_model: DimpleForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    """Beams and returned sequences repeat each row's group of images."""
    expected = greedy_reference(causal_model, batch, 4).repeat_interleave(2, dim=0)
    options = {"max_new_tokens": 4, "num_return_sequences": 2}
    assert torch.equal(causal_model.generate(**batch, **options, do_sample=True, top_k=1), expected)
    beams = causal_model.generate(**batch, **options, num_beams=2)
    alone = [causal_model.generate(**model_inputs(prompt), **options, num_beams=2) for prompt in MIXED_PROMPTS]
    assert torch.equal(beams[:, -4:], torch.cat([rows[:, -4:] for rows in alone]))


def test_images_are_encoded_once(batch: dict[str, torch.Tensor]) -> None:
    model = tiny_model(full_attn_mask=False)
    calls: list[int] = []
    model.visual.register_forward_pre_hook(lambda module, args: calls.append(1))
    model.generate(**batch, max_new_tokens=5)
    model.generate(**batch, max_new_tokens=5, use_cache=False)
    assert calls == [1, 1]


def test_prompt_is_checked(causal_model: DimpleForConditionalGeneration, row: dict[str, torch.Tensor]) -> None:
    """Transformers' own `generate` answers these prompts, wrongly."""
    ids = row["input_ids"]
    with pytest.raises(ValueError, match="only padding in row 0"):
        causal_model.generate(ids, attention_mask=torch.zeros_like(ids))
    with pytest.raises(ValueError, match="must not hold the mask token"):
        causal_model.generate(torch.full_like(ids, MASK))
    with pytest.raises(ValueError, match="must have the shape of `input_ids`"):
        causal_model.generate(ids, attention_mask=torch.ones(1, 3, dtype=torch.long))


def test_continuous_batching_gives_the_answers_of_generate() -> None:
    """The tokens of a row end with the end token, which may be padding, as in `generate`."""
    model = tiny_model(full_attn_mask=False, num_key_value_heads=4)
    prompts = [list(range(10, 20)), list(range(30, 38))]
    expected = [model.generate(torch.tensor([ids]), max_new_tokens=6)[0, len(ids) :].tolist() for ids in prompts]
    assert len(set(expected[0])) > 1
    end = expected[0][2]
    assert end not in expected[1]
    expected[0] = expected[0][: expected[0].index(end) + 1]
    outputs = model.generate_batch(
        prompts,
        GenerationConfig(max_new_tokens=6, eos_token_id=EOS, pad_token_id=end, do_sample=False),
        ContinuousBatchingConfig(num_blocks=8, page_size=32, max_batch_tokens=32),
    )
    assert [output.generated_tokens for output in outputs.values()] == expected


def test_continuous_batching_is_refused_in_bidirectional_mode(model: DimpleForConditionalGeneration) -> None:
    """It would decode token by token, silently."""
    for call in (model.init_continuous_batching, lambda: model.generate_batch([[1, 2]])):
        with pytest.raises(ValueError, match="continuous batching must be used in causal mode"):
            call()


def test_transition_scores_are_those_of_causal_mode(
    model: DimpleForConditionalGeneration, causal_model: DimpleForConditionalGeneration
) -> None:
    """The output of the other mode has no scores of each step, but `token_logprobs`."""
    options = {**model_inputs(MIXED_PROMPTS[0]), "max_new_tokens": 2, "return_dict_in_generate": True}
    output = model.generate(**options, output_logits=True)
    with pytest.raises(ValueError, match="`compute_transition_scores` must be .* causal mode; .* `token_logprobs`"):
        model.compute_transition_scores(output.sequences, output.logits)
    output = causal_model.generate(**options, output_scores=True)
    assert causal_model.compute_transition_scores(output.sequences, output.scores).shape == (1, 2)


def test_bidirectional_mode_takes_what_trainers_pass(
    model: DimpleForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    """Internals that are off, labels, and the types that a processor makes; int32 tokens, which a JAX loader has."""
    expected = model.generate(**batch, max_new_tokens=LENGTH)
    ids = batch["input_ids"].int()
    passed = {"synced_gpus": False, "labels": ids, "mm_token_type_ids": torch.zeros_like(ids), "assistant_model": None}
    got = model.generate(**(batch | {"input_ids": ids}), max_new_tokens=LENGTH, **passed)
    assert torch.equal(got, expected)
    with pytest.raises(ValueError, match="`synced_gpus` must not be given in bidirectional mode"):
        model.generate(**batch, max_new_tokens=LENGTH, synced_gpus=True)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("mode", [False, True])
def test_generate_while_training_with_activation_checkpointing(
    batch: dict[str, torch.Tensor], mode: bool, use_reentrant: bool
) -> None:
    """As a callback does. Checkpointing would drop the cache of every layer, and the answer would be another."""
    model = tiny_model(full_attn_mask=mode)
    expected = model.generate(**batch, max_new_tokens=LENGTH)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    model.train()
    assert torch.equal(model.generate(**batch, max_new_tokens=LENGTH), expected)
    assert model.training
    # control: a training step still checkpoints, and works with a cache in its way
    model(**batch, labels=batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE, -100)).loss.backward()
