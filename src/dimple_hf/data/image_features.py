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
"""Features of images, kept by the content of their patches: several questions about one image encode it once."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

#: Maximum bytes of the features that are kept: 256 images of 336x336 pixels for the released model in bfloat16.
MAX_BYTES = 256 << 20


class ImageFeatures:
    """
    Encodes images, and keeps the features of the most recently used ones. For one thread, and a model whose weights
    do not change.

    Args:
        model ([`DimpleForConditionalGeneration`]):
            The model that encodes.
        max_bytes (`int`, *optional*, defaults to 256 MiB):
            Maximum bytes of the features that are kept, on the model's device. An image with more is not kept; with 0,
            an image is encoded once in each call.
        count (`Callable`, *optional*):
            Called for each image with whether its features were kept (`bool`).
    """

    def __init__(
        self, model: PreTrainedModel, max_bytes: int = MAX_BYTES, count: Callable[[bool], None] = lambda kept: None
    ):
        self.model = model
        self.max_bytes = max_bytes
        self.count = count
        self.num_bytes = 0
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()  # the least recently used first

    def encode(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """
        Replaces images by their features, and moves the other inputs to the model's device.

        Args:
            inputs (`Mapping[str, Any]`):
                Inputs of the model, as the processor makes them. On the CPU nothing is copied to compare images.

        Returns:
            `dict[str, Any]`: The same on the model's device, with `mm_encoder_outputs` instead of `pixel_values`, if
            there are any.

        Raises:
            ValueError: If the images do not fit the vision tower.
        """
        others = {name: _moved(value, self.model.device) for name, value in inputs.items() if name != "pixel_values"}
        if inputs.get("pixel_values") is None:
            return others
        features = self._features(inputs["pixel_values"], inputs["image_grid_thw"])
        return others | {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}}

    @torch.no_grad()
    def _features(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The features of each image; those that are not kept are encoded together, each once."""
        images = pixel_values.split(image_grid_thw.prod(dim=1).tolist())
        keys = [_digest(image, grid) for image, grid in zip(images, image_grid_thw, strict=True)]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        new: dict[bytes, int] = {}  # key -> the first of the images that have it
        for index, key in enumerate(keys):
            self.count(key in found or key in new)
            if key not in found:
                new.setdefault(key, index)
        if new:
            chosen, device = list(new.values()), self.model.device
            patches = torch.cat([images[index] for index in chosen])
            encoded = self.model.get_image_features(patches.to(device), image_grid_thw[chosen].to(device))
            found |= dict(zip(new, encoded.pooler_output, strict=True))
        for key, features in found.items():
            self._keep(key, features)
        return tuple(found[key] for key in keys)

    def _keep(self, key: bytes, features: torch.Tensor) -> None:
        """Makes an image the most recently used one; the least recently used ones make room."""
        if key in self._kept:
            self._kept.move_to_end(key)
        elif features.nbytes <= self.max_bytes:
            self._kept[key] = features.clone()  # not a view of the features of all images of a call
            self.num_bytes += features.nbytes
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._kept.popitem(last=False)[1].nbytes


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _digest(image: torch.Tensor, grid: torch.Tensor) -> bytes:
    """What tells an image from others: its patches, byte by byte, and how they are arranged."""
    digest = hashlib.sha256(str((grid.tolist(), image.dtype)).encode())
    digest.update(image.contiguous().view(torch.uint8).cpu().numpy())
    return digest.digest()
