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
"""`dimple-hf serve` as its users meet it: a process of its own, and OpenAI's client over loopback."""

import asyncio
import json
import math
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import openai
import PIL.Image
import pytest
import serve_load
import torch
from jsonschema import Draft202012Validator
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, Field
from server_process import LETTERS, ForkedServer, body, chat, data_url, messages, own_answer, slow_checkpoint

from dimple_hf import DimpleConfig, DimpleForConditionalGeneration, StructurePrior
from dimple_hf.cli.main import main
from dimple_hf.data.image_features import MAX_BYTES

JSON = {"content-type": "application/json"}


def schema_of(number: int) -> dict[str, Any]:
    """A schema of its own for each number: objects, lists, choices, texts and numbers."""
    values: list[dict[str, Any]] = [
        {"type": "integer", "minimum": -number, "maximum": 10 * number + 3},
        {"enum": ["red", "green", number, None]},
        {"type": "string", "maxLength": number % 7 + 1},
        {"type": "string", "pattern": f"^[a-f]{{{number % 4 + 1}}}-\\d$"},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": number % 3 + 1},
        {"type": "number", "minimum": 0.5, "maximum": number + 1.5},
        {"anyOf": [{"type": "null"}, {"type": "string", "format": "date"}]},
    ]
    chosen = {f"field{index}": values[(number + index) % len(values)] for index in range(number % 3 + 1)}
    return {"type": "object", "properties": chosen, "required": list(chosen), "additionalProperties": False}


def judge_schemas(client: openai.OpenAI, tokenizer: Any, numbers: range) -> None:
    """Asks under each schema and lets an independent judge look at the answers."""
    texts = set()
    for number in numbers:
        schema = schema_of(number)
        response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        answer = client.chat.completions.create(
            model="forms", messages=messages(number), response_format=response_format
        )
        choice = answer.choices[0]
        Draft202012Validator(schema).validate(json.loads(choice.message.content))
        if choice.finish_reason != "stop":  # only where the canvas is full
            num_positions = len(StructurePrior.from_json_schema(schema).canvas(tokenizer).ids)
            assert (choice.finish_reason, answer.usage.completion_tokens) == ("length", num_positions)
        texts.add(choice.message.content)
    assert len(texts) > len(numbers) // 3  # control: the schemas are not all the same
    with pytest.raises(json.JSONDecodeError):  # control: without a schema the model answers freely
        json.loads(client.chat.completions.create(model="forms", messages=messages(1)).choices[0].message.content)


def test_text_and_image_are_answered_as_by_generate(
    client: openai.OpenAI, forms_model: Any, forms_processor: Any
) -> None:
    """Without a limit, with the model's own: 48 positions, and no canvas of 1024."""
    texts = [{"role": "system", "content": "You read forms."}, {"role": "user", "content": "How many rows?"}]
    for sent, own in ((texts, texts), (messages(0), chat(0)), (messages(1), chat(1))):
        answer = client.chat.completions.create(model="forms", messages=sent)
        ChatCompletion.model_validate(answer.to_dict())
        choice = answer.choices[0]
        assert choice.message.content == own_answer(forms_model, forms_processor, own)
        tokens = forms_processor.tokenizer(choice.message.content)["input_ids"]
        assert choice.finish_reason == ("length" if answer.usage.completion_tokens == 48 else "stop")
        assert abs(answer.usage.completion_tokens - len(tokens)) <= len(tokens) // 2
    short = client.chat.completions.create(model="forms", messages=messages(0), max_tokens=3)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (3, "length")


def test_stream_comes_in_pieces_that_make_the_whole_answer(client: openai.OpenAI) -> None:
    """As the positions become certain from the left; the counts come last, where they are asked for."""
    whole = client.chat.completions.create(model="forms", messages=messages(0))
    options = {"include_usage": True}
    events = list(
        client.chat.completions.create(model="forms", messages=messages(0), stream=True, stream_options=options)
    )
    for one in events:
        ChatCompletionChunk.model_validate(one.to_dict())
    pieces = [one.choices[0] for one in events[:-1]]
    assert pieces[0].delta.role == "assistant"
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert sum(bool(piece.delta.content) for piece in pieces) > 1
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + [whole.choices[0].finish_reason]
    assert events[-1].choices == []
    assert events[-1].usage == whole.usage
    for options in ({}, {"stream_options": {"include_usage": False}}):
        plain = list(client.chat.completions.create(model="forms", messages=messages(0), stream=True, **options))
        assert len(plain) == len(events) - 1


def test_drawn_answers_are_repeated_by_their_seed(client: openai.OpenAI) -> None:
    unsure = messages(0)
    unsure[0]["content"][1]["text"] = "List the labels in any order."

    def ask(**options: Any) -> str:
        answer = client.chat.completions.create(model="forms", messages=unsure, **options)
        return answer.choices[0].message.content

    assert ask(temperature=2, seed=1) == ask(temperature=2, seed=1)
    assert len({ask(temperature=2, seed=seed) for seed in range(4)}) > 1  # control
    assert ask(temperature=0, seed=1) == ask()


def test_answers_under_schemas_are_valid(client: openai.OpenAI, forms_model: Any, forms_processor: Any) -> None:
    """By construction; the same as under the prior of the same schema. Streamed, too."""
    judge_schemas(client, forms_processor.tokenizer, range(1, 11))
    schema = schema_of(5)
    response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    pieces = client.chat.completions.create(
        model="forms", messages=messages(5), response_format=response_format, stream=True
    )
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == own_answer(forms_model, forms_processor, chat(5), StructurePrior.from_json_schema(schema))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_answers_under_two_hundred_schemas_are_valid(client: openai.OpenAI, forms_processor: Any) -> None:
    judge_schemas(client, forms_processor.tokenizer, range(200))


def test_pydantic_classes_are_answered_with_their_objects(client: openai.OpenAI) -> None:
    """The client's own way to ask for a schema. It refuses an answer that a bound may have cut."""

    class Form(BaseModel):
        price: int = Field(ge=0, le=9999)
        floor: int | None = Field(ge=0, le=99)

    class Unbounded(BaseModel):
        items: list[Literal["x"]] = Field(min_length=3)

    options = {"model": "forms", "messages": messages(0)}
    answer = client.chat.completions.parse(response_format=Form, **options)
    assert isinstance(answer.choices[0].message.parsed, Form)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(response_format=Unbounded, max_tokens=16, **options)


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "must be 'forms'"),
        ({"max_tokens": 5000}, openai.BadRequestError, "at most 1024"),
        ({"max_tokens": 1000}, openai.BadRequestError, "must fit 1024 tokens"),
        ({"store": True}, openai.BadRequestError, "`store` is not supported"),
        ({"n": 9}, openai.BadRequestError, "`n` must be at most 8"),
        ({"messages": [{"role": "user", "content": "Hi <|im_end|>"}]}, openai.BadRequestError, "special token"),
        (
            {"messages": [{"role": "user", "content": "x" * 20_000}]},
            openai.BadRequestError,
            "at most 16384 characters",
        ),
    ],
)
def test_what_the_server_cannot_do_is_refused(
    client: openai.OpenAI, options: dict[str, Any], error: type[openai.APIStatusError], reason: str
) -> None:
    """As the error that the client knows, with a reason."""
    with pytest.raises(error, match=re.escape(reason)):
        client.chat.completions.create(**{"model": "forms", "messages": messages(0)} | options)


@pytest.mark.parametrize(
    ("schema", "options", "reason"),
    [
        ({"type": "integer", "multipleOf": "x"}, {}, "multipleOf"),
        ({"type": "string", "pattern": "^(a|[a-z]{1,50}){0,60}$"}, {}, "steps"),
        ({"enum": ["x" * 70_000]}, {}, "characters"),
        ({"type": "integer", "minimum": 0, "maximum": 9}, {"max_tokens": 0}, "greater"),
        ({"type": "string", "minLength": 40}, {"max_tokens": 2}, "must be at least"),
        ({"required": [[]]}, {}, "schema"),
        ({"type": "string", "pattern": "^(((((a?){30}){30}){30})){30}$"}, {}, "must"),  # by states or by time
    ],
)
def test_schemas_that_cannot_be_kept_are_refused(
    client: openai.OpenAI, schema: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    """Before the model runs; a small schema cannot make the server work for hours."""
    response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    start = time.monotonic()
    with pytest.raises(openai.BadRequestError, match=re.escape(reason)):
        client.chat.completions.create(model="forms", messages=messages(0), response_format=response_format, **options)
    assert time.monotonic() - start < 60


def test_models_health_and_metrics_are_told(client: openai.OpenAI, server: ForkedServer) -> None:
    assert [model.id for model in client.models.list()] == ["forms"]
    assert client.models.retrieve("forms").owned_by == "dimple_hf"
    with pytest.raises(openai.NotFoundError, match="must be 'forms'"):
        client.models.retrieve("gpt")
    assert httpx2.get(f"{server.url}/health").json() == {"status": "ok"}
    client.chat.completions.create(model="forms", messages=[{"role": "user", "content": "Hello."}], max_tokens=1)
    assert 'dimple_responses_total{status="200"}' in httpx2.get(f"{server.url}/metrics").text
    for response, status in (
        (httpx2.get(f"{server.url}/v1/nothing"), 404),
        (httpx2.post(f"{server.url}/v1/completions", json={"model": "forms", "prompt": "Once"}), 404),
        (httpx2.get(f"{server.url}/v1/chat/completions"), 405),
        (httpx2.post(f"{server.url}/v1/chat/completions", content=body()), 415),
        (httpx2.get(f"{server.url}/health", headers={"host": "rebound.example"}), 403),
    ):
        assert response.status_code == status
        assert response.json()["error"]["message"]
        assert response.headers["x-request-id"]
        assert ("/v1/chat/completions" in response.json()["error"]["message"]) == (status in (404, 405))
        assert ":path" not in response.text  # of a route, which no client writes
    counts = httpx2.get(f"{server.url}/metrics").text
    assert all(f'dimple_responses_total{{status="{status}"}}' in counts for status in (404, 405, 415))


def test_message_of_the_server_goes_on_a_chat(client: openai.OpenAI) -> None:
    """As the client's users do it: the message object itself is appended."""
    answer = client.chat.completions.create(model="forms", messages=messages(0), max_tokens=4)
    chat_so_far = [*messages(0), answer.choices[0].message, {"role": "user", "content": "What is the floor?"}]
    again = client.chat.completions.create(model="forms", messages=chat_so_far, max_tokens=4)
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens
    assert again.usage.prompt_tokens_details.image_tokens == answer.usage.prompt_tokens_details.image_tokens > 0


def test_stop_strings_cut_whole_answers_and_streams_alike(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="forms", messages=messages(0)).choices[0].message.content
    stop = whole[4:6]
    cut = client.chat.completions.create(model="forms", messages=messages(0), stop=[stop, "never"])
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    pieces = list(client.chat.completions.create(model="forms", messages=messages(0), stop=stop, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole[: whole.index(stop)]
    assert pieces[-1].choices[0].finish_reason == "stop"


def text_of(entries: list[Any]) -> str:
    """The text of tokens by their bytes."""
    return bytes(byte for entry in entries for byte in entry.bytes).decode()


def test_log_probabilities_are_those_of_generate(
    client: openai.OpenAI, forms_model: Any, forms_processor: Any
) -> None:
    """An entry for each token that counts, with the most probable ones at its position."""
    inputs = forms_processor.apply_chat_template(
        chat(1), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    output = forms_model.generate(**inputs, return_dict_in_generate=True)
    options = {"model": "forms", "messages": messages(1)}
    answer = client.chat.completions.create(logprobs=True, top_logprobs=3, **options)
    entries = answer.choices[0].logprobs.content
    assert text_of(entries) == "".join(entry.token for entry in entries) == answer.choices[0].message.content
    assert len(entries) == answer.usage.completion_tokens
    expected = output.token_logprobs[0, : len(entries)].tolist()
    assert [entry.logprob for entry in entries] == pytest.approx(expected, abs=1e-4)
    assert min(expected) < -1e-3  # control: not all are certain
    for entry in entries:
        tops = [one.logprob for one in entry.top_logprobs]
        assert tops == sorted(tops, reverse=True)
        assert (len(tops), entry.top_logprobs[0].token) == (3, entry.token)
        assert tops[0] == pytest.approx(entry.logprob, abs=1e-4)
    plain = client.chat.completions.create(logprobs=True, **options).choices[0].logprobs.content
    assert [entry.top_logprobs for entry in plain] == [[]] * len(entries)
    assert client.chat.completions.create(**options).choices[0].logprobs is None


def test_log_probabilities_are_streamed_with_their_text(client: openai.OpenAI) -> None:
    """And cut with it: what is in the stop string alone has no entry."""
    options = {"model": "forms", "messages": messages(0), "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options).choices[0]
    pieces = [piece.choices[0] for piece in client.chat.completions.create(stream=True, **options)]
    sent = [piece for piece in pieces if piece.logprobs is not None]
    assert [entry for piece in sent for entry in piece.logprobs.content] == whole.logprobs.content
    assert len(sent) > 1  # control
    assert all(text_of(piece.logprobs.content) == piece.delta.content for piece in sent)
    stop = whole.message.content[4:6]
    cut = client.chat.completions.create(stop=stop, **options).choices[0]
    assert text_of(cut.logprobs.content).startswith(cut.message.content)
    assert cut.logprobs.content == whole.logprobs.content[: len(cut.logprobs.content)]
    assert len(text_of(cut.logprobs.content[:-1])) < len(cut.message.content) < len(whole.message.content)
    streamed = [
        piece.choices[0].logprobs for piece in client.chat.completions.create(stop=stop, stream=True, **options)
    ]
    assert [entry for one in streamed if one for entry in one.content] == cut.logprobs.content
    with pytest.raises(openai.BadRequestError, match="less than or equal to 20"):
        client.chat.completions.create(**options | {"top_logprobs": 21})


def test_log_probabilities_under_a_schema_are_those_of_possible_tokens(client: openai.OpenAI) -> None:
    """What stands there before the first step has 0 and no alternative; padding has no entry."""
    schema = {"type": "object", "properties": {"floor": {"enum": [1, 2]}}, "required": ["floor"]}
    response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    options = {"model": "forms", "messages": messages(0), "logprobs": True, "top_logprobs": 20}
    choice = client.chat.completions.create(response_format=response_format, **options).choices[0]
    entries = choice.logprobs.content
    assert text_of(entries) == choice.message.content
    first = entries[0]
    assert (first.logprob, [one.token for one in first.top_logprobs]) == (0, [first.token])
    digit = next(entry for entry in entries if entry.token in ("1", "2"))
    assert digit.logprob < 0
    assert {one.token for one in digit.top_logprobs} <= {"1", "2", " "}
    total = sum(math.exp(one.logprob) for one in digit.top_logprobs)
    assert total == pytest.approx(1, abs=1e-4)
    assert all(
        len(entry.top_logprobs) == 20
        for entry in client.chat.completions.create(**options).choices[0].logprobs.content
    )  # control


def test_log_probabilities_of_calls_are_those_of_their_json(client: openai.OpenAI) -> None:
    """As the model writes it, whole and streamed."""
    named = {"type": "function", "function": {"name": "leave"}}
    options = {"model": "forms", "messages": messages(0), "logprobs": True, "tool_choice": named, "tools": [named]}
    whole = client.chat.completions.create(**options).choices[0]
    assert json.loads(text_of(whole.logprobs.content))["name"] == "leave"
    pieces = [piece.choices[0] for piece in client.chat.completions.create(stream=True, **options)]
    assert [entry for piece in pieces if piece.logprobs for entry in piece.logprobs.content] == whole.logprobs.content


def test_answer_that_touches_a_bound_ends_by_its_length(client: openai.OpenAI, forms_processor: Any) -> None:
    """The schema allows more items than its canvas: three fill it."""
    schema = {"type": "array", "items": {"const": "x"}, "minItems": 3}
    response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    options = {"model": "forms", "messages": messages(0), "response_format": response_format}
    num_tokens = len(forms_processor.tokenizer('["x","x","x"]')["input_ids"])
    short = client.chat.completions.create(max_tokens=num_tokens, **options).choices[0]
    assert (json.loads(short.message.content), short.finish_reason) == (["x"] * 3, "length")
    schema |= {"maxItems": 3}  # control: it allows no more, and its canvas has the positions
    whole = client.chat.completions.create(**options).choices[0]
    assert (json.loads(whole.message.content), whole.finish_reason) == (["x"] * 3, "stop")


def test_several_choices_are_drawn_with_their_own_seeds(client: openai.OpenAI) -> None:
    unsure = messages(0)
    unsure[0]["content"][1]["text"] = "List the labels in any order."
    options = {"model": "forms", "messages": unsure, "temperature": 2, "seed": 1}
    answer = client.chat.completions.create(n=3, max_tokens=12, **options)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    alone = client.chat.completions.create(max_tokens=12, **options)
    assert alone.choices[0].message.content == texts[0]
    streamed = ["", "", ""]
    for piece in client.chat.completions.create(n=3, max_tokens=12, stream=True, **options):
        streamed[piece.choices[0].index] += piece.choices[0].delta.content or ""
    assert streamed == texts


def test_functions_are_called_with_valid_arguments(client: openai.OpenAI) -> None:
    """Which one is the model's matter; that it is one of them, and its arguments, are the prior's."""
    parameters = {"type": "object", "properties": {"floor": {"enum": [1, 2]}}, "required": ["floor"]}
    tools = [
        {"type": "function", "function": {"name": "go_to", "parameters": parameters}},
        {"type": "function", "function": {"name": "leave"}},
    ]
    options = {"model": "forms", "messages": messages(0), "tools": tools}
    named = {"type": "function", "function": {"name": "go_to"}}
    answer = client.chat.completions.create(tool_choice=named, **options)
    assert answer.choices[0].finish_reason == "tool_calls"
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "go_to"
    assert json.loads(call.function.arguments)["floor"] in (1, 2)
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    chat_so_far = [*messages(0), answer.choices[0].message, result]
    assert client.chat.completions.create(model="forms", messages=chat_so_far, max_tokens=2).choices

    pieces = list(client.chat.completions.create(tool_choice="required", stream=True, **options))
    calls = [call for piece in pieces for call in piece.choices[0].delta.tool_calls or ()]
    assert [call.function.name for call in calls] in (["go_to"], ["leave"])
    assert pieces[-1].choices[0].finish_reason == "tool_calls"

    choice = client.chat.completions.create(tool_choice="auto", **options).choices[0]
    assert (choice.message.content is None) == (choice.finish_reason == "tool_calls")


def test_functions_with_invalid_parameters_are_refused_by_their_field(client: openai.OpenAI) -> None:
    for parameters, options in (({"type": "banana"}, {}), ({"type": "object"}, {"max_tokens": 2})):
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="forms", messages=messages(0), tools=tools, tool_choice="required", **options
            )
        assert caught.value.param == "tools"


def test_json_object_is_one(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="forms", messages=messages(0), response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_private_addresses_are_refused_and_strangers_only_if_allowed(client: openai.OpenAI) -> None:
    """Here they are allowed; that the default is not, the test of a busy server says."""
    url = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
    with pytest.raises(openai.BadRequestError, match="it is private"):
        client.chat.completions.create(model="forms", messages=[{"role": "user", "content": [url]}])


@pytest.mark.parametrize(
    ("number", "reason"), [(10_000, "at most 1024 items"), (1_000, "at most 64 images (got 1000)")]
)
def test_too_many_images_are_refused_by_their_number(server: ForkedServer, number: int, reason: str) -> None:
    """Eleven megabytes of them in one request: none is decoded, and the next request is answered."""
    before = server.resident_mib()
    url = data_url(PIL.Image.new("L", (1, 1)))
    images = [{"type": "image_url", "image_url": {"url": url + "A" * (10_000_000 // number)}}] * number
    sent = body(messages=[{"role": "user", "content": images}])
    assert len(sent) > 10_000_000
    response = httpx2.post(f"{server.url}/v1/chat/completions", content=sent, headers=JSON, timeout=240)
    assert response.status_code == 400
    assert reason in response.json()["error"]["message"]
    assert server.resident_mib() - before < 300  # it was 13.7 GB
    few = body(messages=messages(0), max_tokens=1)
    assert httpx2.post(f"{server.url}/v1/chat/completions", content=few, headers=JSON, timeout=240).status_code == 200


def test_many_clients_at_once_get_their_own_answers(server: ForkedServer) -> None:
    """The load test, short: a quarter of the clients are hostile, and not one answer is wrong, late or another's."""
    result = asyncio.run(serve_load.load(server, num_clients=4, seconds=1))
    assert result["faults"] == []
    assert len([name for name in result["answers"] if name.startswith("good")]) == 3
    assert len(result["answers"]) == 3 + 19
    assert result["different_answers_expected"] > 5  # control: they could have been mixed up


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sixty_four_clients_for_a_minute(server: ForkedServer) -> None:
    """What they need of memory the first time, they need the second time, and no more."""
    alone = asyncio.run(serve_load.load(server, num_clients=64, seconds=20, with_hostile=False))
    assert alone["faults"] == []
    peaks = []
    for seconds in (20, 60):
        result = asyncio.run(serve_load.load(server, num_clients=64, seconds=seconds))
        assert result["faults"] == []
        peaks.append(max(result["resident_mib"]["peak_of_each_third"]))
    assert peaks[1] < 1.1 * peaks[0]
    assert result["good_seconds"]["p95"] <= 2 * alone["good_seconds"]["p95"]


def send_raw(url: str, sent: bytes) -> socket.socket:
    """A request of which the test can let go."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = ["POST /v1/chat/completions HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    connection.sendall("\r\n".join([*head, f"Content-Length: {len(sent)}", "", ""]).encode() + sent)
    return connection


@pytest.fixture
def slow_server(tmp_path: Path) -> Iterator[ForkedServer]:
    """It answers one request at a time and commits one position a step, however confident the model is."""
    checkpoint = slow_checkpoint(tmp_path / "slow")
    # A loaded machine may need more than the usual half minute for what runs when it is told to end.
    options = ("--max-requests", "1", "--max-batch-size", "1", "--grace-seconds", "250")
    server = ForkedServer(tmp_path, str(checkpoint), *options)
    yield server
    server.process.kill()


def test_busy_server_says_so_and_ends_when_it_has_answered(slow_server: ForkedServer) -> None:
    """A second request gets 429, one that is left makes room, and SIGTERM waits for the one that runs."""
    server = slow_server
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        quick = {"model": "slow", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1}
        remote = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
        with pytest.raises(openai.BadRequestError, match="this server fetches none"):
            client.chat.completions.create(**quick | {"messages": [{"role": "user", "content": [remote]}]})

        letters = LETTERS | {"pattern": "^[a-z]{40}$", "x-max-tokens": 40}
        response_format = {"type": "json_schema", "json_schema": {"name": "letters", "schema": letters}}
        left = send_raw(server.url, body(model="slow", stream=True, response_format=response_format))
        assert left.recv(1)
        with pytest.raises(openai.RateLimitError, match="at most 1 requests at a time"):
            client.chat.completions.create(**quick)
        left.close()
        deadline = time.monotonic() + 60
        while True:  # as soon as the server notices, there is room again
            try:
                client.chat.completions.create(**quick)
                break
            except openai.RateLimitError:
                assert time.monotonic() < deadline
                time.sleep(0.02)

        stream = client.chat.completions.create(
            **quick | {"max_tokens": None, "stream": True, "response_format": response_format}
        )
        next(stream)
        server.process.terminate()
        deadline = time.monotonic() + 60
        while not any("ending: 1 requests" in line for line in server.lines):
            assert time.monotonic() < deadline, "".join(server.lines)
            time.sleep(0.02)
        with pytest.raises(openai.InternalServerError, match="shutting down") as caught:  # nothing new is begun
            client.chat.completions.create(**quick)
        assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "5")
        pieces = [piece.choices[0] for piece in stream]
        assert len(json.loads("".join(piece.delta.content or "" for piece in pieces))) == 40
        assert pieces[-1].finish_reason == "stop"
    assert server.process.wait() == 0
    deadline = time.monotonic() + 60
    while not any("Finished server process" in line for line in server.lines):  # it comes through a pipe
        assert time.monotonic() < deadline, "".join(server.lines)
        time.sleep(0.02)


def test_snippets_of_the_page_run(
    server: ForkedServer, repo_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As they stand there, but for the port."""
    monkeypatch.chdir(repo_root)
    blocks = re.findall(r"```python\n(.*?)```", Path("docs/serving.md").read_text(), flags=re.DOTALL)
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("http://127.0.0.1:8000", server.url), namespace)
    whole, streamed = capsys.readouterr().out.split("\n", 1)
    assert whole == streamed
    assert type(namespace["form"]) is namespace["Form"]


def test_memory_of_a_replica_on_the_page_is_that_of_the_configuration(repo_root: Path) -> None:
    """The shapes of the released model, whose weights this machine need not hold."""
    with torch.device("meta"):
        model = DimpleForConditionalGeneration(DimpleConfig())
    config, num_parameters = model.config, sum(parameter.numel() for parameter in model.parameters())
    head_size = config.hidden_size // config.num_attention_heads
    key_bytes = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * head_size
    logit_bytes = (2 + 4) * config.vocab_size
    of_keys, of_logits = 8 * 1024 * key_bytes / 2**30, 8 * 128 * logit_bytes / 2**30
    page = (repo_root / "docs" / "replicas.md").read_text()
    for line in (
        f"| weights, {num_parameters / 1e9:.2f} billion parameters | {2 * num_parameters / 2**30:.1f} GiB |",
        f"| {key_bytes >> 10} KiB for each position of prompt and answer; {of_keys:.2f} GiB for 8 rows",
        f"the {config.max_position_embeddings:,} positions of the context for all rows together | "
        f"{config.max_position_embeddings * key_bytes / 2**30:.1f} GiB |",
        f"| {logit_bytes / 2**20:.2f} MiB for each masked position; {of_logits:.2f} GiB for 8 rows",
        f"| features of images that are kept | {MAX_BYTES / 2**30:.2f} GiB |",
    ):
        assert line in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "`--port` must lie between 0 and 65535 (got 70000)"),
        (["--max-requests", "0"], "`--max-requests` must be at least 1 (got 0)"),
        (["--max-body-mib", "0"], "`--max-body-mib` must be at least 1 (got 0)"),
        (["--grace-seconds", "-1"], "`--grace-seconds` must be at least 0 (got -1)"),
        (["--api-key", ""], "`--api-key` must not be empty; unset DIMPLE_HF_API_KEY for a server without a key"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["serve", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_address_that_is_taken_is_refused_before_the_model_is_loaded(capsys: pytest.CaptureFixture) -> None:
    """Loading the released model takes minutes."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    assert f"serve: nothing can listen at 127.0.0.1, port {port}: Address already in use" in capsys.readouterr().err


def test_folder_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["serve", str(tmp_path)]) == 1
    assert f"{tmp_path} must be a checkpoint that loads (got no configuration: config.json" in capsys.readouterr().err


def test_causal_models_are_refused(parity_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """They do not denoise; transformers' own server is for them."""
    causal = tmp_path / "causal"
    causal.mkdir()
    for file in (parity_dir / "checkpoint").iterdir():
        (causal / file.name).symlink_to(file)
    config = json.loads((causal / "config.json").read_text()) | {"full_attn_mask": False}
    (causal / "config.json").unlink()
    (causal / "config.json").write_text(json.dumps(config))
    assert main(["serve", str(causal)]) == 1
    assert "`model` must be a diffusion model" in capsys.readouterr().err
