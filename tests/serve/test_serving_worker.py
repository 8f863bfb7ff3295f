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
"""The thread that owns the model: what it batches, in which order, and how soon it lets go of cancelled jobs."""

import asyncio
import json
import queue
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import torch
from server_process import LETTERS, QUESTIONS, body, chat, noise_image, own_answer

from dimple_hf import StructurePrior
from dimple_hf.modeling.denoising_dimple import Sampler
from dimple_hf.serve import Limits, build_app
from dimple_hf.serve.batch import Batch
from dimple_hf.serve.jobs import Job, Progress, ServerFault, TokenLogprob, collate, final_beginning
from dimple_hf.serve.replies import GrowingText, Logprobs
from dimple_hf.serve.worker import CPU_PASS_POSITIONS, PASS_POSITIONS, Worker, admit_first, cheapest_batch

#: One position a pass, so that there are as many passes as positions.
SLOWLY = {"confidence_threshold": None}

SCHEMA = {"type": "object", "properties": {"floor": {"type": "integer", "minimum": 0, "maximum": 99}}}


def row(processor: Any, conversation: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A prompt as the server prepares it."""
    return dict(
        processor.apply_chat_template(
            conversation,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=False,
        )
    )


def job_of(length: int = 8, num_tokens: int = 4, **changes: Any) -> Job:
    """A job that is only waited for."""
    return Job({"input_ids": torch.zeros(1, num_tokens, dtype=torch.long)}, None, length, **changes)


class Watched:
    """A job, what comes of it, and what is done after each step of it."""

    def __init__(self, job: Job, after_step: Any = None):
        self.job, self.updates, self.num_steps = job, queue.Queue[Any](), 0
        self.after_step = after_step
        job.put = self.put

    def put(self, update: Any) -> None:
        self.num_steps += 1
        self.updates.put(update)
        if self.after_step is not None:
            self.after_step(self.num_steps)

    def last(self) -> Any:
        """The last update; a minute is long enough on any machine."""
        while True:
            update = self.updates.get(timeout=60)
            if isinstance(update, ServerFault) or update.is_last:
                return update


@pytest.fixture
def worker(forms_model: Any, forms_processor: Any) -> Iterator[Worker]:
    worker = Worker(forms_model, forms_processor.tokenizer, max_batch_size=4)
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def num_passes(forms_model: Any) -> Iterator[list[int]]:
    """One entry for each pass of the text layers: how many rows it ran over."""
    rows: list[int] = []
    hook = forms_model.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs.get("inputs_embeds", args[0] if args else ()))),
        with_kwargs=True,
    )
    yield rows
    hook.remove()


def test_questions_about_one_image_encode_it_once(forms_model: Any, forms_processor: Any) -> None:
    """Whether they run together or one after the other; the metrics say so."""
    worker, images = Worker(forms_model, forms_processor.tokenizer, max_batch_size=2), []
    hook = forms_model.visual.register_forward_pre_hook(lambda module, args: images.append(None))
    conversations = [chat(0) for _ in range(3)]
    for number, conversation in enumerate(conversations):
        conversation[0]["content"][1]["text"] = QUESTIONS[number]
    asked = [Watched(Job(row(forms_processor, conversation), None, 16)) for conversation in conversations]
    try:
        worker.submit(*(one.job for one in asked))
        num_rows = []  # of each denoising step: who has its answer leaves before the next one
        while worker.waiting or worker.rows:
            worker.step()
            num_rows += [len(batch.rows) for batch in worker.batches]
        assert len(images) == 1
    finally:
        hook.remove()
    for one, conversation in zip(asked, conversations, strict=True):
        answer = forms_processor.decode(one.last().tokens, skip_special_tokens=True)
        assert answer == own_answer(forms_model, forms_processor, conversation, max_new_tokens=16)
    text = worker.metrics.text().decode()
    assert 'dimple_image_features_total{kept="yes"} 2.0' in text
    assert 'dimple_image_features_total{kept="no"} 1.0' in text
    assert f"dimple_denoising_steps_total {len(num_rows)}.0" in text
    assert f"dimple_batch_size {num_rows[-1]}.0" in text


def test_admission_is_in_order_and_bounded_in_rows_and_positions() -> None:
    """Padding included: eight rows as long as the longest need no more memory than the bound allows."""
    short, long = job_of(num_tokens=4), job_of(num_tokens=24)  # 12 and 32 positions
    assert admit_first([], [short] * 5, 4, 10**6) == 4
    assert admit_first([short], [short] * 5, 4, 10**6) == 3
    assert admit_first([short] * 4, [short], 4, 10**6) == 0
    assert admit_first([short], [long, short], 4, 64) == 1
    assert admit_first([short], [long, short], 4, 63) == 0  # the short one does not overtake
    assert admit_first([], [long], 4, 1) == 1  # alone it may have more
    assert admit_first([], [], 4, 1) == 0


def test_job_that_runs_alone_runs_with_no_other(forms_model: Any, forms_processor: Any) -> None:
    """It waits for those that run or came before it; who came after it waits for its end."""
    worker = Worker(forms_model, forms_processor.tokenizer, max_batch_size=4)

    def take(*jobs: Job) -> list[int]:
        """Which of the jobs that wait are taken; none of them runs afterwards."""
        worker.waiting = list(jobs)
        taken = worker._take()
        assert worker.waiting == list(jobs[len(taken) :])
        return [jobs.index(job) for job in taken]

    usual, other, alone, last = job_of(), job_of(), job_of(runs_alone=True), job_of(runs_alone=True)
    assert take(usual, other) == [0, 1]  # control
    assert take(usual, alone, other) == [0]
    assert take(alone, other) == [0]
    assert take(alone, last) == [0]
    assert worker.metrics.registry.get_sample_value("dimple_queue_seconds_count") == 5
    prompt = row(forms_processor, [{"role": "user", "content": "Hello."}])
    worker._add(Job(prompt, None, 8))
    assert take(alone) == []
    assert take(usual, alone) == [0]
    worker.batches.clear()
    worker._add(Job(prompt, None, 8, runs_alone=True))
    assert take(usual) == []


def test_row_joins_the_batch_that_it_makes_least_expensive() -> None:
    assert cheapest_batch([], 8, 16) is None
    assert cheapest_batch([[8], [64]], 8, 1) == 0  # no padding
    assert cheapest_batch([[8, 8], [64]], 12, 16) == 0  # 12 positions and 2 * 4 of padding, not 64
    assert cheapest_batch([[8, 8], [64]], 17, 16) is None  # 35, and 33 alone
    assert cheapest_batch([[8, 8], [64]], 32, 256) == 1  # 64, not 80
    assert cheapest_batch([[8] * 7], 512, 256) is None  # a long row would make all of them long


def test_rows_share_passes_where_that_costs_less(forms_model: Any, forms_processor: Any) -> None:
    """A short answer must not cost as many positions as a long one, unless a forward pass more costs even more."""
    prompt = row(forms_processor, [{"role": "user", "content": "Hello."}])
    assert Worker(forms_model, forms_processor.tokenizer, 8).pass_positions == CPU_PASS_POSITIONS
    for pass_positions, sizes in ((CPU_PASS_POSITIONS, [3, 2]), (PASS_POSITIONS, [5])):
        worker = Worker(forms_model, forms_processor.tokenizer, 8)
        worker.pass_positions = pass_positions
        for length in (8, 16, 17, 64, 65):
            worker._add(Job(prompt, None, length))
        assert [len(batch.rows) for batch in worker.batches] == sizes


def test_collate_gives_what_the_processor_makes_of_all_chats(forms_processor: Any) -> None:
    """Rows with one image, with two and with none."""
    chats = [chat(0), [{"role": "user", "content": "Hello, how many rows does the form have?"}], chat(1)]
    chats[0] += chat(2)
    rows = [row(forms_processor, one) for one in chats]
    together = forms_processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    collated = collate([Job(one, None, 8) for one in rows], forms_processor.tokenizer)
    assert collated.keys() == together.keys()
    for name, value in together.items():
        torch.testing.assert_close(collated[name], value, rtol=0, atol=0)


def test_final_beginning_stops_at_open_positions_and_ends() -> None:
    tokens, end = [5, 6, 9, 7], frozenset([9])
    assert final_beginning(tokens, [True, True, True, True], end) == ([5, 6], True)
    assert final_beginning(tokens, [True, True, True, True], frozenset()) == (tokens, False)
    assert final_beginning(tokens, [True, False, True, True], end) == ([5], False)


def growing(*stops: str) -> GrowingText:
    """The text of tokens that are bytes."""
    return GrowingText(lambda tokens: bytes(tokens).decode(errors="replace"), stops)


def test_growing_text_holds_back_characters_that_are_not_whole() -> None:
    """The pieces together are the text, and none of them ends in the middle of a character."""
    data = "a€ü\ufffd😀".encode()
    text = growing()
    pieces = [text.push(list(data[:length]), length == len(data)) for length in range(1, len(data) + 1)]
    assert "".join(pieces) == data.decode()
    assert [piece for piece in pieces if piece] == ["a", "€", "ü", "\ufffd😀"]
    assert text.push(list(data[:3]), False) == ""
    assert text.push([*data, 98], True) == "b"
    assert growing().push(list(data[:3]), True) == "a\ufffd"  # an answer may end there


@pytest.mark.parametrize(
    ("answer", "stops", "pieces", "num_tokens"),
    [
        ("one\ntwo", ["\n"], ["o", "n", "e", ""], 4),
        ("abcabd", ["abd"], ["", "", "abc", "", "", ""], 6),  # what may begin a stop waits, and goes when it does not
        ("xaab", ["aab", "ab"], ["x", "", "", ""], 4),
        ("abcd", ["bcd", "c"], ["a", "", "b"], 3),  # the one that is complete first
        ("abc", ["cd"], ["a", "b", "c"], 3),  # a half one at the end is no stop
        ("stop", ["stop"], ["", "", "", ""], 4),
    ],
)
def test_growing_text_is_cut_at_the_first_stop_string(
    answer: str, stops: list[str], pieces: list[str], num_tokens: int
) -> None:
    """The same text whether it comes in pieces or at once, and no character of a stop string is ever sent."""
    data = list(answer.encode())
    text, got = growing(*stops), []
    for length in range(1, len(data) + 1):
        got.append(text.push(data[:length], length == len(data)))
        if text.is_cut:
            break
    assert got == pieces
    whole = growing(*stops)
    assert whole.push(data, True) == "".join(pieces)
    assert (whole.num_tokens, text.num_tokens) == (num_tokens, num_tokens)
    assert whole.is_cut == text.is_cut == (answer != "abc")
    assert text.push([*data, 120], True) == ("" if text.is_cut else "x")


def test_tokens_are_sent_with_the_text_that_they_make() -> None:
    """Those of a character come together; a token that a stop string cuts counts, what the string holds does not."""
    data, text = list("a€bcd".encode()), growing("cd")
    counts = []
    for length in range(1, len(data) + 1):
        text.push(data[:length], length == len(data))
        counts.append(text.num_sent(data[:length], length == len(data)))
    assert (counts, text.num_tokens) == ([1, 1, 1, 4, 5, 5, 5], 7)
    in_part = GrowingText(lambda tokens: "ab" * len(tokens), ["ba"])
    assert (in_part.push([1, 2, 3], True), in_part.num_sent([1, 2, 3], True)) == ("a", 1)
    cut_off = growing()
    assert cut_off.push(data[:3], True) == "a\ufffd"
    assert (cut_off.num_sent(data[:3], True), cut_off.num_sent(data[:3], False)) == (3, 2)


def test_log_probabilities_have_the_bytes_of_tokens(forms_processor: Any) -> None:
    """Half a character has no text of its own; special tokens are listed as alternatives only, without bytes."""
    tokenizer = forms_processor.tokenizer
    tokens = tokenizer("é", add_special_tokens=False)["input_ids"]
    assert len(tokens) == 2  # control
    beyond, end = len(tokenizer), tokenizer.eos_token_id
    sent = [TokenLogprob(tokens[0], -0.5, [(end, -0.1), (beyond, -9.0)]), TokenLogprob(end, 0.0, [])]
    sent.append(TokenLogprob(tokens[1], 0.0, []))
    first, second = Logprobs(tokenizer).entries(sent)
    assert bytes(first["bytes"] + second["bytes"]).decode() == "é"
    assert (first["token"], first["logprob"]) == ("\ufffd", -0.5)
    assert [(one["token"], one["bytes"]) for one in first["top_logprobs"]] == [(tokenizer.eos_token, None), ("", [])]


def test_answers_of_rows_that_join_and_leave_are_those_of_generate(
    worker: Worker, forms_model: Any, forms_processor: Any, num_passes: list[int]
) -> None:
    """Of any length, free, under a prior, drawn with a seed, and one position a step, in whatever company."""
    prior = StructurePrior.from_json_schema(SCHEMA)
    drawn = {"do_sample": True, "temperature": 2.0}
    specs: list[tuple[Any, int, dict[str, Any], int | None]] = [
        (None, 20, SLOWLY, None), (prior, len(prior.canvas(forms_processor.tokenizer).ids), {}, None),
        (None, 8, SLOWLY, None), (None, 24, drawn, 3), (None, 30, {}, None), (None, 40, {}, None),
        (None, 16, drawn, 3),
    ]  # fmt: skip
    watched = [
        Watched(Job(row(forms_processor, chat(index)), prior, length, options, seed))
        for index, (prior, length, options, seed) in enumerate(specs)
    ]
    # The first one runs; of the others, one comes after each of its steps.
    watched[0].after_step = lambda step: worker.submit(watched[step].job) if step < len(specs) else None
    worker.submit(watched[0].job)
    answers = [forms_processor.decode(one.last().tokens, skip_special_tokens=True) for one in watched]
    assert max(num_passes) > 2  # control: rows did share passes
    for index, (answer, (prior, length, options, seed)) in enumerate(zip(answers, specs, strict=True)):
        torch.manual_seed(seed or 0)
        extra = {} if prior is not None else {"max_new_tokens": length}
        assert answer == own_answer(forms_model, forms_processor, chat(index), prior, **options, **extra)
    assert len(set(answers)) > 3  # control


def test_short_answer_does_not_wait_for_a_long_one(worker: Worker, forms_processor: Any) -> None:
    """It joins after the step that runs, and leaves long before the other ends."""
    inputs = row(forms_processor, chat(0))
    long, short = Watched(Job(inputs, None, 60, SLOWLY)), Watched(Job(inputs, None, 4))
    at: list[int] = []
    long.after_step = lambda step: worker.submit(short.job) if step == 5 else None
    short.after_step = lambda step: at.append(long.num_steps)
    worker.submit(long.job)
    short.last()
    long.last()
    assert at[0] <= 7
    assert at[-1] <= 5 + 2 * 4
    assert long.num_steps > 40  # control


def test_seeds_of_a_client_do_not_touch_the_random_numbers_of_others(worker: Worker, forms_processor: Any) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    watched = Watched(Job(row(forms_processor, chat(0)), None, 8, {"do_sample": True}, seed=5))
    worker.submit(watched.job)
    watched.last()
    worker.stop()
    assert torch.equal(torch.get_rng_state(), before)


def test_cancelled_job_frees_the_model_within_a_step(
    worker: Worker, forms_processor: Any, num_passes: list[int]
) -> None:
    """Alone it ends at once; of a batch it leaves after one more pass, and the others do not notice."""
    rows = [row(forms_processor, chat(seed)) for seed in range(2)]
    alone = Watched(Job(rows[0], None, 40, SLOWLY))
    alone.after_step = lambda step: worker.cancel(alone.job) if step == 4 else None
    following = Watched(Job(rows[1], None, 6, SLOWLY))
    worker.submit(alone.job)
    worker.submit(following.job)
    following.last()
    assert alone.num_steps == 4
    assert len(num_passes) < 3 + 6 + 2  # control: 40 and 6 passes without it

    num_passes.clear()
    pair = [Watched(Job(one, None, 12, SLOWLY)) for one in rows]
    pair[0].after_step = lambda step: worker.cancel(pair[0].job) if step == 4 else None
    worker.submit(*(one.job for one in pair))
    pair[1].last()
    assert pair[0].num_steps == 4
    assert num_passes.count(1) > 4  # control: the other one went on
    assert num_passes.count(2) <= 5


def test_cancelled_job_that_waits_is_never_run(worker: Worker, forms_processor: Any) -> None:
    """And is forgotten at once, with its images."""
    inputs = row(forms_processor, chat(0))
    blocking, waiting = Watched(Job(inputs, None, 8, SLOWLY)), Watched(Job(inputs, None, 9, SLOWLY))

    def cancel_other(step: int) -> None:
        if step == 1:
            worker.submit(waiting.job)
            worker.cancel(waiting.job)
            assert worker.waiting == []

    blocking.after_step = cancel_other
    worker.submit(blocking.job)
    assert isinstance(blocking.last(), Progress)
    assert waiting.num_steps == 0


def test_job_that_cannot_be_run_takes_no_other_with_it(worker: Worker, forms_processor: Any) -> None:
    """Its own client is told, and the server lives."""
    inputs = row(forms_processor, chat(0))
    broken = Watched(Job({name: value for name, value in inputs.items() if name != "image_grid_thw"}, None, 8))
    good = Watched(Job(inputs, None, 8))
    worker.submit(broken.job, good.job)
    assert str(broken.last()) == "the model failed"
    assert isinstance(good.last(), Progress)
    worker.submit(good.job)
    assert isinstance(good.last(), Progress)


def test_step_that_fails_is_tried_again_with_each_row_alone(
    worker: Worker, forms_model: Any, forms_processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory runs out: every client gets its answer, in pieces that go on where they were."""
    run = Batch._run

    def fail_together(batch: Batch, counts: list[int]) -> None:
        if len(counts) > 1:
            raise torch.OutOfMemoryError("no memory")
        run(batch, counts)

    monkeypatch.setattr(Batch, "_run", fail_together)
    watched = [Watched(Job(row(forms_processor, chat(seed)), None, 12)) for seed in range(3)]
    worker.submit(*(one.job for one in watched))
    for seed, one in enumerate(watched):
        answer = forms_processor.decode(one.last().tokens, skip_special_tokens=True)
        assert answer == own_answer(forms_model, forms_processor, chat(seed), max_new_tokens=12)
    monkeypatch.setattr(Batch, "_run", lambda batch, counts: 1 / 0)
    hopeless = Watched(Job(row(forms_processor, chat(0)), None, 12))
    worker.submit(hopeless.job)
    assert str(hopeless.last()) == "the model failed"
    monkeypatch.setattr(Batch, "_run", run)
    good = Watched(Job(row(forms_processor, chat(0)), None, 12))
    worker.submit(good.job)
    assert isinstance(good.last(), Progress)


def test_row_whose_logits_are_not_finite_fails_alone(
    worker: Worker, forms_processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, good = (Watched(Job(row(forms_processor, chat(seed)), None, 12, SLOWLY)) for seed in range(2))
    process = Sampler.process

    def spoil(sampler: Sampler, state: Any, prompt: Any, logits: torch.Tensor) -> torch.Tensor:
        logits = process(sampler, state, prompt, logits)
        return logits * torch.nan if torch.equal(prompt, broken.job.inputs["input_ids"]) else logits

    monkeypatch.setattr(Sampler, "process", spoil)
    worker.submit(broken.job, good.job)
    assert str(broken.last()) == "the model failed"
    assert isinstance(good.last(), Progress)


def test_stop_ends_what_runs_after_its_step_and_fails_what_waits(forms_model: Any, forms_processor: Any) -> None:
    """Nobody is left without an answer."""
    worker = Worker(forms_model, forms_processor.tokenizer, max_batch_size=4)
    worker.start()
    inputs = row(forms_processor, chat(0))
    running, waiting = Watched(Job(inputs, None, 40, SLOWLY)), Watched(Job(inputs, None, 9))
    stopping = threading.Thread(target=worker.stop)
    running.after_step = lambda step: (worker.submit(waiting.job), stopping.start()) if step == 2 else None
    worker.submit(running.job)
    for watched in (running, waiting):
        assert str(watched.last()) == "the server is shutting down"
    stopping.join()
    assert running.num_steps < 40
    assert not worker.is_alive()
    late = Watched(Job(inputs, None, 9))
    worker.submit(late.job)
    assert str(late.last()) == "the server is shutting down"


@pytest.mark.usefixtures("shared_processes")
def test_unfinished_requests_are_told_of_the_end_in_the_form_of_the_api(
    forms_model: Any, forms_processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of the grace period: whole answers are a 503 with the time to come again, streams end in an error."""
    monkeypatch.setattr(forms_model.generation_config, "confidence_threshold", None)
    app = build_app(forms_model, forms_processor, "forms", Limits())
    # So many steps that the first request is not done before the second one has begun, on a busy machine neither.
    letters = LETTERS | {"pattern": "^[a-z]{400}$", "x-max-tokens": 400}
    response_format = {"type": "json_schema", "json_schema": {"name": "letters", "schema": letters}}

    async def ask() -> tuple[Any, Any]:
        transport = httpx2.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://forms", timeout=60) as client,
        ):
            waiting = [
                asyncio.ensure_future(
                    client.post(
                        "/v1/chat/completions",
                        content=body(response_format=response_format, stream=stream),
                        headers={"content-type": "application/json"},
                    )
                )
                for stream in (False, True)
            ]
            while len(app.state.chat.worker.rows) < 2:
                assert not any(request.done() for request in waiting)
                await asyncio.sleep(0.01)
            await asyncio.to_thread(app.state.chat.worker.stop)
            return tuple(await asyncio.gather(*waiting))

    whole, stream = asyncio.run(ask())
    assert (whole.status_code, whole.headers["retry-after"]) == (503, "5")
    error = {"message": "the server is shutting down", "type": "service_unavailable_error"}
    assert error.items() <= whole.json()["error"].items()
    last = json.loads(stream.text.strip().rpartition("data: ")[2])
    assert last["error"]["message"] == "the server is shutting down"


def test_end_token_of_the_tokenizer_ends_answers(
    forms_model: Any, forms_processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the generation options of the checkpoint say: a chat model may end its answers so."""
    monkeypatch.setattr(forms_model.generation_config, "eos_token_id", None)
    worker = Worker(forms_model, forms_processor.tokenizer, max_batch_size=1)
    tokenizer = forms_processor.tokenizer
    assert worker._end_token_ids() == {tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.pad_token_id}


def test_images_differ_from_each_other() -> None:
    """Control of the tests with many clients: each has an image of its own."""
    assert len({noise_image(seed).tobytes() for seed in range(20)}) == 20
    assert len(QUESTIONS) == 4
