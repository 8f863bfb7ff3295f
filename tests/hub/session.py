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
"""What both processes do: ask a model, to compare one that was pulled with the one it was; and type in snippets.

It must not import the package.
"""

import re
from pathlib import Path
from typing import Any

NEW_TOKENS = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}


def answers(model: Any, processor: Any, image: str) -> dict[str, Any]:
    """
    Token ids of a batch of two chats, one with an image; and, if the model denoises, of an answer under a structure
    prior, and what that is read as.
    """
    content = [{"type": "image", "path": image}, {"type": "text", "text": "What is it?"}]
    chats = [[{"role": "user", "content": content}], [{"role": "user", "content": "Hello"}]]
    batch = processor.apply_chat_template(chats, **NEW_TOKENS)
    result = {"batch": model.generate(**batch, max_new_tokens=8).tolist()}
    if model.config.full_attn_mask:
        prior = processor.StructurePrior.from_template(
            "Total: {total:4:int}, paid: {paid}",
            processor.OptionalPart("."),
            slots={"paid": processor.Slot(choices=["yes", "no"])},
        )
        formed = model.generate(**processor.apply_chat_template(chats[0], structure_prior=prior, **NEW_TOKENS))
        result |= {"formed": formed.tolist(), "read": processor.parse(formed, prior)}
    return result


def run_snippets(page: str, heading: str, namespace: dict[str, Any], snippets: slice = slice(None)) -> None:
    """Runs the Python snippets of one section of a page, or some of them, one after the other."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", Path(page).read_text(), re.DOTALL | re.MULTILINE)
    for snippet in re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[snippets]:
        exec(compile(snippet, f"{Path(page).name}, {heading}", "exec"), namespace)


def read_sections(page: str | Path) -> dict[str, list[tuple[str, str]]]:
    """Heading -> language and text of each snippet below it, in their order."""
    sections: dict[str, list[tuple[str, str]]] = {}
    parts = re.findall(r"^```(\w*)\n(.*?)^```|^#+ ([^\n]*)$", Path(page).read_text(), re.DOTALL | re.MULTILINE)
    for language, snippet, heading in parts:
        if heading:
            sections[heading] = []
        else:
            sections[list(sections)[-1]].append((language, snippet))
    return sections
