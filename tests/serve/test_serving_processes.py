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
"""Processes of tasks: their results, their limits, and what they leave to others."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import body, messages
from tasks import allocate, die, double, fail, refuse, spin, spin_and_wait, write

from dimple_hf import StructurePrior
from dimple_hf.serve import processes
from dimple_hf.serve.limits import Limits, RefusedRequest
from dimple_hf.serve.preparation import Preparation, compile_prior, prepare_inputs
from dimple_hf.serve.processes import ByteBudget, TaskLimits, TaskProcesses
from dimple_hf.serve.requests import parse_request

SCHEMA = '{"type": "object", "properties": {"floor": {"type": "integer", "minimum": 0, "maximum": 99}}}'


async def result(processes: TaskProcesses, *task: Any) -> Any:
    async with processes.result(*task) as value:
        return value


def test_result_is_what_the_function_returns(task_processes: TaskProcesses) -> None:
    async def several() -> list[int]:
        return await asyncio.gather(*(result(task_processes, double, number) for number in range(8)))

    assert asyncio.run(several()) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_inputs_and_priors_come_as_they_were_made(task_processes: TaskProcesses, forms_processor: Any) -> None:
    """A prior with what was compiled for the tokenizer: the server does not do it again."""
    request = parse_request(body(messages=messages(0)))
    inputs = asyncio.run(result(task_processes, prepare_inputs, request, {}, Limits()))
    expected = prepare_inputs(forms_processor, request, {}, Limits())
    assert inputs.keys() == expected.keys()
    assert all((inputs[name] == expected[name]).all() for name in expected)
    prior = asyncio.run(result(task_processes, compile_prior, SCHEMA, 99))
    assert len(prior._canvases) == 1
    free = compile_prior(forms_processor, SCHEMA, 99, (("any_order", True), ("max_items", 2)))
    assert free._reader is not None
    assert (free._reader.options.any_order, free._reader.options.max_items) == (True, 2)
    own = StructurePrior.from_json_schema({"type": "integer", "minimum": 0, "maximum": 99})
    assert prior.canvas(forms_processor.tokenizer).ids != own.canvas(forms_processor.tokenizer).ids  # control
    assert (
        prior.canvas(forms_processor.tokenizer).ids
        == compile_prior(forms_processor, SCHEMA, 99).canvas(forms_processor.tokenizer).ids
    )


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ((spin, 5), "more than 1 seconds or 256 MiB"),
        ((allocate, 1 << 30), "more than 1 seconds or 256 MiB"),
        ((write, (1 << 24) + 1), "more than 1 seconds or 256 MiB"),
        ((die,), "more than 1 seconds or 256 MiB"),
    ],
    ids=["time", "memory", "output", "death"],
)
def test_task_beyond_a_limit_is_refused_and_the_next_one_runs(
    task_processes: TaskProcesses, task: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(RefusedRequest, match=message) as caught:
        asyncio.run(result(task_processes, *task))
    assert caught.value.status == 400
    assert asyncio.run(result(task_processes, double, 4)) == 8


def test_refusals_and_failures_of_functions_come_through(task_processes: TaskProcesses) -> None:
    with pytest.raises(RefusedRequest, match="no") as caught:
        asyncio.run(result(task_processes, refuse))
    assert (caught.value.param, caught.value.status, caught.value.code) == ("messages", 413, "code")
    with pytest.raises(RuntimeError, match="KeyError"):
        asyncio.run(result(task_processes, fail))


def test_slow_tasks_are_few_and_do_not_keep_quick_ones_waiting(
    task_processes: TaskProcesses, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Here one at a time; a quick task is answered while it runs, another slow one is told to come again."""
    monkeypatch.setattr(processes, "NUM_SLOW", 1)

    async def scene() -> None:
        first = asyncio.ensure_future(result(task_processes, spin_and_wait, 0.6, str(tmp_path / "go")))
        while not task_processes.num_slow:
            await asyncio.sleep(0.01)
        second = asyncio.ensure_future(result(task_processes, spin, 0.9))
        assert await result(task_processes, double, 3) == 6
        with pytest.raises(RefusedRequest, match="try again") as caught:
            await second
        assert caught.value.status == 429
        (tmp_path / "go").touch()
        assert await first == "done"

    asyncio.run(scene())
    assert task_processes.num_slow == 0


def test_tasks_count_against_the_priority_of_the_server(task_processes: TaskProcesses) -> None:
    """Linux divides the processor among sessions first: in one of their own, tasks of low priority would take half of
    it. A Ctrl+C is for the server alone, so their process group is another one."""
    assert asyncio.run(result(task_processes, double, 4)) == 8
    assert task_processes.parent is not None
    assert os.getsid(task_processes.parent.pid) == os.getsid(0)
    assert os.getpgid(task_processes.parent.pid) == task_processes.parent.pid != os.getpgid(0)


def test_limits_of_a_task_are_those_of_the_page(repo_root: Path) -> None:
    limits, page = TaskLimits(), (repo_root / "docs" / "serving.md").read_text()
    memory = limits.memory_bytes / 2**30
    assert f"{limits.seconds} seconds of processor time and {memory:g} GiB of memory" in page


def test_cancelled_task_ends_its_process(task_processes: TaskProcesses) -> None:
    """A client that leaves does not leave its work behind."""

    async def scene() -> float:
        task = asyncio.ensure_future(result(task_processes, spin, 0.9))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return await result(task_processes, double, 1)

    assert asyncio.run(scene()) == 2


def test_parent_that_was_killed_is_started_again(
    task_processes: TaskProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    killed = task_processes.parent
    assert killed is not None

    async def scene() -> int:
        """A child of the killed process that still runs must not hide its end."""
        assert await result(task_processes, double, 1) == 2  # it has started
        running = asyncio.ensure_future(result(task_processes, spin, 0.9))
        await asyncio.sleep(0.3)
        killed.kill()
        await asyncio.to_thread(killed.wait)
        doubled = await result(task_processes, double, 2)
        await asyncio.gather(running, return_exceptions=True)
        return doubled

    assert asyncio.run(scene()) == 4
    assert task_processes.parent is not killed


def test_byte_budget_lets_wait_who_needs_more_than_is_left() -> None:
    """What is larger than all of it waits until it is alone."""

    async def scene() -> list[str]:
        budget, order = ByteBudget(10), []

        async def take(name: str, num_bytes: int, seconds: float) -> None:
            async with budget.reserve(num_bytes):
                order.append(name)
                await asyncio.sleep(seconds)
                order.append(f"{name} ends")

        await asyncio.gather(take("a", 6, 0.05), take("b", 4, 0.15), take("c", 5, 0.02), take("d", 99, 0))
        assert budget.left == 10
        return order

    assert asyncio.run(scene()) == ["a", "b", "a ends", "c", "c ends", "b ends", "d", "d ends"]


class CountingProcesses:
    """Stands for the processes: compiles nothing, and notes what it was given."""

    def __init__(self, outcome: Any):
        self.outcome, self.num_tasks = outcome, 0

    @asynccontextmanager
    async def result(self, *task: Any) -> AsyncIterator[Any]:
        self.num_tasks += 1
        await asyncio.sleep(0.01)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        yield self.outcome


def test_prompt_and_answer_may_fill_the_context_and_no_more(forms_model: Any, forms_processor: Any) -> None:
    """The last position counts, and none after it."""
    prompt = {"input_ids": np.zeros((1, 10), dtype=np.int64)}
    preparation = Preparation(forms_model, forms_processor, Limits(), CountingProcesses(prompt))
    request = parse_request(body())
    space = preparation.context_length - 10

    async def prepare(answer_length: int) -> None:
        async with preparation.inputs(request, {}, answer_length) as arrays:
            assert arrays is prompt

    asyncio.run(prepare(space))
    with pytest.raises(RefusedRequest, match=rf"tokens \(got 10 \+ {space + 1}\)"):
        asyncio.run(prepare(space + 1))


@pytest.mark.parametrize(
    ("outcome", "num_tasks"),
    [
        ("prior", 1),
        (RefusedRequest("bad"), 1),
        (RefusedRequest("bad", "response_format"), 1),
        (RefusedRequest("busy", status=429), 2),
        (RuntimeError("x"), 2),
    ],
)
def test_schema_is_compiled_once_for_all_who_send_it(
    outcome: Any, num_tasks: int, forms_model: Any, forms_processor: Any
) -> None:
    """At a time and later; so is a schema that is refused, in the field of each. What another try may change is tried
    again."""
    counting = CountingProcesses(outcome)
    preparation = Preparation(forms_model, forms_processor, Limits(), counting)

    async def several() -> list[Any]:
        first = await asyncio.gather(*(preparation._prior("{}", 9, "tools") for _ in range(4)), return_exceptions=True)
        return first + await asyncio.gather(preparation._prior("{}", 9, "tools"), return_exceptions=True)

    results = asyncio.run(several())
    assert counting.num_tasks == num_tasks
    assert {type(one) for one in results} == {type(outcome)}
    if isinstance(outcome, RefusedRequest):
        assert {one.param for one in results} == {outcome.param and "tools"}
