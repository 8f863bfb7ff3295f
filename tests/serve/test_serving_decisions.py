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
"""`POST /v1/decisions` with OpenAI's client: every type of question, images, mistakes, and shared forward passes."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import openai
import pytest
from server_process import ServerProcess, data_url, noise_image

from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.decisions import Calibration, Choice, Predicate, Score, decide
from dimple_hf.serve.decision_requests import chat_about, parse_decision_request
from dimple_hf.serve.decisions import Decisions
from dimple_hf.serve.limits import RefusedRequest

PREDICATE = {"type": "predicate", "instructions": "Is the price above 500?", "name": "high"}
CHOICE = {"type": "choice", "instructions": "Which?", "choices": [{"value": "a"}, {"value": "true"}, {"value": True}]}
SCORE = {
    "type": "score",
    "instructions": "How full?",
    "levels": [{"label": "empty"}, {"label": "half"}, {"label": "full"}],
}
QUESTIONS = [PREDICATE, CHOICE, SCORE]
SAME = [
    Predicate("Is the price above 500?", "high"),
    Choice("Which?", ["a", "true", True]),
    Score("How full?", ["empty", "half", "full"]),
]


def image_input(seed: int) -> list[dict[str, Any]]:
    parts = [
        {"type": "input_image", "image_url": data_url(noise_image(seed))},
        {"type": "input_text", "text": "A form."},
    ]
    return [{"role": "user", "content": parts}]


def test_decisions_are_those_of_the_engine(client: openai.OpenAI, forms_model: Any, forms_processor: Any) -> None:
    """Parsed by the SDK: a probability, a typed choice, an expected level; equal to `decide`."""
    decision = client.decisions.create(model="forms", input=image_input(3), questions=QUESTIONS)
    predicate, choice, score = decision.answers
    content = [{"type": "image", "image": noise_image(3)}, {"type": "text", "text": "A form."}]
    expected = decide(forms_model, forms_processor, [{"role": "user", "content": content}], SAME)
    assert (predicate.type, predicate.name) == ("predicate", "high")
    assert predicate.probability == pytest.approx(expected[0].probability, abs=1e-4)
    assert [option.value for option in choice.probabilities] == ["a", "true", True]
    assert choice.choice is expected[1].choice or choice.choice == expected[1].choice
    for option, own in zip(choice.probabilities, expected[1].probabilities, strict=True):
        assert option.probability == pytest.approx(own.probability, abs=1e-4)
    assert abs(sum(option.probability for option in choice.probabilities) - 1) < 1e-6
    assert score.score == pytest.approx(expected[2].score, abs=1e-3)
    assert [(option.label, option.value) for option in score.probabilities] == [("empty", 0), ("half", 1), ("full", 2)]
    assert decision.usage.output_tokens == 3
    first = client.decisions.create(model="forms", input=image_input(3), questions=QUESTIONS[:1])
    assert first.answers[0].probability == pytest.approx(predicate.probability, abs=1e-5)
    assert decision.usage.input_tokens > first.usage.input_tokens  # all questions count
    assert decision.usage.total_tokens == decision.usage.input_tokens + 3
    assert 0 <= predicate.label_mass <= 1


def test_flash_attention_needs_rows_of_one_question(
    forms_model: Any, forms_processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes no mask. The library itself needs a GPU, so the name alone is set, in this process."""
    monkeypatch.setattr(forms_model.config, "_attn_implementation_internal", "flash_attention_2")
    chat: Any = SimpleNamespace(
        worker=SimpleNamespace(model=forms_model),
        preparation=SimpleNamespace(processor=forms_processor, max_characters=1 << 15),
        limits=SimpleNamespace(max_batch_size=8),
    )
    body = {"model": "forms", "input": "A text.", "questions": QUESTIONS}
    alone = parse_decision_request(json.dumps(body | {"independent": True}).encode())
    _, canvases = Decisions(chat)._lay_out(alone, alone.read_questions())
    assert len(canvases) == 3  # control
    together = parse_decision_request(json.dumps(body).encode())
    with pytest.raises(RefusedRequest, match="`independent=True` must be set with FlashAttention"):
        Decisions(chat)._lay_out(together, together.read_questions())


def test_texts_messages_json_and_calls_are_inputs(client: openai.OpenAI) -> None:
    conversation = [
        {"role": "developer", "content": "Be exact."},
        {"type": "message", "role": "user", "content": [{"type": "input_json", "data": {"price": 700}}]},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": '{"at": "form"}'},
        {"type": "function_call_output", "call_id": "1", "output": "It is 700."},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I see."}]},
    ]
    by_input = [
        client.decisions.create(model="forms", input=item, questions=[PREDICATE], safety_identifier="me")
        for item in ("The price is 700.", conversation)
    ]
    first, second = (decision.answers[0].probability for decision in by_input)
    assert first != second  # control: the input matters


def test_input_becomes_a_chat_with_the_questions_at_its_end() -> None:
    """Calls and their results are texts; the user's last turn is taken, or one is added."""
    called = {"type": "function_call", "call_id": "1", "name": "é", "arguments": '{"at": 1}'}
    custom = {"type": "custom_tool_call", "call_id": "2", "name": "look", "input": "as is"}
    output = {"type": "function_call_output", "call_id": "1", "output": "It is 700."}
    price = {"role": "user", "content": [{"type": "input_json", "data": {"price": 700}}]}

    def turns(*items: Any) -> list[tuple[str, list[str]]]:
        sent = {"model": "forms", "input": list(items), "questions": QUESTIONS}
        chat = chat_about(parse_decision_request(json.dumps(sent).encode()), "Why?")
        return [(message.role, [part.text for part in message.content]) for message in chat.messages]

    assert turns(price, called, output) == [
        ("user", ['{"price": 700}']),
        ("assistant", ['{"name": "é", "arguments": {"at": 1}}']),
        ("user", ["It is 700.", "\nWhy?"]),
    ]
    assert turns(price, custom)[1:] == [("assistant", ['{"name": "look", "arguments": "as is"}']), ("user", ["Why?"])]


@pytest.mark.parametrize(
    "ways",
    [{"independent": True}, {"permutations": 3}, {"independent": True, "permutations": 2}, {"reading": "text"}],
)
def test_decisions_are_read_as_the_request_says(
    client: openai.OpenAI, forms_model: Any, forms_processor: Any, ways: dict[str, Any]
) -> None:
    """As by `decide` with the same arguments, on more canvases than a batch holds; images in two messages."""
    times = 3 if ways == {"independent": True} else 1
    asked = [*image_input(5), {"role": "assistant", "content": "Yes."}, *image_input(6)]
    decision = client.decisions.create(model="forms", input=asked, questions=QUESTIONS * times, extra_body=ways)
    together = client.decisions.create(model="forms", input=asked, questions=QUESTIONS * times)
    conversation = [
        {
            "role": "user",
            "content": [{"type": "image", "image": noise_image(seed)}, {"type": "text", "text": "A form."}],
        }
        for seed in (5, 6)
    ]
    conversation.insert(1, {"role": "assistant", "content": "Yes."})
    expected = decide(forms_model, forms_processor, conversation, SAME * times, **ways)
    for found, own, other in zip(decision.answers, expected, together.answers, strict=True):
        assert figures(found.model_dump()) == pytest.approx(figures(own.to_dict()), abs=1e-4)
        assert figures(found.model_dump()) != pytest.approx(figures(other.model_dump()), abs=1e-4)  # control
    assert decision.usage.output_tokens == len(decision.answers)
    assert decision.usage.input_tokens > together.usage.input_tokens


def figures(answer: dict[str, Any]) -> list[float]:
    """The probabilities of an answer, and their mass."""
    options = [option["probability"] for option in answer.get("probabilities") or ()]
    return [*options, answer["label_mass"], answer.get("probability") or 0.0]


def test_long_requests_let_others_in_between_their_batches(client: openai.OpenAI) -> None:
    """80 questions alone are 10 batches; a client that comes later does not wait for all of them."""
    began = threading.Event()
    ends: list[str] = []

    def ask_much() -> None:
        began.set()
        decision = client.decisions.create(
            model="forms", input=image_input(7), questions=[PREDICATE] * 80, extra_body={"independent": True}
        )
        assert len({round(answer.probability, 4) for answer in decision.answers}) == 1
        ends.append("much")

    thread = threading.Thread(target=ask_much)
    thread.start()
    began.wait(60)
    client.decisions.create(model="forms", input="A text.", questions=[PREDICATE])
    ends.append("little")
    thread.join()
    assert ends == ["little", "much"]


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"questions": []}, "questions", "must be a list of 1 to 400 questions"),
        ({"questions": [PREDICATE] * 401}, "questions", "(got 401)"),
        ({"questions": [PREDICATE, {"type": "vote"}]}, "questions[1].type", "must be one of predicate, choice, score"),
        ({"questions": [CHOICE | {"choices": [{"value": "a"}] * 2}]}, "questions[0]", "different values"),
        ({"questions": [CHOICE | {"instructions": ""}]}, "questions[0]", "not blank"),
        ({"questions": [PREDICATE | {"instructions": "Is it <|im_end|>?"}]}, None, "special token"),
        ({"input": []}, "input", "at least 1"),
        ({"input": 5}, "input", "array"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "no"}]}]}, None, "image"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, None, "input"),
        ({"temperature": 0.5}, "temperature", "not supported"),
        ({"independent": "yes"}, "independent", "boolean"),
        ({"permutations": 0}, "permutations", "greater than or equal to 1"),
        ({"permutations": 2, "reading": "text"}, "permutations", "must be 1 for `reading"),
        ({"reading": "words"}, "reading", "'label' or 'text'"),
        ({"questions": [PREDICATE] * 400, "independent": True, "permutations": 3}, "questions", "(got 1200)"),
        (
            {"questions": [CHOICE | {"choices": [{"value": "a" * 9000}, {"value": "b" * 9000}]}], "reading": "text"},
            "questions",
            "at most 16384 characters",
        ),
        (
            {"questions": [CHOICE | {"choices": [{"value": "a b" * 900}, {"value": "b"}]}], "reading": "text"},
            "questions",
            "send fewer at a time",
        ),
    ],
)
def test_malformed_requests_are_refused_with_their_path(
    client: openai.OpenAI, changes: dict[str, Any], param: str | None, message: str
) -> None:
    """400 with the SDK's error type; nothing else is asked of the model."""
    body = {"model": "forms", "input": "A text.", "questions": QUESTIONS} | changes
    with pytest.raises(openai.BadRequestError) as error:
        client.post("/decisions", body=body, cast_to=httpx2.Response)
    assert message in str(error.value)
    if param is not None:
        assert error.value.param == param


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.decisions.create(model="other", input="A text.", questions=QUESTIONS)


def test_concurrent_requests_get_their_own_answers(client: openai.OpenAI) -> None:
    """Rows of several requests share forward passes; 40 questions are three canvases of one request."""
    alone = {}
    for seed in range(4):
        answer = client.decisions.create(model="forms", input=image_input(seed), questions=[PREDICATE])
        alone[seed] = answer.answers[0].probability
    assert len(set(alone.values())) == 4  # control

    def ask(seed: int) -> list[float]:
        questions = [PREDICATE] * (40 if seed == 2 else 1)
        decision = client.decisions.create(model="forms", input=image_input(seed), questions=questions)
        return [answer.probability for answer in decision.answers]

    with ThreadPoolExecutor(12) as threads:
        seeds = [0, 1, 3, 2] * 3
        together = list(threads.map(ask, seeds))
    for seed, probabilities in zip(seeds, together, strict=True):
        assert len(probabilities) == (40 if seed == 2 else 1)
        if seed != 2:
            assert probabilities[0] == pytest.approx(alone[seed], abs=1e-4)


def test_decisions_come_between_the_steps_of_a_long_answer(client: openai.OpenAI) -> None:
    """A decision does not wait for the end of a stream."""
    seen = threading.Event()
    done: list[float] = []

    def stream() -> None:
        chunks = client.chat.completions.create(
            model="forms", messages=[{"role": "user", "content": "Read."}], max_tokens=512, stream=True, seed=1,
            temperature=2,
        )  # fmt: skip
        for _ in chunks:
            seen.set()
        seen.set()
        done.append(1.0)

    thread = threading.Thread(target=stream)
    thread.start()
    seen.wait(60)
    decision = client.decisions.create(model="forms", input="A text.", questions=QUESTIONS)
    assert len(decision.answers) == 3
    thread.join()
    assert json.dumps(decision.answers[0].probability)


@pytest.mark.slow
def test_calibrated_server_divides_by_the_temperatures_beside_the_model(
    forms_model: Any, forms_processor: Any, tmp_path: Path
) -> None:
    """A server of its own, about 10 s."""
    calibration = Calibration({"predicate": 0.2}, independent=True, reading="label")
    checkpoint = tmp_path / FORMS_CHECKPOINT.name
    shutil.copytree(FORMS_CHECKPOINT, checkpoint)
    calibration.save_pretrained(checkpoint)
    server = ServerProcess(str(checkpoint), "--calibrated", "--dtype", "float32")
    try:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            found = client.decisions.create(model="forms", input="The price is 700.", questions=[PREDICATE])
            with pytest.raises(
                openai.BadRequestError, match="`independent` must be True, as the calibration was fitted"
            ):
                client.decisions.create(
                    model="forms", input="x", questions=[PREDICATE], extra_body={"independent": False}
                )
    finally:
        server.stop()
    asked = (forms_model, forms_processor, "The price is 700.", SAME[:1])
    assert found.answers[0].probability == pytest.approx(
        decide(*asked, independent=True, calibration=calibration)[0].probability, abs=1e-4
    )
    assert abs(found.answers[0].probability - decide(*asked)[0].probability) > 1e-2  # control
