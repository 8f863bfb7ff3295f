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
from dimple_hf.serve.preparation import check_texts, sampling_options, seed_of
from dimple_hf.serve.requests import MAX_JSON_VALUES, ChatRequest, parse_request
from dimple_hf.serve.tools import call_schema, called_text, read_call

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
SCHEMA = {"type": "object", "properties": {}}


def format_of(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema, "strict": True}}


def test_request_with_every_known_field_is_understood() -> None:
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
            seed=-7,
            stream=True,
            stream_options={"include_usage": True},
            response_format=format_of(SCHEMA),
            n=2,
            stop="x",
            logprobs=False,
            max_tokens=5,
        )
    )
    assert (request.asked_length, request.schema_of_answer, request.num_choices) == (5, SCHEMA, 2)
    assert request.stop == ["x"]
    assert request.image_urls() == ["data:image/png;base64,AA=="]
    assert [message.content[-1].text for message in request.messages] == ["Be brief.", "What is it?", "A form."]
    assert parse_request(body(response_format={"type": "text"})).schema_of_answer is None
    assert parse_request(body(response_format={"type": "json_object"})).schema_of_answer == {"type": "object"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "invalid_request_error"),
        (429, "rate_limit_error"),
        (503, "service_unavailable_error"),
    ],
)
def test_error_has_the_type_that_clients_know(status: int, kind: str) -> None:
    """OpenAI's own, by the status of the response."""
    error = RefusedRequest("why", "n", status, "code").body()["error"]
    assert error == {"message": "why", "type": kind, "param": "n", "code": "code"}


def test_options_of_the_schema_stand_beside_it() -> None:
    """Those that are given, and null is none."""
    format = format_of(SCHEMA)
    assert parse_request(body(response_format=format)).form_of_answer == ()
    format["json_schema"] |= {"any_order": True, "max_items": 9, "max_digits": None}
    assert parse_request(body(response_format=format)).form_of_answer == (("any_order", True), ("max_items", 9))
    assert parse_request(body(response_format={"type": "json_object"})).form_of_answer == ()


@pytest.mark.parametrize("nothing", [None, "", [], {}])
def test_request_with_empty_fields_is_understood_whatever_their_names(nothing: Any) -> None:
    """Clients send every field that they know, with null for what their users left open."""
    names = [*ChatRequest.model_fields, *ChatRequest.ignored, "logit_bias", "audio", "functions", "something_new"]
    fields = {name: nothing for name in names if name not in ("model", "messages")}
    part = {"type": "text", "text": "Hi", "something_new": nothing}
    url = {"url": "data:,", "detail": nothing, "something_new": nothing}
    image = {"type": "image_url", "image_url": url, "something_new": nothing}
    message = {"role": "user", "content": [part, image], "tool_calls": nothing, "something_new": nothing}
    assert parse_request(body(messages=[message], **fields)) == parse_request(
        body(messages=[{"role": "user", "content": [part, {"type": "image_url", "image_url": {"url": "data:,"}}]}])
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"store": False}, {"service_tier": "auto"}, {"service_tier": "default"}, {"tool_choice": "none"},
        {"tool_choice": "auto"}, {"parallel_tool_calls": True}, {"parallel_tool_calls": False}, {"n": 1},
        {"modalities": ["text"]}, {"metadata": {"a": "b"}}, {"user": "me"}, {"frequency_penalty": 0},
        {"presence_penalty": 0.0}, {"top_logprobs": 0}, {"logprobs": False}, {"stream": False},
        {"stream_options": {"include_usage": False}}, {"function_call": "none"}, {"best_of": 1},
        {"reasoning_effort": "none"}, {"verbosity": "medium"}, {"prompt_cache_key": "k"}, {"echo": False},
        {"messages": [{"role": "user", "content": "Hi", "name": "me"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "y"}}]}]},
        {"prompt_cache_options": {"mode": "explicit"}},
        {"messages": [{"role": "user", "content": [IMAGE | {"prompt_cache_breakpoint": {"mode": "explicit"}}]}]},
        {"messages": [{"role": "user", "content": [IMAGE | {"image_url": {"url": "x", "detail": "original"}}]}]},
        {"messages": [{"role": "assistant", "content": None}]},
        {"messages": [{"role": "user", "content": [IMAGE | {"image_url": {"url": "x", "detail": "low"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}], "tool_choice": "none"},
    ],
)  # fmt: skip
def test_request_with_values_that_change_nothing_is_understood(changes: dict[str, Any]) -> None:
    """The defaults of OpenAI's API, and what is told of a client."""
    assert parse_request(body(**changes)).num_choices == 1


#: Field of other servers of this API -> its value when it is missing, and one that asks for something.
OTHER_FIELDS = {
    "best_of": (1, 2), "repetition_penalty": (1, 1.1), "length_penalty": (1.0, 0.5), "top_k": (-1, 5),
    "min_p": (0, 0.1), "min_tokens": (0, 1), "echo": (False, True), "ignore_eos": (False, True),
    "use_beam_search": (False, True), "skip_special_tokens": (True, False), "add_generation_prompt": (True, False),
    "continue_final_message": (False, True),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_FIELDS)
def test_request_for_what_only_other_servers_do_is_refused(name: str) -> None:
    """Their clients send the fields without asking for anything, which is understood."""
    nothing, something = OTHER_FIELDS[name]
    assert parse_request(body(**{name: nothing})) == parse_request(body())
    with pytest.raises(RefusedRequest, match="only with") as caught:
        parse_request(body(**{name: something}))
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("sent", "param", "reason"),
    [
        (b"{", None, "JSON"),
        (b"\xff\xfe", None, "JSON"),
        (b"[]", None, "object"),
        (b"[" * 100_000, None, "recursion"),
        (body(temprature=1), "temprature", "did you mean `temperature`?"),
        (body(something_new=0), "something_new", "not supported"),
        (body(something_new=False), "something_new", "not supported"),
        (body(store=True), "store", "only with False"),
        (body(service_tier="flex"), "service_tier", "only with 'auto' or 'default'"),
        (body(logit_bias={"5": 1}), "logit_bias", "not supported"),
        (body(temperature=2.5), "temperature", "less than or equal to 2"),
        (body(temperature=float("nan")), "temperature", "valid"),
        (body(temperature="hot"), "temperature", "number"),
        (body(top_p=0), "top_p", "greater than 0"),
        (body(seed=True), "seed", "integer"),
        (body(seed=-(1 << 63) - 1), "seed", "greater than or equal to"),
        (body(max_tokens=0), "max_tokens", "greater than or equal to 1"),
        (body(max_tokens=1, max_completion_tokens=2), None, "`max_completion_tokens`"),
        (body(stream="yes"), "stream", "boolean"),
        (body(n=0), "n", "1"),
        (body(n=True), "n", "integer"),
        (body(stop=["a"] * 5), "stop", "at most 4"),
        (body(stop=["a", ""]), "stop[1]", "at least 1"),
        (body(stop="a" * 257), "stop[0]", "at most 256"),
        (body(top_logprobs=2), None, "`logprobs`=true"),
        (body(presence_penalty=0.5), "presence_penalty", "only with 0"),
        (body(response_format=format_of(5)), "response_format.json_schema.schema", "object"),
        (body(response_format=format_of({}) | {"x": 1}), "response_format.x", "`x`"),
        (
            body(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "max_items": 0}}),
            "response_format.json_schema.max_items",
            "greater than or equal to 1",
        ),
        (body(tools=[{"type": "custom"}]), "tools[0].type", "'function'"),
        (body(tool_choice="required"), None, "without `tools`"),
        (body(tools=[{"type": "function", "function": {"name": "f"}}] * 2), None, "names that differ"),
        (body(tool_choice="maybe"), "tool_choice", "'required'"),
        (body(model=None), "model", "string"),
        (body(messages=[]), "messages", "at least 1"),
        (body(messages=[1, 2]), "messages[0]", "object"),
        (body(messages=[{"role": "function", "content": "x"}]), "messages[0].role", "'user'"),
        (body(messages=[{"role": "user"}]), "messages[0]", "must have `content`"),
        (body(messages=[{"role": "user", "content": None}]), "messages[0]", "must have `content`"),
        (body(messages=[{"role": "user", "content": 5}]), "messages[0].content", "array"),
        (body(messages=[{"role": "assistant", "content": [IMAGE]}]), "messages[0]", "images"),
        (body(messages=[{"role": "user", "content": [{"type": "audio"}]}]), "messages[0].content[0]", "'image_url'"),
        (body(messages=[{"role": "user", "content": [{"type": "video_url"}]}]), "messages[0].content", "send frames"),
        (
            body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 1}}]}]),
            "messages[0].content[0].image_url.url",
            "string",
        ),
        (
            body(messages=[{"role": "user", "content": [IMAGE | {"image_url": {"url": "x", "detail": "best"}}]}]),
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


TOOL = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}


def test_functions_that_may_be_called_follow_from_tools_and_tool_choice() -> None:
    other = {"type": "function", "function": {"name": "stop"}}
    named = {"type": "function", "function": {"name": "stop"}}
    for choice, names, must_call in (
        (None, ["add", "stop"], False), ("auto", ["add", "stop"], False), ("required", ["add", "stop"], True),
        ("none", [], False), (named, ["stop"], True),
    ):  # fmt: skip
        request = parse_request(body(tools=[TOOL, other], tool_choice=choice))
        assert [function.name for function in request.callable_functions] == names
        assert request.must_call == must_call
    with pytest.raises(RefusedRequest, match="must name one of `tools`"):
        parse_request(body(tools=[TOOL], tool_choice=named))
    with pytest.raises(RefusedRequest, match="must not be given with `tools`"):
        parse_request(body(tools=[TOOL], response_format=format_of(SCHEMA)))


def test_schema_of_a_call_keeps_the_references_of_each_function() -> None:
    """Each function's schema has its own root."""
    parameters = {"properties": {"x": {"$ref": "#/$defs/U"}}, "$defs": {"U": {"enum": [1]}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    schema = call_schema(parse_request(body(tools=[TOOL, tool], tool_choice="required")), 8)
    assert len(schema["anyOf"]) == 2
    assert schema["$defs"]["f1"]["properties"]["x"] == {"$ref": "#/$defs/f1/$defs/U"}
    optional = call_schema(parse_request(body(tools=[TOOL])), 8)
    assert optional["anyOf"][-1]["properties"]["content"] == {"type": "string", "x-max-tokens": 8}
    assert call_schema(parse_request(body()), 8) is None
    assert schema["$defs"]["f1"]["type"] == "object"  # the client reads arguments by name


def test_parameters_that_are_an_example_are_refused_with_their_function() -> None:
    """Else the arguments could be any JSON; `{}` and no parameters at all mean something."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"city": "Rome"}}}
    with pytest.raises(RefusedRequest, match=r"'f': `parameters` must have a keyword .* \(got the keys city\)"):
        call_schema(parse_request(body(tools=[TOOL, tool])), 8)
    tool["function"] = {"name": "f", "parameters": {}}
    assert call_schema(parse_request(body(tools=[tool])), 8)


def test_calls_are_read_and_written_in_one_form() -> None:
    message = read_call('{"name": "add", "arguments": {"a": 1}}')
    assert message["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert read_call('{"content": "No."}') == {"content": "No."}
    again = parse_request(body(messages=[message | {"role": "assistant"}])).messages[0]
    assert called_text(again) == '{"name": "add", "arguments": {"a": 1}}'


def test_special_tokens_are_refused_also_over_two_parts() -> None:
    """The chat template joins the parts of a message."""
    for parts in (["<|im_end|>"], ["a<|im_", "end|>"]):
        content = [{"type": "text", "text": part} for part in parts]
        with pytest.raises(RefusedRequest, match="special token"):
            check_texts(parse_request(body(messages=[{"role": "user", "content": content}])), ["<|im_end|>"], 99)
    content = [{"type": "text", "text": "<|im_"}, IMAGE, {"type": "text", "text": "end|>"}]
    check_texts(parse_request(body(messages=[{"role": "user", "content": content}])), ["<|im_end|>"], 99)
    call = {"function": {"name": "f", "arguments": '"<|im_end|>"'}}
    with pytest.raises(RefusedRequest, match="special token"):
        check_texts(parse_request(body(messages=[{"role": "assistant", "tool_calls": [call]}])), ["<|im_end|>"], 99)
    tool = {"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}
    with pytest.raises(RefusedRequest, match="`tools`"):
        check_texts(parse_request(body(tools=[tool])), ["<|im_end|>"], 999)
    with pytest.raises(RefusedRequest, match="at most 5 characters"):
        check_texts(parse_request(body()), [], 5)


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({}, {}),
        ({"top_p": 1}, {}),
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 1e-40}, {"do_sample": False}),
        ({"temperature": 0.5}, {"do_sample": True, "temperature": 0.5}),
        ({"top_p": 0.5}, {"do_sample": True, "temperature": 1.0, "top_p": 0.5}),
    ],
)
def test_sampling_options_of_a_request(asked: dict[str, Any], options: dict[str, Any]) -> None:
    assert sampling_options(parse_request(body(**asked))) == options


def test_choices_have_seeds_of_their_own() -> None:
    """The first one has the request's, so that it is what `generate` draws."""
    assert seed_of(None, 3) is None
    assert seed_of(-7, 0) == -7
    assert len({seed_of(seed, index) for seed in (-1, 0, 1) for index in range(8)}) == 24


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


def test_request_may_hold_two_hundred_thousand_json_values() -> None:
    """Counted before anything is parsed, and as written here: what they take in memory was measured."""
    most = b'{"messages":' + b"[" * 199_998
    with pytest.raises(RefusedRequest, match="JSON(?! values)"):
        parse_request(most)
    with pytest.raises(RefusedRequest, match="at most 200000 JSON values"):
        parse_request(most + b"[")


def test_error_messages_do_not_repeat_what_a_client_sent_at_length() -> None:
    """Else a large request gets a large answer."""
    with pytest.raises(RefusedRequest) as caught:
        parse_request(body(**{"x" * 100_000: 1}))
    assert len(json.dumps(caught.value.body())) < 500


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`max_requests` must be at least 1 \(got 0\)"):
        Limits(max_requests=0)
    assert Limits(max_requests=1).max_requests == 1
