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
"""Asks as an application built on LangChain does, and prints what it got.

Arguments: the server's URL; a chat comes on the standard input. Run by `tests/serve/test_serving_clients.py` in an
environment that has LangChain and not this package.
"""

import json
import sys

from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field


class Form(BaseModel):
    """A form that was read."""

    price: int = Field(ge=0, le=9999)
    floor: int = Field(ge=0, le=99)


chat = json.load(sys.stdin)
model = ChatOpenAI(base_url=sys.argv[1], api_key="secret", model="forms", timeout=120)
whole = model.invoke(chat)
streamed = "".join(chunk.content for chunk in model.stream(chat))
second = model.invoke([*chat, whole, ("user", "What is the floor?")])
parsed = model.with_structured_output(Form, method="json_schema").invoke(chat)
called = model.with_structured_output(Form, method="function_calling").invoke(chat)
got = {
    "whole": whole.content,
    "streamed": streamed,
    "second": second.content,
    "parsed": parsed.model_dump(),
    "call": called.model_dump(),
    "tokens": whole.usage_metadata["input_tokens"],
}
print(json.dumps(got))
