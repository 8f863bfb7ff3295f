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
"""Pushes a checkpoint, an adapter and a tag, in a process with the package. Run by `test_push_and_pull`.

Usage: push.py CHECKPOINT IMAGE PAGE RESULT. The result (JSON) has what the pushed models answered, and from
which modules their classes come when they are pulled here.
"""

import json
import sys

import torch
from huggingface_hub import HfApi, get_session
from peft import get_peft_model
from session import answers, run_snippets
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, pipeline

from dimple_hf.modeling.adapter_dimple import set_adapter_mode
from dimple_hf.training import lora_config

checkpoint, image, page, result_file = sys.argv[1:]
api = HfApi()
model = AutoModel.from_pretrained(checkpoint)
processor = AutoProcessor.from_pretrained(checkpoint)
shard_size = model.get_memory_footprint() // 3
result = {"model": answers(model, processor, image)}

# 1. A first version with another head, on a branch; a tag on it; then the model as it is.
processor.push_to_hub("team/dimple")
with torch.no_grad():
    head = model.lm_head.weight.clone()
    model.lm_head.weight[:] = head.flip(0)
    result["first version"] = answers(model, processor, image)
    processor.push_to_hub("team/dimple", revision="draft")
    model.push_to_hub("team/dimple", revision="draft")
    api.create_tag("team/dimple", tag="v0", revision="draft")
    model.lm_head.weight[:] = head
model.push_to_hub("team/dimple", max_shard_size=shard_size)

# 2. Parts alone, one of them private.
processor.push_to_hub("team/private", private=True)
model.config.push_to_hub("team/config")
processor.image_processor.push_to_hub("team/image-processor")
processor.tokenizer.push_to_hub("team/tokenizer")

# 3. Pulled with the package: nobody is there to answer a question.
get_session().get(f"{api.endpoint}/mark/package")
loaded = [
    auto_class.from_pretrained("team/dimple", trust_remote_code=trust)
    for trust in (None, False, True)
    for auto_class in (AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer)
]
loaded.append(pipeline("image-text-to-text", model="team/dimple").model)
result["modules"] = sorted({type(part).__module__ for part in loaded})
get_session().get(f"{api.endpoint}/mark/end")

# 4. An adapter in causal mode, for the base as it is on the Hub, which is bidirectional. In float32: PEFT would keep
# an adapter's own weights in it, and transformers, which loads it elsewhere, takes the base's type.
torch.manual_seed(0)
adapted = get_peft_model(loaded[0].float(), lora_config(False, r=2, init_lora_weights=False)).eval()
set_adapter_mode(adapted.active_peft_config, True)
result["adapter in the other mode"] = answers(adapted, processor, image)
set_adapter_mode(adapted.active_peft_config, False)
result["adapter"] = answers(adapted, processor, image)
adapted.push_to_hub("team/adapter")

# 5. The page's snippets, but those for a machine without the package.
namespace = {"model": model, "processor": processor}
run_snippets(page, "Push", namespace)
run_snippets(page, "Pull with the package", namespace)
run_snippets(page, "Adapters", namespace, slice(0, 2))

with open(result_file, "w") as file:
    json.dump(result, file)
