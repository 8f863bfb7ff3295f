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
"""The checkpoint that ships with the package: a small model that reads forms, trained by `examples/forms`.

Its card lists what it can do. It is the default model of the command line and of the examples.
"""

from pathlib import Path

#: Directory with weights (bfloat16), configuration, processor and model card.
FORMS_CHECKPOINT = Path(__file__).parent / "forms"

#: An image that it can read: `examples/forms/sample.png`, for those who have the package only.
FORMS_SAMPLE = Path(__file__).parent / "forms_sample.png"
