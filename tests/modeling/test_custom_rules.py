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
"""Rules and cache policies in a user's file: only public names, with everything that `generate` has.

`docs/custom_rules.md` and `examples/custom_rule.py` are run here, too.
"""

import json
import re
import runpy
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MASK, MIXED_PROMPTS, model_inputs, tiny_model
from transformers import AutoModel, AutoProcessor
from transformers.generation.streamers import BaseStreamer

from dimple_hf import DimpleForConditionalGeneration, StructurePrior
from dimple_hf.modeling import DecodingState

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import quality

LENGTH = 10


def falling_threshold(
    logits: torch.Tensor, confidence: torch.Tensor, masked: torch.Tensor, state: DecodingState
) -> torch.Tensor:
    """A rule that reads the state of a row."""
    return masked & (confidence > (0.3 - 0.2 * state.progress)[:, None])


@dataclass(frozen=True)
class SecondThoughts:
    """A rule with an option, memory, and a method that remasks."""

    threshold: float = 0.2

    def __call__(
        self, logits: torch.Tensor, confidence: torch.Tensor, masked: torch.Tensor, state: DecodingState
    ) -> torch.Tensor:
        steps = state.memory.get("steps", torch.zeros_like(masked[:, 0], dtype=torch.long))
        state.memory["steps"] = steps + 1
        return masked & (confidence > self.threshold + 0.02 * steps[:, None])

    def remask(
        self, logits: torch.Tensor, confidence: torch.Tensor, masked: torch.Tensor, state: DecodingState
    ) -> torch.Tensor:
        provisional = state.provisional & state.scored
        value = confidence.masked_fill(~provisional, 2.0)
        is_least = torch.zeros_like(masked).scatter(1, value.argmin(dim=1, keepdim=True), True)
        return provisional & is_least & (state.provisional.sum(dim=1, keepdim=True) > 1) & (confidence < 0.6)


RULES = [pytest.param(falling_threshold, id="function"), pytest.param(SecondThoughts(), id="object")]


class TwoBlocks:
    """A cache policy: the row's block and the one after it run."""

    block_length = 3

    def is_stale(self, age: int, is_new_block: bool) -> bool:
        return is_new_block or age >= 3

    def window(self, block: int, answer_length: int) -> tuple[int, int]:
        return 3 * block, min(3 * block + 6, answer_length)


#: What a rule must work with; each combined with each rule.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sampling": {"do_sample": True, "temperature": 1.5, "top_p": 0.9},
    "blocks": {"block_length": 3},
    "few steps": {"max_denoising_steps": 3},
    "none": {"cache_policy": "none"},
    "refresh": {"cache_policy": "refresh", "cache_refresh_interval": 2},
    "prefix": {"cache_policy": "prefix", "block_length": 3},
    "dual": {"cache_policy": "dual", "block_length": 3},
    "own policy": {"cache_policy": TwoBlocks(), "block_length": 3},
    "static": {"cache_implementation": "static"},
    "grown": {"initial_answer_length": 4},
}


def decode(model: DimpleForConditionalGeneration, *prompts: Any, **options: Any) -> Any:
    torch.manual_seed(5)
    given = {"max_new_tokens": LENGTH, "return_dict_in_generate": True, "output_history": True}
    return model.generate(**model_inputs(*prompts), **(given | options))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES)
def test_rule_of_a_users_file_works_with_everything(
    model: DimpleForConditionalGeneration, rule: Any, way: str
) -> None:
    """Answers are complete, and but for sampling each row is as if it were alone."""
    together = decode(model, *MIXED_PROMPTS, sampler=rule, **WAYS[way])
    assert not (together.sequences == MASK).any()
    assert together.token_logprobs.isfinite().all()
    if way == "sampling":
        again = decode(model, *MIXED_PROMPTS, sampler=rule, **WAYS[way])
        assert torch.equal(together.sequences, again.sequences)
        return
    for row, prompt in enumerate(MIXED_PROMPTS):
        alone = decode(model, prompt, sampler=rule, **WAYS[way])
        assert torch.equal(together.sequences[row, -LENGTH:], alone.sequences[0, -LENGTH:])
        assert together.num_forward_passes[row] == alone.num_forward_passes[0]
        assert torch.equal(together.commit_steps[row], alone.commit_steps[0])


@pytest.mark.parametrize("rule", RULES)
def test_rule_of_a_users_file_changes_what_is_committed(model: DimpleForConditionalGeneration, rule: Any) -> None:
    """Control of the test above: the rule is called, and remasks."""
    history = decode(model, *MIXED_PROMPTS, sampler=rule).history
    assert str(history) != str(decode(model, *MIXED_PROMPTS).history)
    remasks = [((a[:, -LENGTH:] != MASK) & (b[:, -LENGTH:] == MASK)).any() for a, b in pairwise(history)]
    assert any(remasks) == hasattr(rule, "remask")


@pytest.mark.parametrize("rule", RULES)
def test_rule_of_a_users_file_streams_final_tokens(model: DimpleForConditionalGeneration, rule: Any) -> None:
    """A token is sent when it stays."""

    class Recorder(BaseStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            pass

    recorder = Recorder()
    output = decode(model, MIXED_PROMPTS[1], sampler=rule, streamer=recorder)
    assert recorder.tokens == output.sequences[0].tolist()
    steps = list(model.generate_steps(**model_inputs(MIXED_PROMPTS[1]), max_new_tokens=LENGTH, sampler=rule))
    assert torch.equal(steps[-1].answer_ids, output.sequences[:, -LENGTH:])


@pytest.mark.parametrize("rule", RULES)
def test_rule_of_a_users_file_keeps_to_a_structure_prior(parity_dir: Path, rule: Any) -> None:
    """Whatever random weights and the rule say, the answer is of the schema."""
    processor = AutoProcessor.from_pretrained(parity_dir / "checkpoint")
    model = AutoModel.from_pretrained(parity_dir / "checkpoint")
    prior = StructurePrior.from_json_schema({"enum": ["yes", "no", "perhaps"]})
    messages = [{"role": "user", "content": "Is it?"}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"structure_prior": prior},
    )  # fmt: skip
    sequences = model.generate(**inputs, sampler=rule)
    assert processor.parse(sequences, prior) in ("yes", "no", "perhaps")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda masked: masked.float(), r"`sampler` must return a bool tensor .*torch.float32"),
        (lambda masked: masked[:, :-1], r"`sampler` must return a bool tensor of shape \(1, 10\) .*\(1, 9\)"),
        (lambda masked: [0], r"`sampler` must return a bool tensor .*list"),
    ],
)
def test_rule_that_returns_something_else_is_refused(
    model: DimpleForConditionalGeneration, result: Any, message: str
) -> None:
    """By name and with what it returned; positions that are not masked are ignored."""
    with pytest.raises(ValueError, match=message):
        decode(model, MIXED_PROMPTS[0], sampler=lambda logits, confidence, masked, state: result(masked))
    everything = decode(model, MIXED_PROMPTS[0], sampler=lambda logits, confidence, masked, state: masked | True)
    assert everything.num_forward_passes.tolist() == [1]  # control


def test_policy_without_its_members_is_refused(model: DimpleForConditionalGeneration) -> None:
    """Before any pass."""
    with pytest.raises(ValueError, match="`cache_policy` must be a name or have `block_length`"):
        decode(model, MIXED_PROMPTS[0], cache_policy=object())


def test_page_snippets_run_in_order_and_show_the_example(repo_root: Path, parity_dir: Path) -> None:
    """What the page walks through is the example's own text."""
    page = (repo_root / "docs" / "custom_rules.md").read_text()
    example = (repo_root / "examples" / "custom_rule.py").read_text()
    assert example[example.index("def falling_threshold") :].strip() in page
    processor = AutoProcessor.from_pretrained(parity_dir / "checkpoint")
    messages = [{"role": "user", "content": "Read the receipt."}]
    namespace: dict[str, Any] = {
        "model": AutoModel.from_pretrained(parity_dir / "checkpoint"),
        "inputs": processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ),
    }
    snippets = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert len(snippets) == 6
    for snippet in snippets:
        exec(compile(snippet, "custom_rules.md", "exec"), namespace)


@pytest.mark.slow  # `tests/benchmarks/test_quality.py` runs the script on rules of the package
def test_page_command_compares_the_example(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one form of each kind, one wording and two lines, in place of minutes."""
    page = (repo_root / "docs" / "custom_rules.md").read_text()
    (command,) = re.findall(r"^```bash\npython benchmarks/quality.py (.*)\n```", page, flags=re.MULTILINE)
    threshold = {"threshold 0.9": {"confidence_threshold": 0.9}}
    reference = {"reference": quality.DECODINGS["reference"], "threshold": threshold}
    monkeypatch.setattr(quality, "DECODINGS", reference)
    monkeypatch.setattr(quality, "NUM_WORDINGS", 1)
    monkeypatch.chdir(tmp_path)
    rule = "examples/custom_rule.py:falling_threshold"
    arguments = command.replace("examples/", f"{repo_root}/examples/").split()
    report = quality.main([*arguments, "--rows", "1"])
    names = list(report["results"])
    assert names == [quality.REFERENCE, "threshold 0.9", f"{repo_root}/{rule}"]
    assert json.loads((tmp_path / "falling.json").read_text()) == report
    assert (tmp_path / "falling.png").stat().st_size > 1000
    assert report["results"][names[2]]["passes"] < report["results"][quality.REFERENCE]["passes"]
    assert rule in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reference", "message"),
    [("nowhere.py:rule", "must be PATH:NAME"), ("rule", "must be PATH:NAME"), ("{file}:nothing", "must name a func")],
)
def test_rule_that_cannot_be_loaded_is_refused(
    tmp_path: Path, reference: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the model is loaded."""
    file = tmp_path / "own.py"
    file.write_text("nothing = 3\n")
    with pytest.raises(SystemExit):
        quality.main(["--rule", reference.format(file=file), "--output", str(tmp_path / "q.json")])
    assert message in capsys.readouterr().err
    assert runpy.run_path(str(file))["nothing"] == 3  # control


def test_tiny_model_of_another_seed_differs() -> None:
    """Control of the equalities above: rows are not all alike."""
    assert len({tuple(row) for row in decode(tiny_model(seed=1), *MIXED_PROMPTS).sequences.tolist()}) == 4
