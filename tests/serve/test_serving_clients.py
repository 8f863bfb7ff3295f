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
"""Clients that others have written, against `dimple-hf serve`: `make client-tests` installs them and runs this.

They are in a folder of their own, which the variable `CLIENTS` names: a Python environment and `node_modules`.
"""

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field
from server_process import ServerProcess, messages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROGRAMS = Path(__file__).parent / "clients"


class Form(BaseModel):
    price: int = Field(ge=0, le=9999)
    floor: int = Field(ge=0, le=99)


@pytest.fixture(scope="module")
def clients() -> Path:
    if "CLIENTS" not in os.environ:
        pytest.skip("`make client-tests` installs the clients and runs this")
    return Path(os.environ["CLIENTS"]).absolute()


@pytest.fixture(scope="module")
def server(clients: Path) -> Iterator[ServerProcess]:
    server = ServerProcess("--dtype", "float32", "--api-key", "secret")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def expected(server: ServerProcess) -> str:
    """What the openai client is answered."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0, timeout=120) as client:
        answer = client.chat.completions.create(model="forms", messages=messages(0))
        return answer.choices[0].message.content


def output_of(command: list[Any], **options: Any) -> dict[str, Any]:
    """What a program of `clients` has printed."""
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **options)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def assert_right(got: dict[str, Any], expected: str) -> None:
    """A program's answers: whole, streamed, in a second turn, under a schema, and as a call of a function."""
    assert got["whole"] == got["streamed"] == expected != ""
    assert got["second"]
    assert Form.model_validate(got["parsed"])
    assert Form.model_validate(got["call"])
    assert got["tokens"] > 0


def test_langchain_is_answered(clients: Path, server: ServerProcess, expected: str) -> None:
    command = [clients / "bin" / "python", PROGRAMS / "ask_langchain.py", f"{server.url}/v1"]
    assert_right(output_of(command, input=json.dumps(messages(0))), expected)


def test_vercel_ai_sdk_is_answered(clients: Path, server: ServerProcess, expected: str) -> None:
    """A client in another language. Its program comes on the standard input, so that it finds its modules."""
    chat: Any = messages(0)
    image = chat[0]["content"][0]["image_url"]["url"].partition(",")[2]
    command = ["node", "--input-type=module", "-", f"{server.url}/v1", image]
    assert_right(output_of(command, input=(PROGRAMS / "ask_ai_sdk.mjs").read_text(), cwd=clients), expected)


def test_litellm_proxy_passes_requests_on(clients: Path, server: ServerProcess, expected: str, tmp_path: Path) -> None:
    """A gateway between the openai client and the server, as companies run it."""
    key = f"sk-{secrets.token_hex(32)}"
    with litellm_proxy(clients, server, key, tmp_path) as url:
        client = openai.OpenAI(base_url=url, api_key=key, max_retries=2, timeout=120)
        answer = client.chat.completions.create(model="dimple", messages=messages(0))
        assert answer.choices[0].message.content == expected
        pieces = client.chat.completions.create(model="dimple", messages=messages(0), stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == expected
        parsed = client.chat.completions.parse(model="dimple", messages=messages(0), response_format=Form)
        assert isinstance(parsed.choices[0].message.parsed, Form)
        again = [*messages(0), answer.choices[0].message, {"role": "user", "content": "What is the floor?"}]
        assert client.chat.completions.create(model="dimple", messages=again).choices


@contextmanager
def litellm_proxy(clients: Path, server: ServerProcess, key: str, folder: Path) -> Iterator[str]:
    """The URL of a proxy that passes the model `dimple` on to the server, for those who have the key."""
    parameters = {"model": "openai/forms", "api_base": f"{server.url}/v1", "api_key": "secret"}
    config = folder / "config.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": "dimple", "litellm_params": parameters}]}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [clients / "bin" / "litellm", "--config", config, "--host", "127.0.0.1", "--port", port]
    # Without the second variable it downloads prices.
    environment = os.environ | {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment)
        try:
            deadline = time.monotonic() + 240
            while not is_listening(int(port)):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()
            process.wait()


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
