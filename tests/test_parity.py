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
"""Agreement with the original implementation: everything in `fixtures/parity`, at the tolerances its README states.

The original ran under transformers 4.46.2 on the same small random weights: logits and features within 2e-4, tokens
and histories identical, losses within 1e-5 and gradient norms within 1e-3 relative, processor outputs identical.
"""

import functools
import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, pipeline

from dimple_hf import DimpleConfig, DimpleForConditionalGeneration

FIXTURES = Path(__file__).resolve().parent / "fixtures" / "parity"

CASES: dict[str, dict[str, Any]] = json.loads((FIXTURES / "tiny" / "goldens.json").read_text(encoding="utf-8"))[
    "cases"
]
END_TO_END: list[dict[str, Any]] = json.loads(
    (FIXTURES / "checkpoint" / "end_to_end_goldens.json").read_text(encoding="utf-8")
)
NUM_IMAGES = 5

# A tolerance is worth something only if wrong results are far outside it.
LOGITS_TOLERANCE = {"rtol": 0, "atol": 2e-4}
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-3


def cases(*kinds: str) -> list[str]:
    return [name for name in CASES if name.split(".")[0] in kinds]


@functools.cache
def goldens() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "tiny" / "goldens.safetensors")


def golden(case: str, *names: str) -> dict[str, torch.Tensor]:
    """Tensors of a case, copied, so that a test may change them."""
    return {name: goldens()[f"{case}.{name}"].clone() for name in names}


def images_of(case: str) -> dict[str, torch.Tensor]:
    """Pixels and grids of the images of a case, in order."""
    numbers = CASES[case]["images"]
    if not numbers:
        return {}
    return {
        "pixel_values": torch.cat([goldens()[f"image_processor.{number}.pixel_values"] for number in numbers]),
        "image_grid_thw": torch.cat([goldens()[f"image_processor.{number}.grid_thw"] for number in numbers]),
    }


def image(number: int) -> PIL.Image.Image:
    with PIL.Image.open(FIXTURES / "tiny" / "images" / f"{number}.png") as image:
        image.load()
    return image


@pytest.fixture(scope="module")
def model() -> DimpleForConditionalGeneration:
    return AutoModel.from_pretrained(FIXTURES / "tiny")


@pytest.fixture(scope="module")
def checkpoint() -> tuple[DimpleForConditionalGeneration, Any]:
    """Model and processor of a whole directory, as users find it on the Hub."""
    return AutoModel.from_pretrained(FIXTURES / "checkpoint"), AutoProcessor.from_pretrained(FIXTURES / "checkpoint")


def test_parity_data_is_complete() -> None:
    """The tests below run over what they find; this is what they must find."""
    kinds = {kind: len(cases(kind)) for kind in ("forward", "generate", "loss")}
    assert kinds == {"forward": 11, "generate": 36, "loss": 4}
    assert sum(kinds.values()) == len(CASES)
    assert len(END_TO_END) == 3


# Names and shapes of the released 7B model


def test_model_of_the_7b_config_has_the_released_names_and_shapes() -> None:
    """Built without memory; a single renamed parameter would be left at random values by `from_pretrained`."""
    with torch.device("meta"):
        model = DimpleForConditionalGeneration(DimpleConfig.from_json_file(FIXTURES / "config_7b.json"))
    expected = json.loads((FIXTURES / "state_dict_7b.json").read_text(encoding="utf-8"))
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == {name: list(shape) for name, shape in expected.items()}
    assert len(expected) > 700  # control: the whole of it
    assert sum(parameter.numel() for parameter in model.parameters()) > 8e9


def test_checkpoint_loads_without_missing_or_unexpected_weights() -> None:
    """One file and three shards."""
    for directory in ("tiny", "checkpoint"):
        _, info = AutoModel.from_pretrained(FIXTURES / directory, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert not info["mismatched_keys"]


# Images


@pytest.mark.parametrize("number", range(NUM_IMAGES))
def test_image_processor_gives_the_originals_pixels(number: int) -> None:
    """Bit by bit: what the tower sees is what it saw in training."""
    processor = AutoProcessor.from_pretrained(FIXTURES / "checkpoint").image_processor
    inputs = processor(images=[image(number)], return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], goldens()[f"image_processor.{number}.pixel_values"])
    assert torch.equal(inputs["image_grid_thw"], goldens()[f"image_processor.{number}.grid_thw"])


@pytest.mark.parametrize("number", range(NUM_IMAGES))
@torch.no_grad()
def test_vision_tower_gives_the_originals_features(model: DimpleForConditionalGeneration, number: int) -> None:
    """After the patch merger, and after the projector."""
    pixels, grid = (goldens()[f"image_processor.{number}.{name}"] for name in ("pixel_values", "grid_thw"))
    merged = model.visual(pixels, grid_thw=grid).pooler_output
    torch.testing.assert_close(merged, goldens()[f"vision.{number}.merged"], **LOGITS_TOLERANCE)
    (projected,) = model.get_image_features(pixels, grid).pooler_output
    torch.testing.assert_close(projected, goldens()[f"vision.{number}.projected"], **LOGITS_TOLERANCE)
    # control: other pixels are far outside the tolerance
    (other,) = model.get_image_features(pixels.flip(0), grid).pooler_output
    assert (other - projected).abs().max() > 1e-2


def test_vision_tower_gives_the_same_features_for_all_images_at_once(model: DimpleForConditionalGeneration) -> None:
    """Images of a batch must not see each other."""
    pixels, grids = (
        torch.cat([goldens()[f"image_processor.{number}.{name}"] for number in range(NUM_IMAGES)])
        for name in ("pixel_values", "grid_thw")
    )
    with torch.no_grad():
        features = model.get_image_features(pixels, grids).pooler_output
    for number, projected in enumerate(features):
        torch.testing.assert_close(projected, goldens()[f"vision.{number}.projected"], **LOGITS_TOLERANCE)


# Forward


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", cases("forward"))
@torch.no_grad()
def test_forward_gives_the_originals_logits(model: DimpleForConditionalGeneration, case: str, attention: str) -> None:
    """At every token that is not padding, in both modes, and at the same positions."""
    tensors = golden(case, "input_ids", "attention_mask", "position_ids", "logits")
    is_token = tensors["attention_mask"].bool()
    inputs = {name: tensors[name] for name in ("input_ids", "attention_mask")} | images_of(case)
    is_causal = CASES[case]["causal"]
    model.set_attn_implementation(attention)
    try:
        logits = model(**inputs, is_causal=is_causal).logits
        other = model(**inputs, is_causal=not is_causal).logits
    finally:
        model.set_attn_implementation("sdpa")
    torch.testing.assert_close(logits[is_token], tensors["logits"][is_token], **LOGITS_TOLERANCE)
    positions = model.get_rope_index(tensors["input_ids"], inputs.get("image_grid_thw"), tensors["attention_mask"])
    assert torch.equal(positions[:, is_token], tensors["position_ids"][:, is_token])
    assert (other - logits)[is_token].abs().max() > 1e-1  # control: the other mode is far outside


# Generation


@pytest.mark.parametrize("case", cases("generate"))
def test_diffusion_generate_gives_the_originals_tokens(model: DimpleForConditionalGeneration, case: str) -> None:
    """Every step of the history, the passes, and the result; priors are written by the hook that the original has."""
    tensors = golden(case, "input_ids", "attention_mask", "sequences", "history")
    prompt_length = tensors["input_ids"].shape[1]
    options = dict(CASES[case]["kwargs"])
    prior = CASES[case]["prior"] or {}

    def write_prior(step: int | None, sequences: torch.Tensor, logits: torch.Tensor | None) -> torch.Tensor:
        if step is None:
            for offset, token in prior.items():
                sequences[:, prompt_length + int(offset)] = token
        return sequences

    if prior:
        options["generation_tokens_hook_func"] = write_prior
    output = model.diffusion_generate(
        tensors["input_ids"], attention_mask=tensors["attention_mask"], output_history=True,
        return_dict_in_generate=True, **options, **images_of(case),
    )  # fmt: skip
    assert torch.equal(output.sequences, tensors["sequences"])
    assert torch.equal(torch.stack(output.history)[:, :, prompt_length:], tensors["history"])
    assert output.num_forward_passes.tolist() == [CASES[case]["forward_passes"]]


def test_diffusion_generate_cases_differ_from_each_other() -> None:
    """The control: had the options no effect, one result would fit several cases."""
    ways = ("maskgit_plus.dim.cache1", "maskgit_plus.dim.cache0", "topk_margin.dim.cache0", "entropy.dim.cache0",
            "autoregressive.dim.cache0", "structure_prior.cache0")  # fmt: skip
    histories = {tuple(goldens()[f"generate.{way}.history"].flatten().tolist()) for way in ways}
    assert len(histories) == len(ways)
    thresholds = [f"generate.maskgit_plus.dim.threshold{value}.cache0" for value in (0.1, 0.3, 0.6, 0.9)]
    assert [CASES[case]["forward_passes"] for case in thresholds] == [1, 3, 10, 27]


@pytest.mark.parametrize("use_cache", [True, False])
def test_diffusion_generate_of_a_batch_gives_every_row_the_originals_tokens(
    model: DimpleForConditionalGeneration, use_cache: bool
) -> None:
    """The original is wrong here. A row with an image and a row of text, each as the original decodes it alone."""
    case = f"generate.maskgit_plus.dim.threshold0.6.cache{int(use_cache)}"
    tensors = golden(case, "input_ids", "attention_mask", "sequences")
    prompt_length = tensors["input_ids"].shape[1]
    text = golden("generate.maskgit_plus.dim.text", "input_ids")["input_ids"]
    row = torch.full_like(tensors["input_ids"], model.config.pad_token_id)
    row[:, -text.shape[1] :] = text
    options = CASES[case]["kwargs"]
    sequences = model.diffusion_generate(
        torch.cat([tensors["input_ids"], row, tensors["input_ids"]]),
        attention_mask=torch.cat([tensors["attention_mask"], (row != model.config.pad_token_id).long(),
                                  tensors["attention_mask"]]),
        **options, pixel_values=images_of(case)["pixel_values"].repeat(2, 1),
        image_grid_thw=images_of(case)["image_grid_thw"].repeat(2, 1),
    )  # fmt: skip
    assert torch.equal(sequences[0], tensors["sequences"][0])
    assert torch.equal(sequences[2], tensors["sequences"][0])
    alone = model.diffusion_generate(text, **options)
    assert torch.equal(sequences[1, prompt_length:], alone[0, text.shape[1] :])


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_gives_the_originals_tokens_up_to_the_end(
    model: DimpleForConditionalGeneration, use_cache: bool
) -> None:
    """
    `generate` with the matching options is the same decoding. (It never writes the mask token and stops at an end;
    in this case the original writes neither.)
    """
    case = f"generate.maskgit_plus.dim.threshold0.9.cache{int(use_cache)}"
    tensors = golden(case, "input_ids", "attention_mask", "sequences", "history")
    answer = tensors["sequences"][0, tensors["input_ids"].shape[1] :].tolist()
    config = model.config
    ends = {config.pad_token_id, *([config.eos_token_id] if isinstance(config.eos_token_id, int) else [])}
    assert not ends & set(answer)
    output = model.generate(
        tensors["input_ids"], attention_mask=tensors["attention_mask"], max_new_tokens=32, confidence_threshold=0.9,
        use_cache=use_cache, output_history=True, return_dict_in_generate=True, **images_of(case),
    )  # fmt: skip
    assert torch.equal(output.sequences, tensors["sequences"])
    history = torch.stack(output.history)[:, :, tensors["input_ids"].shape[1] :]
    assert torch.equal(history, tensors["history"])


# Losses


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("case", cases("loss"))
def test_loss_and_gradients_are_the_originals(case: str, checkpointing: bool) -> None:
    """The loss within 1e-5, the norm of every parameter's gradient and of all together within 1e-3, relative."""
    model = AutoModel.from_pretrained(FIXTURES / "tiny").train()
    if checkpointing:
        model.activation_checkpointing_enable()
    is_causal = CASES[case]["causal"]
    tensors = golden(
        case, "input_ids", "attention_mask", "labels", "loss", *([] if is_causal else ["corrupted_input_ids"])
    )
    inputs = {name: tensors[name] for name in ("input_ids", "attention_mask", "labels")} | images_of(case)
    if not is_causal:
        inputs["masked_positions"] = tensors["corrupted_input_ids"] != tensors["input_ids"]
    output = model(**inputs, is_causal=is_causal)
    assert output.loss.item() == pytest.approx(tensors["loss"].item(), rel=LOSS_TOLERANCE)
    output.loss.backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    expected = CASES[case]["grad_norms"]
    assert {name: norms[name] for name in expected} == pytest.approx(expected, rel=GRADIENT_TOLERANCE)
    total = torch.tensor(list(norms.values())).norm().item()
    assert total == pytest.approx(CASES[case]["grad_norm_total"], rel=GRADIENT_TOLERANCE)
    # control: labels one position further are far outside the tolerance
    inputs["labels"] = inputs["labels"].roll(1, dims=1)
    inputs.pop("masked_positions", None)
    torch.manual_seed(0)
    assert model(**inputs, is_causal=is_causal).loss.item() != pytest.approx(tensors["loss"].item(), rel=1e-3)


# Text


def test_tokenizer_gives_the_originals_ids() -> None:
    """All texts, both ways."""
    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "tokenizer")
    written = json.loads((FIXTURES / "tokenizer" / "tokenizer_goldens.json").read_text(encoding="utf-8"))
    assert len(written["texts"]) > 10  # control
    for text in written["texts"]:
        assert tokenizer(text["text"])["input_ids"] == text["ids"]
        assert tokenizer.decode(text["ids"]) == text["decoded"]
        assert tokenizer.decode(text["ids"], skip_special_tokens=True) == text["decoded_skip_special"]


# End to end


def messages_with_images(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a case with its images at their positions."""
    numbers = iter(case["images"])
    messages = json.loads(json.dumps(case["messages"]))
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "image":
                part["image"] = image(next(numbers))
    assert next(numbers, None) is None
    return messages


@pytest.mark.parametrize("case", END_TO_END, ids=lambda case: f"{len(case['images'])}-images")
def test_end_to_end_gives_the_originals_text(
    checkpoint: tuple[DimpleForConditionalGeneration, Any], case: dict[str, Any]
) -> None:
    """Messages and images to text, through `AutoProcessor`, `AutoModel` and `diffusion_generate`."""
    model, processor = checkpoint
    messages = messages_with_images(case)
    assert processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == case["prompt"]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    output = model.diffusion_generate(**inputs, **case["kwargs"], return_dict_in_generate=True)
    answer = output.sequences[0, inputs["input_ids"].shape[1] :]
    assert answer.tolist() == case["new_tokens"]
    assert output.num_forward_passes.tolist() == [case["forward_passes"]]
    assert processor.decode(answer, skip_special_tokens=True) == case["text"]


def test_end_to_end_of_all_conversations_in_one_batch_gives_the_originals_text(
    checkpoint: tuple[DimpleForConditionalGeneration, Any],
) -> None:
    """Rows with two, one and no image, left-padded together: the original gets this wrong."""
    model, processor = checkpoint
    inputs = processor.apply_chat_template(
        [messages_with_images(case) for case in END_TO_END], add_generation_prompt=True, tokenize=True,
        return_dict=True, return_tensors="pt", processor_kwargs={"padding": True},
    )  # fmt: skip
    sequences = model.diffusion_generate(**inputs, **END_TO_END[0]["kwargs"])
    answers = sequences[:, inputs["input_ids"].shape[1] :].tolist()
    assert answers == [case["new_tokens"] for case in END_TO_END]
    assert all(case["kwargs"] == END_TO_END[0]["kwargs"] for case in END_TO_END)


@pytest.mark.parametrize("case", END_TO_END, ids=lambda case: f"{len(case['images'])}-images")
def test_pipeline_gives_the_originals_text(case: dict[str, Any]) -> None:
    """
    `pipeline("image-text-to-text")` on the directory. It calls `generate`, which for these options decodes as the
    original up to an answer's end.
    """
    chat = pipeline("image-text-to-text", model=str(FIXTURES / "checkpoint"))
    assert isinstance(chat.model, DimpleForConditionalGeneration)
    assert case["kwargs"]["alg"] == "maskgit_plus"
    options = {"confidence_threshold": case["kwargs"]["alg_p_threshold"], "max_new_tokens": 32}
    (result,) = chat(text=[messages_with_images(case)], generate_kwargs=options, return_full_text=False)
    config = AutoConfig.from_pretrained(FIXTURES / "checkpoint")
    assert not {config.mask_token_id, config.pad_token_id, config.eos_token_id} & set(case["new_tokens"])
    assert result[0]["generated_text"] == case["text"]
