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
"""The decoding benchmark at toy size: what its report holds, and that its arms do what they are said to do.

Times themselves are never judged here: a loaded machine must not fail the tests.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import decode
import decode_floor
import decode_report

#: Bare layers and plain loops come along with the arms that they are compared with.
ARMS = ["bare", "bare_prompt", "plain", "plain_prompt", "none", "prompt", "refresh", "prefix", "dual"]
ARM_FIELDS = {
    "warm_up_ms", "peak_memory_mib", "num_passes", "step_ms", "first_pass_ms", "tokens_per_second",
}  # fmt: skip

ONE_CASE = ["--batch-size", "1", "--answer-length", "8", "--arms", "prompt", "--repeats", "1"]


@pytest.fixture(scope="module", autouse=True)
def small_rates() -> Iterator[None]:
    """The rates of the machine, from a thousandth of the work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_floor, "NUM_READ_BYTES", {"cpu": 2**19})
        patch.setattr(decode_floor, "MATRIX_SIDES", {"cpu": 64})
        yield


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return decode.build_model(decode.SHAPES["tiny"], "cpu", torch.float32, "sdpa")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One run of the script, and the directory of the files that it wrote."""
    path = tmp_path_factory.mktemp("benchmark")
    report = decode.main(
        ["--batch-size", "1", "2", "--answer-length", "8", "--repeats", "2", "--output", str(path / "decode.json"),
         "--figure", str(path / "decode.svg")]
    )  # fmt: skip
    return report, path


def test_report_tiny_shape_has_all_fields(report: tuple[dict[str, Any], Path]) -> None:
    """A figure without machine, versions and command cannot be compared with another."""
    report, path = report
    assert json.loads((path / "decode.json").read_text()) == report
    assert "<svg" in (path / "decode.svg").read_text()
    assert set(report) == {
        "benchmark", "command", "machine", "versions", "settings", "definitions", "rates", "results",
    }  # fmt: skip
    assert report["command"].startswith("python benchmarks/decode.py --batch-size 1 2 ")
    assert set(report["versions"]) == {"python", "torch", "transformers", "dimple_hf"}
    assert report["machine"]["cpu"]
    assert report["machine"]["cores"] >= 1
    assert report["settings"]["num_prompt_tokens"] == 2 * 2 + 9
    assert report["settings"]["shape"]["name"] == "tiny"
    # Four bytes a parameter.
    assert report["settings"]["weights_mib"] * 2**20 == 4 * report["settings"]["num_parameters"]


def test_report_tiny_shape_has_sane_values(report: tuple[dict[str, Any], Path]) -> None:
    """One case for each batch size, with positive finite figures that fit each other."""
    results = report[0]["results"]
    assert [case["batch_size"] for case in results] == [1, 2]
    for case in results:
        assert case["answer_length"] == case["num_steps"] == 8
        assert case["tokens_equal"]
        arms = case["arms"]
        assert list(arms) == ARMS
        for name, arm in arms.items():
            assert arm.keys() >= ARM_FIELDS
            # The adaptive schedule's last step but one leaves two positions, which the last one unmasks together; in
            # blocks each step unmasks one.
            assert arm["num_passes"] == (8 if name in ("prefix", "dual") else 7)
            assert all(math.isfinite(arm[field]) and arm[field] > 0 for field in ARM_FIELDS)
            assert ("floor_ms" in arm) == (not name.startswith("bare"))
        for name in ("none", "prompt", "refresh", "prefix", "dual"):
            assert arms[name]["speed_up"] > 0
        for name in ("none", "prompt"):
            ratio = arms[name]["over_bare"]
            assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
            assert ratio["num_pairs"] == 2 * (7 - 1)  # rounds x passes after the first
        assert arms["plain"]["floor_ms"] == arms["none"]["floor_ms"] > arms["prompt"]["floor_ms"]


def test_report_answers_are_not_trivial(report: tuple[dict[str, Any], Path]) -> None:
    """Control for the comparison of tokens: were all tokens alike, any two loops would agree."""
    assert all(case["num_distinct_tokens"] >= 4 for case in report[0]["results"])


def test_json_flag_prints_report_and_else_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is for one reader: a program with `--json`, a person without. Progress goes elsewhere."""
    report = decode.main([*ONE_CASE, "--json"])
    assert json.loads(capsys.readouterr().out) == report
    decode.main(ONE_CASE)
    printed = capsys.readouterr()
    steps, floors = printed.out.strip().split("\n\n")
    assert len(steps.splitlines()) == 2 + 3
    assert floors.splitlines()[0] == "| batch | answer | `plain_prompt` | `prompt` |"
    assert "decode: 100%" in printed.err


def test_run_goes_on_where_it_was_and_refuses_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases of minutes must not be lost with the run; figures of different settings are not one result."""
    path = tmp_path / "decode.json"
    first = decode.main([*ONE_CASE, "--output", str(path)])
    measured = []
    original = decode.measure
    monkeypatch.setattr(decode, "measure", lambda *args: measured.append(args[2]) or original(*args))
    both = decode.main([*ONE_CASE, "--batch-size", "1", "2", "--output", str(path)])
    assert [case.batch_size for case in measured] == [2]
    assert both["results"][0] == first["results"][0]
    with pytest.raises(SystemExit, match="must be a new file"):
        decode.main([*ONE_CASE, "--dtype", "bfloat16", "--output", str(path)])
    assert json.loads(path.read_text()) == both


def test_static_arm_is_compiled_and_has_the_tokens_of_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its warm-up is reported apart; compiled here by the backend that writes no code."""
    original = decode.options_of

    def eager(arm: str, answer_length: int) -> dict[str, Any]:
        options = original(arm, answer_length)
        if arm == "static":
            options["compile_config"].backend, options["compile_config"].mode = "eager", None
        return options

    monkeypatch.setattr(decode, "options_of", eager)
    report = decode.main([*ONE_CASE, "--arms", "prompt", "static"])
    torch.compiler.reset()
    arms = report["results"][0]["arms"]
    assert arms["static"]["warm_up_ms"] > 10 * arms["prompt"]["warm_up_ms"]
    assert report["results"][0]["tokens_equal"]
    assert arms["static"]["floor_ms"] == arms["prompt"]["floor_ms"]


def test_plain_loop_other_tokens_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: a plain loop that unmasks more than the schedule allows must be noticed, or its times mean nothing."""
    monkeypatch.setattr(decode.PlainLoop, "_num_to_unmask", lambda self, num_masked: min(num_masked, 2))
    with pytest.raises(RuntimeError, match="must have the tokens of `generate` after each step"):
        decode.main(ONE_CASE)


def test_plain_loop_other_tokens_in_bfloat16_only_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding may change a token in bfloat16, so the report says it and the run goes on."""
    step = decode.PlainLoop.step

    def unmask_a_wrong_token(self: decode.PlainLoop) -> None:
        step(self)
        self.answer[0, 0] = 0

    monkeypatch.setattr(decode.PlainLoop, "step", unmask_a_wrong_token)
    report = decode.main([*ONE_CASE, "--dtype", "bfloat16"])
    assert not report["results"][0]["tokens_equal"]


@pytest.mark.parametrize(
    ("arm", "expected"), [("none", 1), ("prompt", 1), ("dual", 1), ("plain", 7), ("plain_prompt", 1)]
)
def test_image_encodings_plain_without_cache_repeat(model: torch.nn.Module, arm: str, expected: int) -> None:
    """`generate` encodes the image once; the plain loop, as the original, in each pass that sees it."""
    case = decode.Case(1, 8, 8)
    bench = decode.Bench(model, decode.SHAPES["tiny"], case, ["none", "prompt", "dual"], time.perf_counter)
    calls = []
    handle = model.visual.register_forward_hook(lambda *_: calls.append(1))
    running = bench.make(arm)
    while (running.answer == model.config.mask_token_id).any():
        running.step()
    handle.remove()
    assert len(calls) == expected


@pytest.mark.parametrize(("num_queries", "num_keys"), [(9, 21), (21, 21)])
def test_bare_layers_step_runs_the_tokens_of_a_step(model: torch.nn.Module, num_queries: int, num_keys: int) -> None:
    """A floor that computed fewer tokens, keys or scores than a step needs would flatter `generate`."""
    attended, scored = [], []
    handles = [
        model.lm_head.register_forward_hook(lambda module, args, output: scored.append(tuple(output.shape))),
        *(layer.self_attn.register_forward_hook(lambda *_: attended.append(1)) for layer in model.model.layers),
    ]
    bare = decode.BareLayers(model, 2, num_queries, num_keys)
    bare.step(5)
    for handle in handles:
        handle.remove()
    assert scored == [(5, 512)]
    assert len(attended) == 2
    assert bare.hidden_states.shape == (2, num_queries, 64)
    if num_queries < num_keys:
        assert bare.cache.keys.shape == (2, 2, num_keys, 16)
    else:
        assert bare.cache is None


def test_bare_arm_scores_as_many_positions_as_the_arm_that_it_goes_with(model: torch.nn.Module) -> None:
    """In each step, the first included."""
    case = decode.Case(2, 8, 8)
    bench = decode.Bench(model, decode.SHAPES["tiny"], case, ["prompt"], time.perf_counter)
    assert bench.names == ["bare_prompt", "plain_prompt", "prompt"]
    scored: list[int] = []
    handle = model.lm_head.register_forward_pre_hook(lambda module, args: scored.append(len(args[0].flatten(0, -2))))
    bench.run_round()
    handle.remove()
    assert scored[::3] == scored[2::3] == [16, 14, 12, 10, 8, 6, 4]  # bare layers and `generate`
    assert scored[1::3] == [2 * 21] + [2 * 9] * 6  # the plain loop scores all that it runs


def test_floor_of_each_policy_counts_what_its_passes_run(model: torch.nn.Module) -> None:
    """13 prompt tokens, 8 of answer, blocks of 4; one reads and reckons at 1 byte or operation a second."""
    case = decode.Case(1, 8, 8)
    bench = decode.Bench(model, decode.SHAPES["tiny"], case, ["dual"], time.perf_counter)
    passes = {}
    for name in ("none", "prompt", "dual"):
        arm, passes[name] = bench.make(name), []
        for _ in range(5):
            with decode_floor.PassRecorder(model) as recorder:
                arm.step()
            passes[name].append([(p.num_queries, p.num_keys, p.num_scored) for p in recorder.passes])
    assert passes["none"] == [[(21, 21, 8 - step)] for step in range(5)]
    assert passes["prompt"] == [[(21, 21, 8)], *([(9, 21, 8 - step)] for step in range(1, 5))]
    assert passes["dual"] == [[(21, 21, 4)], [(5, 21, 3)], [(5, 21, 2)], [(5, 21, 1)], [(21, 21, 4)]]

    one = decode_floor.Pass(num_rows=2, num_queries=9, num_keys=21, num_scored=5)
    layers, head = sum(p.numel() for p in model.model.layers.parameters()), 512 * 64
    num_bytes = 4 * (layers + head + 2 * 2 * 2 * 2 * 16 * 21)  # rows, layers, keys and values, heads
    num_operations = 2 * layers * 18 + 2 * head * 5 + 2 * (2 * 64) * 2 * 18 * 21
    assert one.seconds(model, decode_floor.Rates(1, math.inf)) == num_bytes
    assert one.seconds(model, decode_floor.Rates(math.inf, 1)) == num_operations
    assert one.seconds(model, decode_floor.Rates(1, 1)) == max(num_bytes, num_operations)


def test_rates_keep_the_best_of_their_measurements() -> None:
    """Other work on the machine makes one slower, never faster."""
    rates = decode_floor.Rates()
    ticks = iter([0.0, 2.0, 3.0, 3.0, 4.0, 8.0, 8.0, 12.0, 20.0])
    rates.measure(torch.device("cpu"), torch.float32, lambda: next(ticks))
    assert rates == decode_floor.Rates(2**19 / 1.0, 2 * 64**3 / 1.0)
    before = decode_floor.Rates(**vars(rates))
    ticks = iter([0.0, 9.0, 99.0] * 3)
    rates.measure(torch.device("cpu"), torch.float32, lambda: next(ticks))
    assert rates == before


def test_tables_show_each_arm_and_each_floor(report: tuple[dict[str, Any], Path]) -> None:
    """What is not measured of an arm is left empty."""
    steps = decode_report.format_step_table(report[0]).splitlines()
    assert len(steps) == 2 + 2 * len(ARMS)
    assert steps[2].startswith("| 1 | 8 | `bare` | 7 |")
    assert steps[2].endswith("|  |  |  |  |  |")
    floors = decode_report.format_floor_table(report[0]).splitlines()
    assert (
        floors[0]
        == "| batch | answer | `plain` | `plain_prompt` | `none` | `prompt` | `refresh` | `prefix` | `dual` |"
    )
    dual = report[0]["results"][1]["arms"]["dual"]
    assert floors[3].split(" | ")[-1] == f"{dual['step_ms'] / dual['floor_ms']:.2f} |"


def test_paired_ratio_compares_neighbouring_steps_without_the_first() -> None:
    """Pairs 2/1, 4/1 and 6/2, 8/2 give 2, 4, 3, 4; the first step of each round, 9 to 1, does not count."""
    ratio = decode.paired_ratio([[9.0, 2.0, 4.0], [9.0, 6.0, 8.0]], [[1.0, 1.0, 1.0], [1.0, 2.0, 2.0]])
    assert ratio["median"] == 3.5
    assert (ratio["low"], ratio["high"]) == (2.25, 4.0)
    assert ratio["num_pairs"] == 4
    single = decode.paired_ratio([[9.0, 3.0]], [[1.0, 2.0]])
    assert single == {"median": 1.5, "low": 1.5, "high": 1.5, "num_pairs": 1}


def test_clock_cpu_leaves_out_waiting() -> None:
    """Processor time is there for busy machines, where a process waits for its turn."""
    elapsed = {}
    for name in ("wall", "cpu"):
        clock = decode.make_clock(name, torch.device("cpu"))
        started = clock()
        time.sleep(0.2)
        elapsed[name] = clock() - started
    assert elapsed["wall"] >= 0.2
    assert elapsed["cpu"] < 0.1


def test_build_model_is_seeded_and_in_its_dtype() -> None:
    """The 7B shape fits a GPU only when no float32 copy is made; figures repeat only when weights do."""
    shape = decode.SHAPES["tiny"]
    first, second = (decode.build_model(shape, "cpu", torch.bfloat16, "sdpa") for _ in range(2))
    assert {parameter.dtype for parameter in first.parameters()} == {torch.bfloat16}
    for name, parameter in first.named_parameters():
        torch.testing.assert_close(parameter, second.get_parameter(name), rtol=0, atol=0)
    # Control: the weights are drawn, not constant.
    assert first.lm_head.weight.std() > 0.01


def test_shapes_7b_is_the_released_model(parity_dir: Path) -> None:
    """Parameter for parameter; nothing is allocated."""
    shapes = json.loads((parity_dir / "state_dict_7b.json").read_text())
    model = decode.build_model(decode.SHAPES["7b"], "meta", torch.bfloat16, "sdpa")
    ours = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    assert ours == {name: list(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "huge"], "invalid choice"),
        (["--arms", "plain"], "invalid choice"),
        (["--batch-size", "0"], "--batch-size must be at least 1 (got 0)"),
        (["--answer-length", "8", "3"], "--answer-length must be at least 4 (got 3)"),
        (["--steps", "2"], "--steps must be at least 3 (got 2)"),
        (["--repeats", "0"], "--repeats must be at least 1 (got 0)"),
        (["--threads", "0"], "--threads must be at least 1 (got 0)"),
        (["--vocab-size", "63"], "--vocab-size must be at least 64"),
        (["--clock", "cpu", "--device", "cuda"], "--clock cpu must be used on the CPU"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Before a model is made."""
    with pytest.raises(SystemExit):
        decode.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_arguments_gpu_without_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Torch's own message would come after minutes of work, or name a driver."""
    with pytest.raises(SystemExit):
        decode.main(["--device", "cuda"])
    assert "--device must be cpu on a machine without a GPU (got cuda)" in capsys.readouterr().err
