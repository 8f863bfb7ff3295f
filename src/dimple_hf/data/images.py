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
"""The image opener: bounds before decoding, EXIF orientation, few formats, errors that name the file.

It stands in `processing`, because it travels to the Hub with the processor.
"""

from ..processing.image_opening_dimple import FORMATS, WEB_FORMATS, open_image

__all__ = ["FORMATS", "WEB_FORMATS", "open_image"]
