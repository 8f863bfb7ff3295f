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
"""`DimpleForConditionalGeneration`: loading and saving, both attention modes, positions, losses, refusals."""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import IMAGE, MASK, MIXED_PROMPTS, VOCAB_SIZE, Prompt, make_prompt, model_inputs, tiny_config, tiny_model
from transformers import AutoModel, AutoModelForImageTextToText, DynamicCache
from transformers.modeling_utils import load_state_dict

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.modeling import DimpleOutput
from dimple_hf.modeling.modeling_dimple import (
    multimodal_position_ids,
    select_positions,
)
from dimple_hf.modeling.weight_files_dimple import read_header

ONE_IMAGE = MIXED_PROMPTS[1]
MODES = pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])


@torch.no_grad()
def logits_of(model: DimpleForConditionalGeneration, inputs: dict[str, torch.Tensor], **kwargs: Any) -> torch.Tensor:
    return model(**inputs, **kwargs).logits


def labelled(*prompts: Prompt) -> dict[str, torch.Tensor]:
    """Inputs with four more tokens in each row, which are supervised; the first and the third of them are masked."""
    answers = torch.randint(0, 90, (len(prompts), 4), generator=torch.Generator().manual_seed(9)).tolist()
    rows = [replace(prompt, tokens=prompt.tokens + answer) for prompt, answer in zip(prompts, answers, strict=True)]
    inputs = model_inputs(*rows)
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    masked = torch.zeros_like(labels, dtype=torch.bool)
    masked[:, -4::2] = True
    return inputs | {"labels": labels, "masked_positions": masked}


# Loading and saving


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageTextToText])
def test_model_saved_and_loaded_gives_equal_logits(auto_class: type, tmp_path: Path) -> None:
    """Every weight and every field that matters survives, under either Auto class."""
    model = tiny_model(rope_theta=5e5)
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is DimpleForConditionalGeneration
    assert not loaded.training
    inputs = model_inputs(*MIXED_PROMPTS)
    for is_causal in (False, True):
        torch.testing.assert_close(
            logits_of(loaded, inputs, is_causal=is_causal),
            logits_of(model, inputs, is_causal=is_causal), rtol=0, atol=0,
        )  # fmt: skip
    # control: the rotary base matters
    assert not torch.equal(logits_of(tiny_model(), inputs), logits_of(model, inputs))


def test_model_saved_writes_the_originals_parameter_names(tmp_path: Path) -> None:
    """So that what we save loads in the original's code, too."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    names = set(load_state_dict(str(tmp_path / "model.safetensors")))
    assert names == set(model.state_dict())
    assert {name.split(".")[0] for name in names} == {"visual", "img_projector", "model", "lm_head"}


def test_model_with_tied_embeddings_saved_and_loaded_gives_equal_logits(tmp_path: Path) -> None:
    """Smaller Qwen2.5 models tie the head to the embedding; the file then holds it once."""
    model = tiny_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_state_dict(str(tmp_path / "model.safetensors"))
    inputs = model_inputs(ONE_IMAGE)
    loaded = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(loaded, inputs), logits_of(model, inputs), rtol=0, atol=0)
    assert tiny_model().lm_head.weight is not model.model.embed_tokens.weight  # control


def test_model_loaded_with_dtype_auto_has_the_files_dtype(tmp_path: Path) -> None:
    """The released checkpoint is bfloat16; float32 would double its memory."""
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["torch_dtype"] == "bfloat16"
    loaded = AutoModel.from_pretrained(tmp_path, dtype="auto")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    # Images come in float32 and must not be the caller's business.
    assert logits_of(loaded, model_inputs(ONE_IMAGE)).dtype == torch.bfloat16
    # control: the argument is obeyed
    assert AutoModel.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_model_with_a_device_map_and_offloading_gives_equal_logits(tmp_path: Path) -> None:
    """Modules on another device get their inputs moved by hooks, which only see what goes through `forward`."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "saved")
    device_map = {"visual": "disk", "img_projector": "cpu", "model": "disk", "lm_head": "cpu"}
    offloaded = AutoModel.from_pretrained(
        tmp_path / "saved", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert offloaded.model.embed_tokens.weight.device.type == "meta"  # control: not in memory
    inputs = model_inputs(*MIXED_PROMPTS)
    torch.testing.assert_close(logits_of(offloaded, inputs), logits_of(model, inputs), rtol=0, atol=0)
    assert torch.equal(offloaded.generate(**inputs, max_new_tokens=4), model.generate(**inputs, max_new_tokens=4))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[: len(data) // 2], id="tensors-cut-off"),
        pytest.param(lambda data: data[:100], id="header-cut-off"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: b"\xff" * len(data), id="no-length"),
        pytest.param(lambda data: data[:8] + b"{" * 20 + data[28:], id="no-json"),
        pytest.param(lambda data: (2).to_bytes(8, "little") + b"[]", id="json-list"),
    ],
)
def test_loading_a_damaged_weights_file_names_the_file(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """An interrupted download; the library that reads the file says neither which one nor what to do."""
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    assert read_header(path)  # control
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors must be a whole safetensors file"):
        AutoModel.from_pretrained(tmp_path)


def test_loading_a_directory_without_weights_raises_transformers_error(tmp_path: Path) -> None:
    """Failures that have nothing to do with damaged files are left as they are."""
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(OSError, match="model.safetensors"):
        AutoModel.from_pretrained(tmp_path)


# Attention modes


@MODES
def test_forward_in_a_mode_lets_a_token_see_only_what_it_may(
    model: DimpleForConditionalGeneration, is_causal: bool
) -> None:
    """A change of the last token reaches the first output in bidirectional mode, and no other in causal mode."""
    inputs = model_inputs(MIXED_PROMPTS[0])
    changed = inputs | {"input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][0, -1] = (changed["input_ids"][0, -1] + 1) % 90
    difference = (logits_of(model, inputs, is_causal=is_causal) - logits_of(model, changed, is_causal=is_causal)).abs()
    seen = difference[0].amax(dim=-1) > 1e-4
    assert seen.tolist() == ([False] * 4 + [True] if is_causal else [True] * 5)


def test_forward_without_is_causal_takes_the_configs_mode(
    model: DimpleForConditionalGeneration, causal_model: DimpleForConditionalGeneration
) -> None:
    """The two checkpoints of the paper's phases differ in one field of the configuration."""
    inputs = model_inputs(ONE_IMAGE)
    bidirectional, causal = logits_of(model, inputs), logits_of(causal_model, inputs)
    assert torch.equal(bidirectional, logits_of(causal_model, inputs, is_causal=False))
    assert torch.equal(causal, logits_of(model, inputs, is_causal=True))
    assert not torch.allclose(bidirectional, causal)  # control


@MODES
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_forward_with_padding_equals_forward_without(
    model: DimpleForConditionalGeneration, is_causal: bool, padding_side: str
) -> None:
    """The logits of a row do not depend on its neighbours' lengths, nor on the side that is padded."""
    inputs = model_inputs(*MIXED_PROMPTS, padding_side=padding_side, width=36)
    batched = logits_of(model, inputs, is_causal=is_causal)
    unmasked = logits_of(model, inputs | {"attention_mask": None}, is_causal=is_causal)
    for row, prompt in enumerate(MIXED_PROMPTS):
        alone = logits_of(model, model_inputs(prompt), is_causal=is_causal)[0]
        is_token = inputs["attention_mask"][row].bool()
        torch.testing.assert_close(batched[row, is_token], alone, rtol=1e-4, atol=1e-4)
        if is_causal and padding_side == "right":
            continue  # nothing before a token is padding then
        # control: the mask is needed
        assert not torch.allclose(unmasked[row, is_token], alone, rtol=1e-2, atol=1e-2)


@MODES
def test_eager_attention_equals_sdpa(model: DimpleForConditionalGeneration, is_causal: bool) -> None:
    """One is written out, the other a kernel with its own rules for masks; padded and not."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    assert model.config._attn_implementation == "sdpa"  # control: two back-ends
    assert eager.model.config._attn_implementation == eager.visual.config._attn_implementation == "eager"
    for prompts in (MIXED_PROMPTS, MIXED_PROMPTS[2:3]):
        inputs = model_inputs(*prompts)
        is_token = inputs["attention_mask"].bool()
        torch.testing.assert_close(
            logits_of(eager, inputs, is_causal=is_causal)[is_token],
            logits_of(model, inputs, is_causal=is_causal)[is_token], rtol=1e-4, atol=1e-4,
        )  # fmt: skip


@pytest.mark.slow  # compiles kernels
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler causes its own
@MODES
def test_flex_attention_equals_sdpa(model: DimpleForConditionalGeneration, is_causal: bool) -> None:
    """The vision tower and the text layers both run under it, in both modes."""
    flex = copy.deepcopy(model)
    flex.set_attn_implementation("flex_attention")
    inputs = model_inputs(*MIXED_PROMPTS)
    is_token = inputs["attention_mask"].bool()
    torch.testing.assert_close(
        logits_of(flex, inputs, is_causal=is_causal)[is_token],
        logits_of(model, inputs, is_causal=is_causal)[is_token], rtol=1e-3, atol=1e-3,
    )  # fmt: skip


@pytest.fixture
def sdpa_masks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor | None, bool]]:
    """Mask and `is_causal` of each sdpa call from now on."""
    calls: list[tuple[torch.Tensor | None, bool]] = []
    kernel = F.scaled_dot_product_attention

    def spy(*args: Any, attn_mask: torch.Tensor | None = None, is_causal: bool = False, **kwargs: Any) -> torch.Tensor:
        calls.append((attn_mask, is_causal))
        return kernel(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return calls


@MODES
def test_sdpa_on_unpadded_input_gets_no_mask(
    model: DimpleForConditionalGeneration, sdpa_masks: list[tuple[torch.Tensor | None, bool]], is_causal: bool
) -> None:
    """A mask of ones would keep sdpa from its fastest kernels."""
    inputs = model_inputs(MIXED_PROMPTS[0])
    logits_of(model, inputs, is_causal=is_causal)
    logits_of(model, {"input_ids": inputs["input_ids"]}, is_causal=is_causal)
    assert sdpa_masks == [(None, is_causal)] * 4  # two layers, twice
    # control: padded input does get one
    sdpa_masks.clear()
    logits_of(model, model_inputs(MIXED_PROMPTS[0], width=9), is_causal=is_causal)
    assert [mask is None for mask, _ in sdpa_masks] == [False, False]


def test_forward_of_two_threads_in_different_modes_do_not_disturb_each_other(
    model: DimpleForConditionalGeneration,
) -> None:
    """Transformers' own switch writes the mode into the shared configuration; a server runs threads."""
    inputs = model_inputs(MIXED_PROMPTS[0])
    before = model.config.to_dict()
    expected = {is_causal: logits_of(model, inputs, is_causal=is_causal) for is_causal in (False, True)}
    assert not torch.allclose(expected[False], expected[True])  # control
    wrong: list[bool] = []
    start = threading.Barrier(2)

    def run(is_causal: bool) -> None:
        start.wait()
        for _ in range(60):
            if not torch.equal(logits_of(model, inputs, is_causal=is_causal), expected[is_causal]):
                wrong.append(is_causal)

    threads = [threading.Thread(target=run, args=(is_causal,)) for is_causal in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert model.config.to_dict() == before


def test_forward_token_by_token_with_a_cache_equals_forward_at_once(
    causal_model: DimpleForConditionalGeneration,
) -> None:
    """A filled cache and given positions are all that a later token needs."""
    inputs = model_inputs(ONE_IMAGE)
    ids, split = inputs["input_ids"], len(ONE_IMAGE.tokens) - 2
    positions = causal_model.get_rope_index(ids, inputs["image_grid_thw"])
    whole = logits_of(causal_model, inputs)
    images = {"pixel_values": inputs["pixel_values"], "image_grid_thw": inputs["image_grid_thw"]}
    with torch.no_grad():
        first = causal_model(ids[:, :split], use_cache=True, **images)
    assert isinstance(first.past_key_values, DynamicCache)
    for position in range(split, ids.shape[1]):
        step = logits_of(
            causal_model, {"input_ids": ids[:, position : position + 1]}, past_key_values=first.past_key_values,
            position_ids=positions[:, :, position : position + 1],
        )  # fmt: skip
        torch.testing.assert_close(step[:, 0], whole[:, position], rtol=1e-4, atol=1e-4)
    assert causal_model(ids[:, :3]).past_key_values is None  # control: only on request


# Positions


def test_position_ids_of_the_docstrings_example_are_as_written() -> None:
    """Two text tokens, an image of 2 x 2 merged tokens, a text token."""
    image_mask = torch.tensor([[False, False, True, True, True, True, False]])
    positions = multimodal_position_ids(image_mask, None, torch.tensor([[1, 4, 4]]), spatial_merge_size=2)
    assert positions[:, 0].tolist() == [[0, 1, 2, 2, 2, 2, 4], [0, 1, 2, 2, 3, 3, 4], [0, 1, 2, 3, 2, 3, 4]]


def test_position_ids_after_a_wide_image_go_on_after_its_longest_side() -> None:
    """1 x 3 merged tokens take three positions of width, so the text starts three later; then a 2 x 1 image."""
    image_mask = torch.tensor([[False, True, True, True, False, True, True, False]])
    positions = multimodal_position_ids(image_mask, None, torch.tensor([[1, 2, 6], [1, 4, 2]]), spatial_merge_size=2)
    assert positions[:, 0].tolist() == [
        [0, 1, 1, 1, 4, 5, 5, 7],
        [0, 1, 1, 1, 4, 5, 6, 7],
        [0, 1, 2, 3, 4, 5, 5, 7],
    ]


def test_position_ids_of_padded_rows_count_tokens_only() -> None:
    """Two rows: one padded on the left with an image, one padded on the right without."""
    image_mask = torch.tensor([[False, False, True, False], [False, False, False, False]])
    attention_mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])
    positions = multimodal_position_ids(image_mask, attention_mask, torch.tensor([[1, 2, 2]]), spatial_merge_size=2)
    assert positions[0, 0, 1:].tolist() == [0, 1, 2]
    assert positions[0, 1, :2].tolist() == [0, 1]


def test_forward_with_embeddings_equals_forward_with_tokens(model: DimpleForConditionalGeneration) -> None:
    """PEFT's prompt tuning and causal generation come with embeddings; text positions are then made from the mask."""
    inputs = model_inputs(MIXED_PROMPTS[0], width=8)
    embeds = model.embed(inputs["input_ids"])
    mask = inputs["attention_mask"]
    from_embeds = logits_of(model, {"inputs_embeds": embeds, "attention_mask": mask})
    assert torch.equal(from_embeds, logits_of(model, inputs))
    # control: the mask counts
    assert not torch.allclose(from_embeds, logits_of(model, {"inputs_embeds": embeds}), atol=1e-2)


@torch.no_grad()
def test_text_layers_take_tokens_or_embeddings(model: DimpleForConditionalGeneration) -> None:
    """The part below the head is a model of its own, for whoever wants its hidden states."""
    ids = model_inputs(MIXED_PROMPTS[0])["input_ids"]
    positions = model.get_rope_index(ids)
    from_tokens = model.model(ids, position_ids=positions, is_causal=False).last_hidden_state
    embeds = model.embed(ids)
    from_embeds = model.model(inputs_embeds=embeds, position_ids=positions, is_causal=False).last_hidden_state
    assert torch.equal(from_tokens, from_embeds)
    torch.testing.assert_close(model.lm_head(from_tokens), logits_of(model, {"input_ids": ids}))
    # control: the mode is an argument here, too, and causal without it
    assert not torch.allclose(model.model(ids, position_ids=positions).last_hidden_state, from_tokens, atol=1e-2)


# Images


def test_get_image_features_returns_one_tensor_for_each_image(model: DimpleForConditionalGeneration) -> None:
    """As in transformers' own vision-language models: `pooler_output` is a tuple, also as a plain tuple's field."""
    inputs = model_inputs(MIXED_PROMPTS[3])
    images = inputs["pixel_values"], inputs["image_grid_thw"]
    with torch.no_grad():
        outputs = model.get_image_features(*images)
        as_tuple = model.get_image_features(*images, return_dict=False)
        alone = model.get_image_features(images[0][:16], images[1][:1]).pooler_output[0]
    assert [tuple(features.shape) for features in outputs.pooler_output] == [(4, 32), (12, 32), (1, 32)]
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(outputs.pooler_output[0], alone)
    # control: a different image has other features
    assert not torch.allclose(outputs.pooler_output[1][:4], alone, atol=1e-2)


def test_forward_with_encoded_images_equals_forward_with_pixels(model: DimpleForConditionalGeneration) -> None:
    """Features that were computed before, as a frozen vision tower allows."""
    inputs = model_inputs(*MIXED_PROMPTS)
    with torch.no_grad():
        pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
        images = model.get_image_features(pixels, grid)
    others = {name: value for name, value in inputs.items() if name != "pixel_values"}
    assert torch.equal(logits_of(model, others, mm_encoder_outputs={"image": images}), logits_of(model, inputs))
    images.pooler_output = tuple(-features for features in images.pooler_output)
    assert not torch.equal(logits_of(model, others, mm_encoder_outputs={"image": images}), logits_of(model, inputs))


# logits_to_keep


def test_logits_to_keep_selects_the_positions_asked_for(model: DimpleForConditionalGeneration) -> None:
    """The head over 152064 tokens is the dearest layer of a short pass."""
    inputs = model_inputs(*MIXED_PROMPTS[:2])
    whole = logits_of(model, inputs)
    mask = torch.zeros(whole.shape[:2], dtype=torch.bool)
    mask[0, 2], mask[1, 0], mask[1, 5] = True, True, True
    index = torch.tensor([4, 1])
    sizes: list[torch.Size] = []
    handle = model.lm_head.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[:-1]))
    pair = mask.nonzero(as_tuple=True)
    cases = ((0, whole), (3, whole[:, -3:]), (index, whole[:, index]), (mask, whole[mask]), (pair, whole[mask]))
    for keep, expected in cases:
        torch.testing.assert_close(logits_of(model, inputs, logits_to_keep=keep), expected, rtol=1e-5, atol=1e-5)
    handle.remove()
    # control: it is not computed and thrown away
    assert [size.numel() for size in sizes] == [whole.shape[:2].numel(), 6, 4, 3, 3]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (-1, r"`logits_to_keep` must be >= 0 \(got -1\)"),
        (torch.zeros(2, 2, dtype=torch.bool), r"`logits_to_keep` must be an int.* \(got torch.bool of shape \(2, 2\)"),
        (torch.zeros(2, 2, dtype=torch.long), r"`logits_to_keep` must be an int.* \(got torch.int64"),
        (torch.zeros(5, dtype=torch.bool), r"`logits_to_keep` must be an int.* \(got torch.bool of shape \(5,\)"),
    ],
)
def test_logits_to_keep_of_another_shape_is_refused(keep: int | torch.Tensor, message: str) -> None:
    """A bool mask of one row is not an index tensor."""
    select_positions(torch.zeros(1, 5, 3), torch.ones(1, 5, dtype=torch.bool))  # control
    with pytest.raises(ValueError, match=message):
        select_positions(torch.zeros(1, 5, 3), keep)


# Losses


def test_causal_loss_is_cross_entropy_of_the_next_token(causal_model: DimpleForConditionalGeneration) -> None:
    """Labels are not shifted by the caller: the logits at position i - 1 are for the label at position i."""
    inputs = labelled(*MIXED_PROMPTS)
    inputs.pop("masked_positions")
    labels = inputs.pop("labels")
    logits = logits_of(causal_model, inputs)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    output = causal_model(**inputs, labels=labels)
    torch.testing.assert_close(output.loss, expected)
    assert output.logits is None
    assert output.token_losses.shape == output.token_predictions.shape == labels.shape
    assert torch.equal(output.token_losses != -100, labels != -100)
    assert torch.equal(output.token_predictions[:, 1:], logits[:, :-1].argmax(-1).where(labels[:, 1:] != -100, -100))
    assert not output.token_losses.requires_grad
    unshifted = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert not torch.allclose(unshifted, expected)  # control


def test_diffusion_loss_is_cross_entropy_of_the_masked_tokens(model: DimpleForConditionalGeneration) -> None:
    """The input is masked where `masked_positions` says, and only those tokens count."""
    inputs = labelled(*MIXED_PROMPTS)
    masked, labels = inputs["masked_positions"], inputs["labels"]
    output = model(**inputs)
    plain = {name: inputs[name] for name in ("attention_mask", "pixel_values", "image_grid_thw")}
    plain["input_ids"] = inputs["input_ids"].masked_fill(masked, MASK)
    logits = logits_of(model, plain)
    counted = masked[:, 1:]
    expected = F.cross_entropy(logits[:, :-1][counted], labels[:, 1:][counted])
    torch.testing.assert_close(output.loss, expected)
    # two of four tokens in each of four rows
    assert torch.equal(output.token_noise_levels, torch.where(masked, 0.5, -100.0))
    assert torch.equal(output.token_predictions[:, 1:], logits[:, :-1].argmax(dim=-1).where(counted, -100))
    # control: unmasked input gives another loss
    unmasked = logits_of(model, plain | {"input_ids": inputs["input_ids"]})
    assert not torch.allclose(F.cross_entropy(unmasked[:, :-1][counted], labels[:, 1:][counted]), expected)


def test_diffusion_loss_without_masked_positions_draws_them(model: DimpleForConditionalGeneration) -> None:
    """Only supervised tokens are masked, all with their row's noise level; the same seed gives the same loss."""
    inputs = labelled(*MIXED_PROMPTS)
    inputs.pop("masked_positions")
    seen: list[torch.Tensor] = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model.train()(**inputs).loss.item())
    handle.remove()
    model.eval()
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]  # control
    mask_embedding = model.model.embed_tokens.weight[MASK]
    is_masked = torch.stack([(embeds == mask_embedding).all(dim=-1) for embeds in seen])
    assert is_masked.any()
    assert not (is_masked & (inputs["labels"] == -100)).any()


def test_diffusion_loss_in_evaluation_mode_draws_by_what_a_row_holds(model: DimpleForConditionalGeneration) -> None:
    """Whoever evaluates, in whatever batches: the masks of a row are the same, and other rows have others."""
    inputs = labelled(*MIXED_PROMPTS)
    inputs.pop("masked_positions")
    whole = model(**inputs).token_noise_levels
    torch.manual_seed(5)
    assert torch.equal(model(**inputs).token_noise_levels, whole)
    length = int(inputs["attention_mask"][1].sum())
    alone = {name: inputs[name][1:2, -length:] for name in ("input_ids", "attention_mask", "labels")}
    images = {"pixel_values": inputs["pixel_values"][:16], "image_grid_thw": inputs["image_grid_thw"][:1]}
    assert torch.equal(model(**alone, **images).token_noise_levels[0], whole[1, -length:])
    levels = whole.amax(dim=1)
    assert len(set(levels.tolist())) == 4
    pixels = inputs["pixel_values"].clone()
    pixels[-1] += 1  # control: the last image is the last row's
    other = model(**(inputs | {"pixel_values": pixels})).token_noise_levels.amax(dim=1)
    assert torch.equal(other[:3], levels[:3])
    assert other[3] != levels[3]
    model.mask_seed = 7
    assert not torch.equal(model(**inputs).token_noise_levels, whole)
    model.mask_seed = None


@pytest.mark.parametrize("full_attn_mask", [True, False])
def test_backward_through_logits_of_unmasked_text_is_refused(full_attn_mask: bool) -> None:
    """What the Trainer's label smoothing does, and trainers of preferences: the model would learn to copy."""
    model = tiny_model(full_attn_mask=full_attn_mask).train()
    ids = torch.arange(1, 9)[None]
    if full_attn_mask:
        with pytest.raises(ValueError, match="`labels` must be given in training.*label_smoothing_factor"):
            model(ids).logits.sum().backward()
    masked = ids.masked_fill(ids > 6, MASK)
    for tokens in (masked, *([] if full_attn_mask else [ids])):  # a user's own diffusion loss, and the causal mode
        model(tokens).logits.sum().backward()
    model.eval()(ids).logits.sum().backward()
    assert model.lm_head.weight.grad is not None


@pytest.mark.parametrize("full_attn_mask", [True, False])
def test_training_on_text_alone_gives_tower_and_projector_a_gradient_of_zero(full_attn_mask: bool) -> None:
    """Without one, processes with images and processes without wait for each other (DDP, FSDP2, ZeRO-3)."""
    model = tiny_model(full_attn_mask=full_attn_mask).train()
    inputs = labelled(MIXED_PROMPTS[0])
    given = {name: value for name, value in inputs.items() if full_attn_mask or name != "masked_positions"}
    loss = model(**given).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name.startswith(("visual", "img_projector")):
            assert not parameter.grad.any(), name
    torch.testing.assert_close(loss, model.eval()(**given).loss)
    assert model.model.layers[0].mlp.up_proj.weight.grad.any()  # control


def test_loss_with_logits_to_keep_returns_both(model: DimpleForConditionalGeneration) -> None:
    """For metrics that need logits; without it the loss never holds all of them."""
    output = model(**labelled(*MIXED_PROMPTS), logits_to_keep=2)
    assert output.logits.shape == (4, 2, VOCAB_SIZE)
    assert output.loss.ndim == 0
    assert isinstance(output, DimpleOutput)
    as_tuple = model(**labelled(*MIXED_PROMPTS), return_dict=False)
    assert torch.equal(as_tuple[0], model(**labelled(*MIXED_PROMPTS)).loss)


@pytest.mark.parametrize("num_items_in_batch", [None, 0, torch.tensor(0)])
@pytest.mark.parametrize("changes", [{"loss_weighting": "elbo"}, {}, {"full_attn_mask": False}])
def test_loss_of_a_batch_without_labels_is_zero(
    changes: dict[str, Any], num_items_in_batch: int | torch.Tensor | None
) -> None:
    """A batch whose answers were all cut off must not turn the weights into NaN."""
    model = tiny_model(**changes)
    inputs = labelled(*MIXED_PROMPTS)
    inputs.pop("masked_positions")
    assert model(**inputs).loss.item() > 0  # control
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    assert model(**inputs, num_items_in_batch=num_items_in_batch).loss.item() == 0


def test_loss_weighting_elbo_divides_by_the_noise_level() -> None:
    """Equation 3 of the paper: sum(L / t) / maskable tokens; with t = 1/2 and half the tokens masked, the mean."""
    inputs = labelled(*MIXED_PROMPTS)
    uniform, elbo = tiny_model()(**inputs), tiny_model(loss_weighting="elbo")(**inputs)
    torch.testing.assert_close(uniform.loss, elbo.loss)
    # one token of four masked: t = 1/4, the loss is L / (1/4) / 4 = L
    inputs["masked_positions"][:, :-1] = False
    inputs["masked_positions"][1:] = False
    one = tiny_model(loss_weighting="elbo")(**inputs)
    torch.testing.assert_close(one.loss, one.token_losses[one.token_losses != -100].sum() * 4 / 16)


def test_hybrid_loss_is_the_diffusion_loss_and_the_weighted_causal_one() -> None:
    """`causal_loss_weight` times the next-token loss of the clean text is added."""
    inputs = labelled(*MIXED_PROMPTS)
    masks = {"masked_positions": inputs.pop("masked_positions")}
    model = tiny_model()
    diffusion, causal = model(**inputs, **masks).loss, model(**inputs, is_causal=True).loss
    hybrid = tiny_model(causal_loss_weight=0.5)(**inputs, **masks).loss
    torch.testing.assert_close(hybrid, diffusion + 0.5 * causal)
    assert not torch.allclose(hybrid, diffusion)  # control


def test_complementary_masks_train_on_every_answer_token_once() -> None:
    """A mask and its complement, each in a row of its own: the mean of both is over all supervised tokens."""
    model, both = tiny_model(), tiny_model(complementary_masks=True)
    inputs = labelled(*MIXED_PROMPTS)
    masked = inputs["masked_positions"]
    complement = (inputs["labels"] != -100) & ~masked
    sides = [model(**(inputs | {"masked_positions": mask})) for mask in (masked, complement)]
    output = both(**inputs, logits_to_keep=1)
    torch.testing.assert_close(output.loss, (sides[0].loss + sides[1].loss) / 2)
    expected = torch.where(masked, sides[0].token_losses, sides[1].token_losses)
    torch.testing.assert_close(output.token_losses, expected)
    assert output.logits.shape == (4, 1, VOCAB_SIZE)
    assert not torch.allclose(output.loss, sides[0].loss)  # control
    torch.testing.assert_close(both(**inputs, num_items_in_batch=16).loss, output.loss)
    with pytest.raises(ValueError, match="`attention_mask` must be a tensor with `complementary_masks`"):
        both(**(inputs | {"attention_mask": {"full_attention": None}}))


def test_loss_with_num_items_in_batch_adds_up_over_micro_batches(
    model: DimpleForConditionalGeneration, causal_model: DimpleForConditionalGeneration
) -> None:
    """Gradient accumulation: the sum over the parts is the loss of the whole, in both modes."""
    inputs = labelled(*MIXED_PROMPTS[:1] * 4)
    for part_model in (model, causal_model):
        given = {k: v for k, v in inputs.items() if part_model is model or k != "masked_positions"}
        whole = part_model(**given, num_items_in_batch=16).loss
        parts = [{k: v[i : i + 2] for k, v in given.items()} for i in (0, 2)]
        torch.testing.assert_close(sum(part_model(**part, num_items_in_batch=16).loss for part in parts), whole)
        # control: without it each part is a mean of its own
        assert not torch.allclose(sum(part_model(**part).loss for part in parts), whole)


@MODES
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_gradient_checkpointing_gives_equal_gradients(is_causal: bool, use_reentrant: bool) -> None:
    """Activations are computed again in the backward pass, in the mode that they had in the forward pass."""
    inputs = labelled(*MIXED_PROMPTS)
    if is_causal:
        inputs.pop("masked_positions")
    model = tiny_model(full_attn_mask=not is_causal).train()
    calls: list[int] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: calls.append(1))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": use_reentrant})
        model.zero_grad()
        model(**inputs).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-6, atol=1e-7, msg=name)
    assert len(calls) == 3  # control: one pass without checkpointing, two with
    assert all(gradient.abs().max() > 0 for name, gradient in gradients[0].items() if "k_proj.bias" not in name)


def test_gradient_checkpointing_survives_a_pass_in_the_other_mode_before_backward() -> None:
    """A switch on the module or in the configuration would recompute the activations in the wrong mode."""
    inputs = labelled(MIXED_PROMPTS[0])
    model = tiny_model().train()
    model(**inputs).loss.backward()
    expected = model.model.layers[0].self_attn.q_proj.weight.grad.clone()
    model.zero_grad()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    loss = model(**inputs).loss
    logits_of(model, model_inputs(MIXED_PROMPTS[0]), is_causal=True)
    loss.backward()
    gradient = model.model.layers[0].self_attn.q_proj.weight.grad
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)
    assert expected.abs().max() > 1e-4  # control: there is something to get wrong


def test_training_moves_every_weight_and_lowers_the_loss() -> None:
    """A few steps of plain gradient descent on one batch."""
    inputs = labelled(*MIXED_PROMPTS)
    model = tiny_model().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


# Other behaviour of transformers' models


def test_resize_token_embeddings_keeps_the_old_tokens_scores(tmp_path: Path) -> None:
    """Both matrices, the configuration, the loss and a saved copy follow."""
    model = tiny_model()
    inputs = labelled(*MIXED_PROMPTS)
    plain = model_inputs(*MIXED_PROMPTS)
    before = logits_of(model, plain)
    model.resize_token_embeddings(105, mean_resizing=False)
    assert model.config.vocab_size == model.lm_head.out_features == model.get_input_embeddings().num_embeddings == 105
    after = logits_of(model, plain)
    assert after.shape[-1] == 105  # control: resized
    torch.testing.assert_close(after[..., :VOCAB_SIZE], before)
    assert model(**inputs).loss.isfinite()
    assert model.generate(**plain, max_new_tokens=3).shape[1] == plain["input_ids"].shape[1] + 3
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(AutoModel.from_pretrained(tmp_path), plain), after)


def test_forward_outputs_hidden_states_and_attentions_on_request(model: DimpleForConditionalGeneration) -> None:
    """For analysis, as in every transformers model."""
    inputs = model_inputs(MIXED_PROMPTS[0])
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    output = eager(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3  # embeddings and two layers
    assert [tuple(attention.shape) for attention in output.attentions] == [(1, 4, 5, 5)] * 2
    assert output.attentions[0][0, 0, 0, 4] > 0  # bidirectional: the first token looks at the last
    assert eager(**inputs, output_attentions=True, is_causal=True).attentions[0][0, 0, 0, 4] == 0  # control
    assert eager(**inputs).hidden_states is None


# Refusals


def image_inputs(**changes: Any) -> dict[str, Any]:
    return model_inputs(ONE_IMAGE) | changes


def refused() -> Iterator[Any]:
    inputs = model_inputs(ONE_IMAGE)
    pixels, grid, ids = inputs["pixel_values"], inputs["image_grid_thw"], inputs["input_ids"]
    text = model_inputs(MIXED_PROMPTS[0])["input_ids"]
    long_grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
    split = torch.tensor([[1, IMAGE, IMAGE, 2, IMAGE, IMAGE, 3]])
    split_rows = torch.tensor([[1, IMAGE, IMAGE], [IMAGE, IMAGE, 3]])
    features, embeds = torch.zeros(4, 32), torch.zeros(1, 4, 32)
    filled = DynamicCache()
    filled.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), 0)
    labels = text.clone()
    yield pytest.param({"input_ids": text, "inputs_embeds": embeds}, "exactly one of `input_ids`", id="both-inputs")
    yield pytest.param({}, "exactly one of `input_ids` and `inputs_embeds`", id="no-input")
    yield pytest.param({"input_ids": ids, "image_grid_thw": grid}, "`pixel_values` must be given", id="no-pixels")
    yield pytest.param({"input_ids": ids, "pixel_values": pixels}, "`image_grid_thw` must be given", id="no-grid")
    yield pytest.param({"input_ids": ids}, "`image_grid_thw` must be given for 4 image placeholders", id="no-image")
    yield pytest.param(
        {"inputs_embeds": embeds, "pixel_values": pixels}, "`inputs_embeds` must already hold", id="embeds-and-pixels"
    )
    yield pytest.param(
        {"input_ids": ids, "pixel_values": pixels, "mm_encoder_outputs": {"image": features}},
        "only one of",
        id="pixels-and-features",
    )
    yield pytest.param({"input_ids": text, "past_key_values": filled}, "`position_ids` must be given", id="positions")
    yield pytest.param(
        {"input_ids": text, "masked_positions": text == 0},
        "`masked_positions` must come with `labels`",
        id="mask-alone",
    )
    yield pytest.param(
        {"input_ids": text, "labels": labels, "masked_positions": text == 0, "is_causal": True},
        "`masked_positions` must come with .* bidirectional", id="mask-in-causal-mode",
    )  # fmt: skip
    yield pytest.param({"inputs_embeds": embeds, "labels": labels[:, :4]}, "`input_ids` must be given", id="no-ids")
    yield pytest.param(
        {"input_ids": text, "labels": labels[:, 1:]}, r"`labels` must have the shape .*\(1, 5\) \(got \(1, 4\)\)",
        id="labels-shape",
    )  # fmt: skip
    yield pytest.param(
        {"input_ids": text, "labels": labels, "masked_positions": (text == 0)[0]},
        r"`masked_positions` must have the shape .*\(got \(5,\)\)", id="mask-shape",
    )  # fmt: skip
    yield pytest.param(image_inputs(pixel_values=pixels.long()), "`pixel_values` must be floating", id="pixels-dtype")
    yield pytest.param(
        image_inputs(pixel_values=pixels[:, :90]), r"must have shape \(num_patches, 96\) \(got \(16, 90\)\)",
        id="pixels-width",
    )  # fmt: skip
    yield pytest.param(image_inputs(pixel_values=pixels[None]), r"must have shape \(num_patches, 96\)", id="pixels-3d")
    yield pytest.param(
        image_inputs(pixel_values=pixels[:-1]), r"hold the 16 patches .* \(got 15\)", id="pixels-missing"
    )
    yield pytest.param(
        image_inputs(image_grid_thw=grid.float()), "must be an integer tensor of shape", id="grid-dtype"
    )
    yield pytest.param(image_inputs(image_grid_thw=grid[0]), r"shape \(num_images, 3\)", id="grid-1d")
    yield pytest.param(image_inputs(image_grid_thw=grid[:, :2]), r"shape \(num_images, 3\)", id="grid-width")
    yield pytest.param(
        image_inputs(image_grid_thw=torch.tensor([[2, 4, 2]])), r"video is not supported \(got t=2\)", id="grid-video"
    )
    yield pytest.param(
        image_inputs(image_grid_thw=torch.tensor([[1, 2, 8], [1, 3, 4]])),
        r"`image_grid_thw\[1\]` must have .* multiples of 2 \(got 3 x 4\)", id="grid-odd",
    )  # fmt: skip
    yield pytest.param(
        image_inputs(image_grid_thw=torch.tensor([[1, 0, 4]])), r"positive sides .*\(got 0 x 4\)", id="grid-zero"
    )
    yield pytest.param(
        image_inputs(pixel_values=torch.cat([pixels, pixels]), image_grid_thw=long_grid),
        r"image placeholder \(id 93\) for each image feature \(got 4 placeholders and 8 features\)",
        id="too-few-placeholders",
    )  # fmt: skip
    yield pytest.param(
        image_inputs(input_ids=torch.cat([ids, ids[:, 4:5]], dim=1), attention_mask=None),
        r"for each image feature \(got 5 placeholders and 4 features\)",
        id="too-many-placeholders",
    )  # fmt: skip
    yield pytest.param(
        image_inputs(input_ids=split, attention_mask=None), r"of image 0 must be adjacent in one row", id="split-image"
    )
    yield pytest.param(
        image_inputs(input_ids=split_rows, attention_mask=None), r"got them from row 0 to row 1", id="image-over-rows"
    )
    yield pytest.param(
        image_inputs(pixel_values_videos=pixels), "`pixel_values_videos` must not be given: .* video", id="video"
    )
    yield pytest.param(image_inputs(video_grid_thw=grid), "`video_grid_thw` must not be given", id="video-grid")


@pytest.mark.parametrize(("arguments", "message"), list(refused()))
def test_forward_with_contradicting_arguments_is_refused_before_the_language_model(
    model: DimpleForConditionalGeneration, arguments: dict[str, Any], message: str
) -> None:
    """Each would give wrong numbers or an error about shapes from deep inside."""
    calls: list[int] = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda module, args: calls.append(1))
    try:
        with pytest.raises(ValueError, match=message):
            model(**arguments)
        assert calls == []
        logits_of(model, model_inputs(ONE_IMAGE))
        assert calls == [1]  # control: a right call gets there
    finally:
        handle.remove()


def test_rope_index_of_images_in_another_order_is_refused(model: DimpleForConditionalGeneration) -> None:
    """The count of placeholders alone is right, but each image stands in the other's position."""
    prompt = make_prompt(2, [(4, 4), (4, 8)], seed=5)
    ids = model_inputs(prompt)["input_ids"]
    assert model.get_rope_index(ids, prompt.grids).shape == (3, 1, len(prompt.tokens))  # control
    with pytest.raises(ValueError, match="placeholders of image 0 must be adjacent"):
        model.get_rope_index(ids, prompt.grids.flip(0))


def test_shifted_labels_give_the_loss_of_labels(causal_model: DimpleForConditionalGeneration) -> None:
    """Sequence parallelism shifts before it divides a sequence, so the last token of a part has a target, too."""
    inputs = model_inputs(*MIXED_PROMPTS[:2])
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] == IMAGE), -100)
    shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
    expected = causal_model(**inputs, labels=labels).loss
    torch.testing.assert_close(causal_model(**inputs, shift_labels=shifted).loss, expected)
    torch.testing.assert_close(causal_model(**inputs, labels=shifted, shift_labels=shifted).loss, expected)
    further = shifted.clone()
    further[:, -1] = 5
    logits = causal_model(**inputs).logits
    reference = F.cross_entropy(logits.flatten(0, 1), further.flatten())
    torch.testing.assert_close(causal_model(**inputs, shift_labels=further).loss, reference)
    assert not torch.allclose(reference, expected)  # control
    with pytest.raises(ValueError, match="`shift_labels` must be used in causal mode"):
        causal_model(**inputs, shift_labels=shifted, is_causal=False)


def test_labels_at_image_placeholders_are_never_masked(model: DimpleForConditionalGeneration) -> None:
    """Labels that copy the tokens, as in many recipes; the placeholders stay where the images belong."""
    inputs = model_inputs(*MIXED_PROMPTS[1:3])
    for _ in range(20):
        assert model(**inputs, labels=inputs["input_ids"].clone()).loss.isfinite()
    masked = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    output = model(**inputs, labels=inputs["input_ids"], masked_positions=masked)
    is_image = inputs["input_ids"] == IMAGE
    assert (output.token_losses[is_image] == -100).all()
    assert (output.token_losses[:, 1:][~is_image[:, 1:]] != -100).all()  # control
