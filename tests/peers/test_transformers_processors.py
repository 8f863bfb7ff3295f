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
"""Transformers' common processor, image processor and tokenizer tests, on a tiny checkpoint.

Run by `make peer-tests`. What cannot apply is listed in `SKIPPED`, with the reason.
"""

import unittest
from typing import Any

from sources import ROOT, common_tests
from transformers import ProcessorMixin

from dimple_hf import DimpleImageProcessor, DimpleProcessor, DimpleTokenizer

CHECKPOINT = str(ROOT / "tests" / "fixtures" / "parity" / "checkpoint")

processing = common_tests("test_processing_common")
image_processing = common_tests("test_image_processing_common")
tokenization = common_tests("test_tokenization_common")
tokenizers_backend = common_tests("test_tokenizers_backend_mixin")

#: Tests that cannot apply, and why.
SKIPPED = {
    "test_chat_template_save_loading": "the template is also saved as JSON, where the original reads it",
    "test_chat_template": "the template is also saved in `tokenizer_config.json`, where the original reads it",
    "test_chat_template_dict_saving": "the same",
    "test_model_input_names": "passes a video, which is refused",
    "test_flat_kwarg_applied_when_modality_dict_lacks_it": "passes a video, which is refused",
    "test_if_input_has_mismatching_tokens_and_mm_data": "such inputs are refused, in words of our own",
    "test_apply_chat_template_assistant_mask": "passes a control token as a variable, which is then encoded as text",
    "test_call_pil": "the patches of all images are one list, as Qwen2-VL's, which overrides the test",
    "test_call_numpy": "the same",
    "test_call_pytorch": "the same",
    "test_call_numpy_4_channels": "arrays with four channels are refused unless they are converted to RGB",
    "test_new_models_require_torchvision_backend": "images are processed with Pillow, as the original's are",
    "test_valid_kwargs_set": "finds the options in the class's own file; they are Qwen2-VL's",
}


class SkipsByName:
    """Skips what `SKIPPED` lists."""

    def setUp(self) -> None:
        name = self._testMethodName  # type: ignore[attr-defined]
        if name in SKIPPED:
            self.skipTest(SKIPPED[name])  # type: ignore[attr-defined]
        super().setUp()  # type: ignore[misc]


class WithoutVideoOptions(DimpleProcessor):
    """Takes the options of videos that the test of images passes, too."""

    def apply_chat_template(self, *args: Any, processor_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        processor_kwargs = {k: v for k, v in (processor_kwargs or {}).items() if k not in ("num_frames", "fps")}
        return super().apply_chat_template(*args, processor_kwargs=processor_kwargs, **kwargs)


class ProcessorTest(SkipsByName, processing.ProcessorTesterMixin, unittest.TestCase):
    processor_class = DimpleProcessor
    model_id = CHECKPOINT

    def get_processor(self, use_tiny_ckpt: bool = True) -> DimpleProcessor:
        takes_frames = self._testMethodName.startswith("test_apply_chat_template_image")
        return (WithoutVideoOptions if takes_frames else DimpleProcessor).from_pretrained(self.tmpdirname)

    @staticmethod
    def does_processor_return_mm_offsets(processor_class: type, method_name: str) -> bool:
        """CHANGED: compares with `ProcessorMixin`, which is not the first base here."""
        return getattr(processor_class, method_name) is not getattr(ProcessorMixin, method_name)


class ImageProcessorTester(image_processing.ImageProcessingTester):
    def __init__(self, parent: unittest.TestCase):
        super().__init__(parent, min_resolution=56, max_resolution=112)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": DimpleImageProcessor}


class ImageProcessorTest(SkipsByName, image_processing.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageProcessorTester


class TokenizerTest(
    SkipsByName, tokenization.TokenizerTesterMixin, tokenizers_backend.TokenizersBackendTesterMixin, unittest.TestCase
):
    tokenizer_class = rust_tokenizer_class = DimpleTokenizer
    from_pretrained_id = CHECKPOINT
