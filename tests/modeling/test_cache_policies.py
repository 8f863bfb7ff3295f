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
"""The cache policies through `generate` and through the runner: what runs, what is kept, and rows that do not mix."""

from typing import Any

import pytest
import torch
from helpers import EOS, MASK, MIXED_PROMPTS, Prompt, model_inputs, parametrize_some, tiny_model
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from dimple_hf import DimpleForConditionalGeneration, DimpleGenerationConfig, DimpleGenerationOutput
from dimple_hf.modeling.cache_dimple import CACHE_POLICIES, CanvasCacheLayer
from dimple_hf.modeling.canvas_dimple import CanvasRunner
from dimple_hf.modeling.rules_dimple import (
    SAMPLER_RULES,
    EntropyBoundConfig,
    KlassConfig,
    ProphetConfig,
    WinoConfig,
)

WIDTH = max(len(prompt.tokens) for prompt in MIXED_PROMPTS)

#: Every policy as options of `generate`, two of them twice: an interval, and blocks that do not divide the answer.
POLICIES: dict[str, dict[str, Any]] = {
    "none": {"cache_policy": "none"},
    "prompt": {"cache_policy": "prompt"},
    "refresh": {"cache_policy": "refresh", "cache_refresh_interval": 3},
    "prompt-in-blocks": {"cache_policy": "prompt", "block_length": 4},
    "prefix": {"cache_policy": "prefix", "block_length": 4},
    "dual": {"cache_policy": "dual", "block_length": 4},
}
#: Every rule, with options under which the tiny model sometimes unmasks several positions at once, and two measures.
WAYS: dict[str, dict[str, Any]] = {
    "schedule": {"confidence_threshold": None},
    "margin": {"unmasking": "margin", "confidence_threshold": 0.2},
    **{name: {"sampler": name} for name in SAMPLER_RULES},
}
WAYS["threshold"] |= {"confidence_threshold": 0.3}
WAYS["entropy_bound"] |= {"sampler_config": EntropyBoundConfig(3.0)}
WAYS["klass"] |= {"sampler_config": KlassConfig(0.2, kl_threshold=1.0, kl_history_length=1)}
WAYS["prophet"] |= {"sampler_config": ProphetConfig(0.3, (3.0, 2.0, 1.0))}
WAYS["wino"] |= {"sampler_config": WinoConfig(0.3, 0.4)}
EACH_POLICY = pytest.mark.parametrize("policy", [pytest.param(options, id=name) for name, options in POLICIES.items()])


def answers(model: DimpleForConditionalGeneration, *prompts: Prompt, **options: Any) -> DimpleGenerationOutput:
    """`generate` over prompts, with all the figures."""
    return model.generate(**model_inputs(*prompts), return_dict_in_generate=True, output_history=True, **options)


def history_of(output: DimpleGenerationOutput, row: int, length: int) -> list[list[int]]:
    return [step[row, -length:].tolist() for step in output.history]


# Rows are independent


@parametrize_some(6, way=WAYS, policy=POLICIES)
def test_rows_of_a_batch_equal_the_rows_alone_under_every_policy_and_rule(
    model: DimpleForConditionalGeneration, policy: dict[str, Any], way: dict[str, Any]
) -> None:
    """Rows with 0 to 3 images, padded on the left, come to blocks and leave the batch at different steps."""
    options = policy | way | {"max_new_tokens": 10}
    end = answers(model, MIXED_PROMPTS[1], **options).sequences[0, -5].item()
    options["eos_token_id"] = [EOS, end]
    together = answers(model, *MIXED_PROMPTS, **options)
    for row, prompt in enumerate(MIXED_PROMPTS):
        alone = answers(model, prompt, **options)
        assert history_of(together, row, 10)[: len(alone.history)] == history_of(alone, 0, 10)
        assert together.num_forward_passes[row] == alone.num_forward_passes[0]
        assert together.sequences[row, -10:].tolist() == alone.sequences[0, -10:].tolist()
    # control: rows differ
    assert len({tuple(row) for row in together.sequences[:, -10:].tolist()}) == len(MIXED_PROMPTS)


@EACH_POLICY
def test_rows_with_canvases_of_different_lengths_equal_the_rows_alone(
    model: DimpleForConditionalGeneration, policy: dict[str, Any]
) -> None:
    """As structure priors make them: fixed tokens, whole blocks of them among these, and padding after."""
    lengths = [11, 5, 8, 10]
    canvas = torch.full((4, 11), MASK)
    for row, length in enumerate(lengths):
        canvas[row, length:] = 60 + row
    canvas[0, 4:8], canvas[2, :5], canvas[3, 2] = 17, 23, 31
    mask = (torch.arange(11) < torch.tensor(lengths)[:, None]).long()
    options = policy | {"confidence_threshold": 0.5, "max_denoising_steps": 12}
    together = answers(model, *MIXED_PROMPTS, answer_ids=canvas, answer_attention_mask=mask, **options)
    for row, (prompt, length) in enumerate(zip(MIXED_PROMPTS, lengths, strict=True)):
        alone = answers(model, prompt, answer_ids=canvas[row : row + 1, :length], **options)
        steps = [step[:length] for step in history_of(together, row, 11)]
        assert steps[: len(alone.history)] == history_of(alone, 0, length)
        assert together.num_forward_passes[row] == alone.num_forward_passes[0]
    # control: what stands after a canvas shows when it is seen
    seen = answers(model, *MIXED_PROMPTS, answer_ids=canvas, **options)
    assert any(history_of(seen, row, 11) != history_of(together, row, 11) for row in range(1, 4))


@EACH_POLICY
def test_several_sequences_of_a_prompt_are_as_if_each_stood_alone(
    model: DimpleForConditionalGeneration, policy: dict[str, Any]
) -> None:
    """Rows are repeated before the first pass; one possible token each gives the greedy answer."""
    inputs = model_inputs(*MIXED_PROMPTS)
    options = policy | {"max_new_tokens": 6}
    greedy = model.generate(**inputs, **options)
    same = model.generate(**inputs, **options, do_sample=True, top_k=1, num_return_sequences=3)
    assert torch.equal(same, greedy.repeat_interleave(3, dim=0))


# What each policy is


class ReferenceLayer(DynamicLayer):
    """Keys and values of one row: those of `start` to `stop` are replaced, by concatenation; all when it is empty."""

    start = stop = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.get_seq_length() == 0:
            return super().update(key_states, value_states)
        for name, states in (("keys", key_states), ("values", value_states)):
            held = getattr(self, name)
            setattr(self, name, torch.cat([held[:, :, : self.start], states, held[:, :, self.stop :]], dim=2))
        return self.keys, self.values


class ReferenceRow:
    """
    One row under a policy, without padding or neighbours: which positions run is written out by hand.

    Args:
        model (`DimpleForConditionalGeneration`):
            The model.
        prompt (`Prompt`):
            The prompt.
        options (`dict`):
            The policy, as options of `generate`.
    """

    def __init__(self, model: DimpleForConditionalGeneration, prompt: Prompt, options: dict[str, Any]) -> None:
        self.model, self.inputs, self.options = model, model_inputs(prompt), options
        self.num_passes, self.block = 0, -1
        self.cache: Cache | None = None
        self.num_run: list[int] = []

    def logits(self, answer: torch.Tensor, block: int) -> torch.Tensor:
        """Scores of all positions of a canvas `(answer_length,)`, as far as the pass computes them; else zeros."""
        name, block_length = self.options["cache_policy"], self.options.get("block_length", 0)
        prompt_length, length = self.inputs["input_ids"].shape[1], len(answer)
        ids = torch.cat([self.inputs["input_ids"], answer[None]], dim=1)
        features = None
        if "pixel_values" in self.inputs:
            images = self.inputs["pixel_values"], self.inputs["image_grid_thw"]
            features = torch.cat(self.model.get_image_features(*images).pooler_output)
        positions = self.model.get_rope_index(ids, self.inputs.get("image_grid_thw"))
        is_new = {
            "none": True,
            "prompt": self.num_passes == 0,
            "refresh": self.num_passes % self.options.get("cache_refresh_interval", 8) == 0,
            "prefix": block != self.block,
            "dual": block != self.block,
        }[name]
        self.num_passes, self.block = self.num_passes + 1, block
        first = {"prefix": block * block_length, "dual": block * block_length}.get(name, 0)
        last = min((block + 1) * block_length, length) if name == "dual" else length
        start, stop = (0, ids.shape[1]) if is_new else (prompt_length - 1 + first, prompt_length + last)
        if is_new:
            self.cache = Cache(layers=[ReferenceLayer() for _ in self.model.model.layers])
        for layer in self.cache.layers:
            layer.start, layer.stop = start, stop
        self.num_run.append(stop - start)
        embeds = self.model.embed(ids, features)
        outputs = self.model(
            inputs_embeds=embeds[:, start:stop], position_ids=positions[:, :, start:stop], is_causal=False,
            attention_mask={"full_attention": None}, past_key_values=self.cache,
        ).logits  # fmt: skip
        whole = torch.zeros(ids.shape[1], outputs.shape[-1])
        whole[start + 1 : stop] = outputs[0, : stop - start - 1] if start else outputs[0, : stop - 1]
        return whole[prompt_length:]


def run_script(
    model: DimpleForConditionalGeneration, options: dict[str, Any], answer_length: int
) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    """
    Feeds a runner, and a reference for each row, with canvases in which tokens come and go and rows change block at
    different steps; compares all scores. Returns how many positions each reference ran, and the shapes of the passes
    of each step of the runner.
    """
    inputs = model_inputs(*MIXED_PROMPTS)
    canvas = torch.full((4, answer_length), MASK)
    ids = torch.cat([inputs["input_ids"], canvas], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(canvas)], dim=1)
    positions = model.get_rope_index(ids, inputs["image_grid_thw"], mask)
    features = torch.cat(model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output)
    block_length = options.get("block_length")
    policy = CACHE_POLICIES[options["cache_policy"]](options.get("cache_refresh_interval"), block_length)
    runner = CanvasRunner(model, inputs["input_ids"], mask, positions, features, policy)
    references = [ReferenceRow(model, prompt, options) for prompt in MIXED_PROMPTS]
    passes: list[tuple[int, int]] = []
    handle = model.model.layers[0].register_forward_pre_hook(
        lambda module, args: passes.append(tuple(args[0].shape[:2]))
    )
    blocks_of_rows = [[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1], [0, 1, 2, 2, 2, 2]]
    passes_of_steps = []
    for step in range(6):
        answer = torch.where(torch.rand(canvas.shape) < 0.5, MASK, torch.randint(0, 90, canvas.shape))
        blocks = [rows[step] if block_length else 0 for rows in blocks_of_rows]
        positions = torch.rand(canvas.shape) < 0.7
        for row, block in enumerate(blocks):
            first = block * (block_length or 0)
            last = min(first + (block_length or answer_length), answer_length)
            positions[row, :first], positions[row, last:], positions[row, first] = False, False, True
        passes.clear()
        logits = runner.logits(answer, positions)
        passes_of_steps.append(list(passes))
        expected = torch.stack(
            [reference.logits(answer[row], blocks[row]) for row, reference in enumerate(references)]
        )
        torch.testing.assert_close(logits, expected[positions], rtol=1e-4, atol=1e-4)
        assert expected[positions].any(dim=1).all()  # control: the reference has computed all of them
    handle.remove()
    return [reference.num_run for reference in references], passes_of_steps


@EACH_POLICY
@torch.no_grad()
def test_runner_scores_equal_a_reference_without_neighbours(
    model: DimpleForConditionalGeneration, policy: dict[str, Any]
) -> None:
    """The reference concatenates keys and values, one row at a time; so padding, windows and renewals are all seen."""
    run_script(model, policy, answer_length=10)


@torch.no_grad()
def test_runner_runs_whole_passes_only_of_rows_that_are_due(model: DimpleForConditionalGeneration) -> None:
    """
    In blocks of 4, 4 and 2, rows come to another block in steps 1 (rows 1 and 3), 2 (rows 2 and 3), 3 (row 0),
    4 (row 1) and 5 (row 0). A window of the dual cache has 5 positions; one of the block cache as many as its longest.
    """
    whole = WIDTH + 10
    expected = {
        "dual": [
            [(4, whole)], [(2, whole), (4, 5)], [(2, whole), (4, 5)], [(1, whole), (4, 5)], [(1, whole), (4, 5)],
            [(1, whole), (4, 5)],
        ],
        "prefix": [
            [(4, whole)], [(2, whole), (4, 11)], [(2, whole), (4, 11)], [(1, whole), (4, 7)], [(1, whole), (4, 7)],
            [(1, whole), (4, 7)],
        ],
        "refresh": [[(4, whole)], [(4, 11)], [(4, 11)], [(4, whole)], [(4, 11)], [(4, 11)]],
        "prompt": [[(4, whole)], *[[(4, 11)]] * 5],
        "none": [[(4, whole)]] * 6,
    }  # fmt: skip
    for name, passes in expected.items():
        assert run_script(model, POLICIES[name], answer_length=10)[1] == passes, name
    # of the rows alone, the first: no window is longer than the row's own
    lengths = [len(MIXED_PROMPTS[0].tokens) + 10, 5, 5, len(MIXED_PROMPTS[0].tokens) + 10, 5]
    assert run_script(model, POLICIES["dual"], answer_length=10)[0][0][:5] == lengths


@torch.no_grad()
def test_runner_scores_outside_the_dual_caches_window_come_from_a_whole_pass(
    model: DimpleForConditionalGeneration,
) -> None:
    """The last step of an answer decides all blocks at once; rows with one block left stay with their window."""
    torch.manual_seed(1)
    inputs = model_inputs(*MIXED_PROMPTS[:2])
    answer = torch.randint(0, 90, (2, 8))
    positions = torch.zeros(2, 8, dtype=torch.bool)
    runners = {}
    for name in ("dual", "none"):
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1)
        ids = torch.cat([inputs["input_ids"], answer], dim=1)
        rope_positions = model.get_rope_index(ids, inputs["image_grid_thw"], mask)
        features = torch.cat(model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output)
        policy = CACHE_POLICIES[name](None, 4)
        runners[name] = CanvasRunner(model, inputs["input_ids"], mask, rope_positions, features, policy)
        positions[:, 5] = True
        runners[name].logits(torch.full_like(answer, MASK), positions)
    positions[0, [1, 2]] = True
    scores = {name: runner.logits(answer, positions) for name, runner in runners.items()}
    torch.testing.assert_close(scores["dual"][:3], scores["none"][:3], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores["dual"][3], scores["none"][3], atol=1e-2)  # control: row 1 had its window


def test_policies_that_come_to_the_same_give_the_same(model: DimpleForConditionalGeneration) -> None:
    """One block is the whole answer, an interval of one is no cache, and a block of one position is always new."""
    options: dict[str, Any] = {"max_new_tokens": 10, "confidence_threshold": 0.5}

    def history(**policy: Any) -> list[list[list[int]]]:
        output = answers(model, *MIXED_PROMPTS, **options, **policy)
        return [history_of(output, row, 10) for row in range(4)]

    without, with_prompt = history(use_cache=False), history()
    assert without == history(cache_policy="none") == history(cache_policy="refresh", cache_refresh_interval=1)
    assert with_prompt == history(cache_policy="prompt") == history(use_cache=True)
    assert with_prompt == history(cache_policy="refresh", cache_refresh_interval=100)
    for name in ("prefix", "dual"):
        assert history(cache_policy=name, block_length=10) == history(block_length=10)
        assert history(cache_policy=name, block_length=1) == history(use_cache=False, block_length=1)
    # control: else they differ
    in_blocks = [history(cache_policy=name, block_length=4) for name in ("none", "prompt", "prefix", "dual")]
    others = [without, with_prompt, history(cache_policy="refresh", cache_refresh_interval=3), *in_blocks]
    assert all(a != b for position, a in enumerate(others) for b in others[:position])


def test_cache_memory_stays_where_it_is_under_every_policy(
    model: DimpleForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One allocation a layer in a generation, however often a row is renewed."""
    update = CanvasCacheLayer.update
    for options in POLICIES.values():
        pointers: dict[int, set[int]] = {}

        def spy(layer: Any, *args: Any, pointers: dict[int, set[int]] = pointers) -> Any:
            result = update(layer, *args)
            pointers.setdefault(id(layer), set()).add(layer.keys.data_ptr())
            return result

        monkeypatch.setattr(CanvasCacheLayer, "update", spy)
        output = answers(model, MIXED_PROMPTS[1], **options, max_new_tokens=10, confidence_threshold=None)
        assert output.num_forward_passes.item() > 5
        assert [len(found) for found in pointers.values()] == ([] if options["cache_policy"] == "none" else [1, 1])


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_policy": "promt"}, "`cache_policy` must be one of none, prompt, .*'promt'\\); did you mean `prompt`"),
        ({"cache_policy": "dual"}, "`block_length` must be given with `cache_policy`='dual' \\(got None\\)"),
        ({"cache_policy": "prefix"}, "`block_length` must be given with `cache_policy`='prefix'"),
        ({"cache_policy": "none", "use_cache": True}, "`use_cache` must not contradict `cache_policy`='none'.*True"),
        ({"cache_policy": "prompt", "use_cache": False}, "`use_cache` must not contradict `cache_policy`='prompt'"),
        ({"cache_policy": "refresh", "cache_refresh_interval": 0}, "`cache_refresh_interval` must be an integer >= 1"),
        ({"cache_policy": "refresh", "cache_refresh_interval": True}, "`cache_refresh_interval` must be .*got True"),
        ({"cache_refresh_interval": 4}, '`cache_refresh_interval` must be used with `cache_policy`="refresh".*None'),
        ({"cache_policy": "prompt", "cache_refresh_interval": 4}, "`cache_refresh_interval` must be used .*'prompt'"),
    ],
)
def test_bad_cache_option_is_refused_before_any_pass(options: dict[str, Any], message: str) -> None:
    """By the configuration, and on its way into `generate`."""
    with pytest.raises(ValueError, match=message):
        DimpleGenerationConfig(**options)
    model = tiny_model()
    model.model.layers[0].register_forward_pre_hook(lambda module, args: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message):
        model.generate(**model_inputs(MIXED_PROMPTS[0]), **options)


def test_cache_options_that_agree_are_accepted(model: DimpleForConditionalGeneration) -> None:
    """The control of the refusals; a policy of the model's own file is the default."""
    for options in ({"cache_policy": "none", "use_cache": False}, {"cache_policy": "prompt", "use_cache": True}):
        DimpleGenerationConfig(**options)
    expected = answers(model, MIXED_PROMPTS[1], max_new_tokens=8, cache_policy="dual", block_length=2).sequences
    other = tiny_model()
    other.generation_config.update(cache_policy="dual", block_length=2)
    assert torch.equal(answers(other, MIXED_PROMPTS[1], max_new_tokens=8).sequences, expected)


def test_original_call_has_the_originals_cache_only(model: DimpleForConditionalGeneration) -> None:
    """It takes the original's arguments; a policy belongs to `generate`."""
    with pytest.raises(ValueError, match="`cache_policy` must be an option of the original"):
        model.diffusion_generate(**model_inputs(MIXED_PROMPTS[0]), max_new_tokens=3, cache_policy="dual")


def test_row_whose_scored_positions_leave_the_window_is_refreshed(model: DimpleForConditionalGeneration) -> None:
    """A policy of one's own may run less than a block: from left to right, the last position is always scored."""

    class Window:
        block_length = 4

        def __init__(self, length: int):
            self.length = length

        def is_stale(self, age: int, is_new_block: bool) -> bool:
            return is_new_block

        def window(self, block: int, answer_length: int) -> tuple[int, int]:
            return 4 * block, min(4 * block + self.length, answer_length)

    options = {"max_new_tokens": 8, "block_length": 4, "confidence_threshold": None, "unmasking": "left_to_right"}
    found = {}
    for length in (3, 4):
        found[length] = answers(model, *MIXED_PROMPTS, **options, cache_policy=Window(length))
    expected = answers(model, *MIXED_PROMPTS, **options, cache_policy="none")
    assert torch.equal(found[3].sequences, expected.sequences)
    torch.testing.assert_close(found[3].token_logprobs, expected.token_logprobs, rtol=1e-4, atol=1e-4, equal_nan=True)
    difference = (found[4].token_logprobs - expected.token_logprobs).nan_to_num().abs().max()
    assert difference > 1e-3  # control: a window of the whole block keeps what is stale
