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
"""The vision tower: Qwen2.5-VL's, faster, and still one graph for `torch.export` and `torch.compile`."""

from typing import Any

import pytest
import torch
from helpers import MIXED_PROMPTS, make_prompt, model_inputs, tiny_model
from transformers import CompileConfig
from transformers.exporters import DynamoConfig, DynamoExporter
from transformers.exporters.utils import prepare_for_export
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLVisionAttention,
    eager_attention_forward,
)

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.modeling import vision_dimple
from dimple_hf.modeling.vision_dimple import DimplePatchProjection


@pytest.mark.parametrize("bias", [False, True])
def test_patch_projection_is_the_convolution_that_it_stands_for(bias: bool) -> None:
    """The same parameters under the same names, and features that differ by rounding alone."""
    conv = torch.nn.Conv3d(3, 16, kernel_size=(2, 14, 14), stride=(2, 14, 14), bias=bias)
    projection = DimplePatchProjection(3, 16, kernel_size=(2, 14, 14), stride=(2, 14, 14), bias=bias)
    projection.load_state_dict(conv.state_dict())
    patches = torch.randn(5, 3, 2, 14, 14, generator=torch.Generator().manual_seed(0))
    assert projection(patches).shape == conv(patches).shape == (5, 16, 1, 1, 1)
    torch.testing.assert_close(projection(patches), conv(patches))
    assert isinstance(tiny_model().visual.patch_embed.proj, DimplePatchProjection)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_slices_of_one_length_are_attended_to_together(monkeypatch: pytest.MonkeyPatch, implementation: str) -> None:
    """Exactly what transformers has from a call for each slice; images here have whole and cut windows."""
    visual = tiny_model().visual
    visual.set_attn_implementation(implementation)
    inputs = model_inputs(make_prompt(2, [(8, 8), (8, 8), (12, 10)]))
    lengths: list[int] = []
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)

    def counting(module: torch.nn.Module, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        lengths.append(query.shape[2])
        return attend(module, query, *args, **kwargs)

    monkeypatch.setattr(ALL_ATTENTION_FUNCTIONS, "get_interface", lambda name, default: counting)
    together = visual(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    num_calls = len(lengths)
    assert num_calls == len(set(lengths[:-2])) + 2  # windowed layer, then whole images of two sizes
    for block in visual.blocks:
        block.attn.__class__ = Qwen2_5_VLVisionAttention
    one_by_one = Qwen2_5_VisionTransformerPretrainedModel.forward(
        visual, inputs["pixel_values"], inputs["image_grid_thw"]
    ).pooler_output
    assert len(lengths) - num_calls > 2 * num_calls  # control
    torch.testing.assert_close(together, one_by_one)


def test_slices_are_found_once_in_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of images and those of windows; each reads numbers that a GPU would have to be waited for."""
    calls: list[int] = []
    find = vision_dimple.slices_by_length
    monkeypatch.setattr(vision_dimple, "slices_by_length", lambda cu_seqlens: calls.append(1) or find(cu_seqlens))
    visual = tiny_model().visual
    inputs = model_inputs(make_prompt(2, [(8, 8)]))
    visual(inputs["pixel_values"], inputs["image_grid_thw"])
    assert len(calls) == 2
    assert len(visual.blocks) == 2


def test_vision_tower_is_exported() -> None:
    """By transformers' exporter, as Qwen2.5-VL's; then it encodes any patches of an image of that size."""
    visual = tiny_model().visual.eval()
    first, second = (model_inputs(make_prompt(2, [(8, 8)], seed=seed)) for seed in (0, 1))
    grid = first["image_grid_thw"]
    inputs = {"hidden_states": first["pixel_values"], "grid_thw": grid}
    with torch.no_grad():
        expected = [visual(part["pixel_values"], grid).pooler_output for part in (first, second)]
        program, _ = DynamoExporter().export_program(visual, dict(inputs), DynamoConfig())
        _, exported_inputs, _ = prepare_for_export(visual, dict(inputs))
        for part, features in zip((first, second), expected, strict=True):
            exported_inputs["hidden_states"] = part["pixel_values"]
            torch.testing.assert_close(program.module()(**exported_inputs).pooler_output, features)
    assert not torch.allclose(*expected)  # control


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_forward_compiles_as_one_graph(model: DimpleForConditionalGeneration, backend: str) -> None:
    """As `_can_compile_fullgraph` says: text in both modes, with a cache, and with images that are encoded."""
    assert model._can_compile_fullgraph
    torch._dynamo.reset()
    inputs = model_inputs(*MIXED_PROMPTS[1:3])
    with torch.no_grad():
        images = model.get_image_features(inputs.pop("pixel_values"), inputs["image_grid_thw"])
        inputs["position_ids"] = model.get_rope_index(**inputs)
        inputs["mm_encoder_outputs"] = {"image": images}
        compiled = torch.compile(model.forward, backend=backend, fullgraph=True)
        for is_causal in (False, True):
            torch.testing.assert_close(
                compiled(**inputs, is_causal=is_causal).logits, model(**inputs, is_causal=is_causal).logits
            )


def test_causal_generation_compiles_as_one_graph(causal_model: DimpleForConditionalGeneration) -> None:
    """Transformers compiles the steps of a static cache; `fullgraph` fails on the first break."""
    torch._dynamo.reset()
    inputs = model_inputs(*MIXED_PROMPTS[1:3])
    options: dict[str, Any] = {"max_new_tokens": 4, "cache_implementation": "static"}
    compile_config = CompileConfig(fullgraph=True, backend="eager", dynamic=False)
    compile_config._compile_all_devices = True
    expected = causal_model.generate(**inputs, **options)
    assert torch.equal(causal_model.generate(**inputs, **options, compile_config=compile_config), expected)
