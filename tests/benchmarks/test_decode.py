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

import importlib.util
import json
import math
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ARM_FIELDS = {"step_ms", "first_pass_ms", "tokens_per_second", "peak_memory_mib"}
RATIOS = ("generate_over_bare", "plain_over_bare", "plain_over_generate")


@pytest.fixture(scope="module")
def decode(repo_root: Path) -> ModuleType:
    """The script as a module; `benchmarks/` is no package."""
    spec = importlib.util.spec_from_file_location("decode", repo_root / "benchmarks" / "decode.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(decode: ModuleType) -> torch.nn.Module:
    return decode.build_model(decode.SHAPES["tiny"], "cpu", torch.float32, "sdpa")


@pytest.fixture(scope="module")
def report(decode: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One run of the script, and the file that it wrote."""
    path = tmp_path_factory.mktemp("benchmark") / "decode.json"
    report = decode.main(["--batch-size", "1", "2", "--answer-length", "8", "--repeats", "2", "--output", str(path)])
    return report, path


def test_report_tiny_shape_has_all_fields(report: tuple[dict[str, Any], Path]) -> None:
    """A figure without machine, versions and command cannot be compared with another."""
    report, path = report
    assert json.loads(path.read_text()) == report
    assert set(report) == {"benchmark", "command", "machine", "versions", "settings", "definitions", "results"}
    assert report["command"].startswith("python benchmarks/decode.py --batch-size 1 2 ")
    assert set(report["versions"]) == {"python", "torch", "transformers", "dimple_hf"}
    assert report["machine"]["cpu"]
    assert report["machine"]["cores"] >= 1
    assert report["settings"]["num_prompt_tokens"] == 2 * 2 + 9
    assert report["settings"]["shape"]["name"] == "tiny"
    # Four bytes a parameter.
    assert report["settings"]["weights_mib"] * 2**20 == 4 * report["settings"]["num_parameters"]


def test_report_tiny_shape_has_sane_values(report: tuple[dict[str, Any], Path]) -> None:
    """One line for each case, in order, with positive finite figures that fit each other."""
    results = report[0]["results"]
    assert [(line["batch_size"], line["use_cache"]) for line in results] == [
        (1, True), (1, False), (2, True), (2, False),
    ]  # fmt: skip
    for line in results:
        assert line["answer_length"] == line["num_steps"] == 8
        # The adaptive schedule's last step but one leaves two places, which the last one reveals together.
        assert line["num_passes"] == 7
        assert line["tokens_equal"]
        assert set(line["generate"]) == set(line["plain"]) == ARM_FIELDS
        assert set(line["bare"]) == {"step_ms"}
        figures = [*line["generate"].values(), *line["plain"].values(), *line["bare"].values()]
        assert all(math.isfinite(figure) and figure > 0 for figure in figures)
        for name in RATIOS:
            ratio = line[name]
            assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
            assert ratio["num_pairs"] == 2 * (7 - 1)  # rounds x passes behind the first


def test_report_answers_are_not_trivial(report: tuple[dict[str, Any], Path]) -> None:
    """Control for the comparison of tokens: were all tokens alike, any two loops would agree."""
    assert all(line["num_distinct_tokens"] > 4 for line in report[0]["results"])


def test_json_flag_prints_report_and_else_table(decode: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is for one reader: a program with `--json`, a person without. Progress goes elsewhere."""
    arguments = ["--batch-size", "1", "--cache", "on", "--repeats", "1"]
    report = decode.main([*arguments, "--json"])
    assert json.loads(capsys.readouterr().out) == report
    decode.main(arguments)
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].startswith("batch answer cache")
    assert len(printed.out.splitlines()) == 2
    assert "decode: 100%" in printed.err


def test_plain_loop_other_tokens_fails_the_run(decode: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: a plain loop that reveals more than the schedule allows must be noticed, or its times mean nothing."""
    monkeypatch.setattr(decode.PlainLoop, "_num_to_reveal", lambda self, num_masked: min(num_masked, 2))
    with pytest.raises(RuntimeError, match="must have the tokens of `generate` after each step"):
        decode.main(["--batch-size", "1", "--cache", "on", "--repeats", "1"])


def test_plain_loop_other_tokens_in_bfloat16_only_says_so(decode: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding may change a token in bfloat16, so the report says it and the run goes on."""
    monkeypatch.setattr(decode.PlainLoop, "step", _reveal_a_wrong_token)
    report = decode.main(["--batch-size", "1", "--cache", "on", "--repeats", "1", "--dtype", "bfloat16"])
    assert not report["results"][0]["tokens_equal"]


def _reveal_a_wrong_token(self: Any) -> None:
    self.answer[0, 0] = 0


@pytest.mark.parametrize(
    ("use_cache", "expected"), [(True, {"generate": 1, "plain": 1}), (False, {"generate": 1, "plain": 7})]
)
def test_image_encodings_plain_without_cache_repeat(
    decode: ModuleType, model: torch.nn.Module, use_cache: bool, expected: dict[str, int]
) -> None:
    """`generate` encodes the image once; the plain loop, as the original, in each pass that sees it."""
    prompt = decode.make_prompt(model, decode.SHAPES["tiny"], 1)
    case = decode.Case(1, 8, 8, use_cache)
    calls = []
    handle = model.visual.register_forward_hook(lambda *_: calls.append(1))
    counts = {}
    decode.run_generate(model, prompt, case, decode.LockStep(model, time.perf_counter))
    counts["generate"], calls[:] = len(calls), []
    plain = decode.PlainLoop(model, prompt, 8, 8, use_cache)
    while (plain.answer == plain.mask_token_id).any():
        plain.step()
    counts["plain"] = len(calls)
    handle.remove()
    assert counts == expected


@pytest.mark.parametrize(("num_queries", "num_keys"), [(9, 21), (21, 21)])
def test_bare_layers_step_runs_the_tokens_of_a_step(
    decode: ModuleType, model: torch.nn.Module, num_queries: int, num_keys: int
) -> None:
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


def test_paired_ratio_compares_neighbouring_steps_without_the_first(decode: ModuleType) -> None:
    """Pairs 2/1, 4/1 and 6/2, 8/2 give 2, 4, 3, 4; the first step of each round, 9 to 1, does not count."""
    ratio = decode.paired_ratio([[9.0, 2.0, 4.0], [9.0, 6.0, 8.0]], [[1.0, 1.0, 1.0], [1.0, 2.0, 2.0]])
    assert ratio["median"] == 3.5
    assert (ratio["low"], ratio["high"]) == (2.25, 4.0)
    assert ratio["num_pairs"] == 4
    single = decode.paired_ratio([[9.0, 3.0]], [[1.0, 2.0]])
    assert single == {"median": 1.5, "low": 1.5, "high": 1.5, "num_pairs": 1}


def test_clock_cpu_leaves_out_waiting(decode: ModuleType) -> None:
    """Processor time is there for busy machines, where a process waits for its turn."""
    elapsed = {}
    for name in ("wall", "cpu"):
        clock = decode.make_clock(name, torch.device("cpu"))
        started = clock()
        time.sleep(0.2)
        elapsed[name] = clock() - started
    assert elapsed["wall"] >= 0.2
    assert elapsed["cpu"] < 0.1


def test_build_model_is_seeded_and_in_its_dtype(decode: ModuleType) -> None:
    """The 7B shape fits a GPU only when no float32 copy is made; figures repeat only when weights do."""
    shape = decode.SHAPES["tiny"]
    first, second = (decode.build_model(shape, "cpu", torch.bfloat16, "sdpa") for _ in range(2))
    assert {parameter.dtype for parameter in first.parameters()} == {torch.bfloat16}
    for name, parameter in first.named_parameters():
        torch.testing.assert_close(parameter, second.get_parameter(name), rtol=0, atol=0)
    # Control: the weights are drawn, not constant.
    assert first.lm_head.weight.std() > 0.01


def test_shapes_7b_is_the_released_model(decode: ModuleType, parity_dir: Path) -> None:
    """Parameter for parameter; nothing is allocated."""
    shapes = json.loads((parity_dir / "state_dict_7b.json").read_text())
    model = decode.build_model(decode.SHAPES["7b"], "meta", torch.bfloat16, "sdpa")
    ours = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    assert ours == {name: list(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "huge"], "invalid choice"),
        (["--batch-size", "0"], "--batch-size must be at least 1 (got 0)"),
        (["--answer-length", "8", "1"], "--answer-length must be at least 2 (got 1)"),
        (["--steps", "1"], "--steps must be at least 2 (got 1)"),
        (["--repeats", "0"], "--repeats must be at least 1 (got 0)"),
        (["--threads", "0"], "--threads must be at least 1 (got 0)"),
        (["--vocab-size", "63"], "--vocab-size must be at least 64"),
        (["--clock", "cpu", "--device", "cuda"], "--clock cpu must be used on the CPU"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(
    decode: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Before a model is made."""
    with pytest.raises(SystemExit):
        decode.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_arguments_gpu_without_one_is_refused(decode: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Torch's own message would come after minutes of work, or name a driver."""
    with pytest.raises(SystemExit):
        decode.main(["--device", "cuda"])
    assert "--device must be cpu on a machine without a GPU (got cuda)" in capsys.readouterr().err
