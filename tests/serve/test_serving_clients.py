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
"""Clients that others have written, against `dimple-hf serve`: each is skipped where it is not installed.

LangChain and LiteLLM: `pip install langchain-openai 'litellm[proxy]'`. The Vercel AI SDK is installed by npm into a
temporary folder, which needs its registry.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field
from server_process import ServerProcess, messages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Form(BaseModel):
    price: int = Field(ge=0, le=9999)
    floor: int = Field(ge=0, le=99)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    server = ServerProcess("--dtype", "float32", "--api-key", "secret")
    yield server
    server.stop()


def expected_answer(server: ServerProcess) -> str:
    """What the openai client is answered."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0, timeout=120) as client:
        answer = client.chat.completions.create(model="forms", messages=messages(0))
        return answer.choices[0].message.content


def test_langchain_chats_streams_and_parses(server: ServerProcess) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    model = langchain_openai.ChatOpenAI(base_url=f"{server.url}/v1", api_key="secret", model="forms", timeout=120)
    expected = expected_answer(server)
    answer = model.invoke(messages(0))
    assert answer.content == expected
    assert answer.usage_metadata["input_tokens"] > 0
    assert "".join(chunk.content for chunk in model.stream(messages(0))) == expected
    assert model.invoke([*messages(0), answer, ("user", "What is the floor?")]).content
    assert isinstance(model.with_structured_output(Form, method="json_schema").invoke(messages(0)), Form)
    assert isinstance(model.with_structured_output(Form, method="function_calling").invoke(messages(0)), Form)


def test_litellm_proxy_passes_requests_on(server: ServerProcess, tmp_path: Path) -> None:
    """A gateway between the openai client and the server, as companies run it."""
    command = Path(sys.executable).parent / "litellm"
    if not command.exists():
        pytest.skip("litellm's proxy is not installed")
    parameters = {"model": "openai/forms", "api_base": f"{server.url}/v1", "api_key": "secret"}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": "dimple", "litellm_params": parameters}]}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = open(tmp_path / "log", "wb")  # noqa: SIM115 - the process writes into it
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    arguments = [str(command), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment)
    try:
        wait_for_port(port, seconds=180)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=2, timeout=120)
        expected = expected_answer(server)
        answer = client.chat.completions.create(model="dimple", messages=messages(0))
        assert answer.choices[0].message.content == expected
        pieces = client.chat.completions.create(model="dimple", messages=messages(0), stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == expected
        parsed = client.chat.completions.parse(model="dimple", messages=messages(0), response_format=Form)
        assert isinstance(parsed.choices[0].message.parsed, Form)
        again = [*messages(0), answer.choices[0].message, {"role": "user", "content": "What is the floor?"}]
        assert client.chat.completions.create(model="dimple", messages=again).choices
    finally:
        process.kill()
        log.close()


def wait_for_port(port: int, seconds: float) -> None:
    """Returns when somebody listens."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


#: Asks as a TypeScript application does, and prints what it got.
PROGRAM = """
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText } from "ai";
import { z } from "zod";
const [baseURL, image] = process.argv.slice(2);
const provider = createOpenAICompatible({
  name: "dimple", baseURL, apiKey: "secret", supportsStructuredOutputs: true, includeUsage: true,
});
const model = provider("forms");
const content = [
  { type: "file", mediaType: "image/png", data: Buffer.from(image, "base64") },
  { type: "text", text: "Give the form as JSON." },
];
const messages = [{ role: "user", content }];
const whole = await generateText({ model, messages });
let streamed = "";
for await (const piece of streamText({ model, messages }).textStream) streamed += piece;
const schema = z.object({ price: z.number().int().min(0).max(9999), floor: z.number().int().min(0).max(99) });
const parsed = await generateText({ model, messages, output: Output.object({ schema }) });
console.log(JSON.stringify({ whole: whole.text, streamed, parsed: parsed.output, tokens: whole.usage.inputTokens }));
"""


def test_vercel_ai_sdk_chats_streams_and_parses(server: ServerProcess, tmp_path: Path) -> None:
    """A client that is not written in Python."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    packages = ["ai@7", "@ai-sdk/openai-compatible@3", "zod@4"]
    install = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", *packages], cwd=tmp_path, capture_output=True, timeout=300
    )
    if install.returncode:
        pytest.skip("npm's registry cannot be reached")
    (tmp_path / "ask.mjs").write_text(PROGRAM)
    chat: Any = messages(0)
    image = chat[0]["content"][0]["image_url"]["url"].partition(",")[2]
    run = subprocess.run(
        ["node", "ask.mjs", f"{server.url}/v1", image], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    got = json.loads(run.stdout)
    assert got["whole"] == got["streamed"] != ""
    assert Form.model_validate(got["parsed"])
    assert got["tokens"] > 0
