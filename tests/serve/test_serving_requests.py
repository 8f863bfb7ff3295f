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
"""What a request may hold: every field that is known, and a reason for every one that is refused."""

import json
import time
from typing import Any

import pytest
from server_process import body

from dimple_hf.serve.limits import Limits, RefusedRequest
from dimple_hf.serve.requests import MAX_JSON_VALUES, parse_request

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
SCHEMA = {"type": "object", "properties": {}}


def format_of(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema, "strict": True}}


def test_request_with_every_known_field_is_understood() -> None:
    """Also what clients send unasked, and `null` for what they leave open."""
    request = parse_request(
        body(
            messages=[
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [IMAGE, {"type": "text", "text": "What is it?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "A form."}]},
            ],
            max_completion_tokens=5,
            temperature=0,
            top_p=0.5,
            seed=7,
            stream=True,
            stream_options={"include_usage": True},
            response_format=format_of(SCHEMA),
            user="me",
            n=1,
            logprobs=False,
            frequency_penalty=0,
            presence_penalty=0.0,
            max_tokens=None,
        )
    )
    assert (request.asked_length, request.schema_of_answer) == (5, SCHEMA)
    assert request.image_urls() == ["data:image/png;base64,AA=="]
    assert [message.content[-1].text for message in request.messages] == ["Be brief.", "What is it?", "A form."]
    assert parse_request(body(max_tokens=3, response_format={"type": "text"})).schema_of_answer is None


@pytest.mark.parametrize(
    ("sent", "param", "reason"),
    [
        (b"{", None, "JSON"),
        (b"\xff\xfe", None, "JSON"),
        (b"[]", None, "object"),
        (b"[" * 100_000, None, "recursion"),
        (body(temprature=1), "temprature", "did you mean `temperature`?"),
        (body(tools=[]), "tools", "not supported"),
        (body(temperature=2.5), "temperature", "less than or equal to 2"),
        (body(temperature=float("nan")), "temperature", "valid"),
        (body(temperature="hot"), "temperature", "number"),
        (body(top_p=0), "top_p", "greater than 0"),
        (body(seed=True), "seed", "integer"),
        (body(seed=-1), "seed", "greater than or equal to 0"),
        (body(max_tokens=0), "max_tokens", "greater than or equal to 1"),
        (body(max_tokens=1, max_completion_tokens=1), None, "`max_completion_tokens`"),
        (body(stream="yes"), "stream", "boolean"),
        (body(stream_options={}), None, "`stream`=true"),
        (body(n=2), "n", "1"),
        (body(logprobs=True), "logprobs", "False"),
        (body(presence_penalty=0.5), "presence_penalty", "0"),
        (body(response_format={"type": "json_object"}), "response_format", "json_schema"),
        (body(response_format=format_of(5)), "response_format.json_schema.schema", "object"),
        (body(response_format=format_of({}) | {"x": 1}), "response_format.x", "`x`"),
        (body(model=None), "model", "string"),
        (body(messages=[]), "messages", "at least 1"),
        (body(messages=[1, 2]), "messages[0]", "object"),
        (body(messages=[{"role": "tool", "content": "x"}]), "messages[0].role", "'user'"),
        (body(messages=[{"role": "user"}]), "messages[0].content", "required"),
        (body(messages=[{"role": "user", "content": 5}]), "messages[0].content", "array"),
        (body(messages=[{"role": "user", "content": "x", "name": "n"}]), "messages[0].name", "`name`"),
        (body(messages=[{"role": "assistant", "content": [IMAGE]}]), "messages[0]", "images"),
        (body(messages=[{"role": "user", "content": [{"type": "audio"}]}]), "messages[0].content[0]", "'image_url'"),
        (
            body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 1}}]}]),
            "messages[0].content[0].image_url.url",
            "string",
        ),
        (
            body(messages=[{"role": "user", "content": [IMAGE | {"image_url": {"url": "x", "detail": "low"}}]}]),
            "messages[0].content[0].image_url.detail",
            "'auto'",
        ),
    ],
)
def test_request_with_a_fault_is_refused_by_its_field(sent: bytes, param: str | None, reason: str) -> None:
    """The client reads which field it was and what is wrong."""
    with pytest.raises(RefusedRequest) as caught:
        parse_request(sent)
    error = caught.value.body()["error"]
    assert error["param"] == param
    assert reason in error["message"]
    assert error["type"] == "invalid_request_error"
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "sent",
    [
        b"{" + b",".join(b'"k%d":1' % index for index in range(150_000)) + b"}",
        b'{"model":"a","messages":[' + b",".join([b"1"] * 2_000_000) + b"]}",
        b'{"model":"a","messages":[{"role":"user","content":[' + b",".join([b"1"] * 2_000_000) + b"]}]}",
        b"[" * (MAX_JSON_VALUES + 1),
    ],
)
def test_request_full_of_faults_is_refused_at_the_first(sent: bytes) -> None:
    """Listing all of them would take minutes and gigabytes."""
    start = time.process_time()
    with pytest.raises(RefusedRequest):
        parse_request(sent)
    assert time.process_time() - start < 5  # it was 65 s for one million unknown names


def test_error_messages_do_not_repeat_what_a_client_sent_at_length() -> None:
    """Else a large request gets a large answer."""
    with pytest.raises(RefusedRequest) as caught:
        parse_request(body(**{"x" * 100_000: 1}))
    assert len(json.dumps(caught.value.body())) < 500


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`max_requests` must be at least 1 \(got 0\)"):
        Limits(max_requests=0)
    assert Limits(max_requests=1).max_requests == 1
