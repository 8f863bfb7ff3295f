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
"""What one process of lmms-eval does for `test_lmms_eval.py`: asks the forms in several ways, and what is refused.

Usage: `python lmms_eval_session.py CHECKPOINT CAUSAL_CHECKPOINT OTHER_MODEL NUM_ROWS`, from the root of the clone.
Prints one JSON object as its last line.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager

checkpoint, causal_checkpoint, other_model = sys.argv[1:4]
num_rows = int(sys.argv[4])
Dimple = get_model("dimple")  # by the entry point
tasks = TaskManager(include_path="examples/forms/lmms_eval", include_defaults=False)


def evaluate(model_args: str, **options: Any) -> dict[str, Any]:
    """Answers and scores of the first rows, and what they cost."""
    results = simple_evaluate(
        "dimple",
        model_args=f"pretrained={checkpoint},dtype=float32,{model_args}",
        tasks=["handwritten_forms"],
        task_manager=tasks,
        limit=num_rows,
        device="cpu",
        bootstrap_iters=0,
        **options,
    )
    samples = results["samples"]["handwritten_forms"]
    return {
        "answers": [sample["filtered_resps"][0] for sample in samples],
        "num_tokens": [sample["token_counts"][0]["output_tokens"] for sample in samples],
        "throughput": results["throughput"],
    }


def evaluate_choices() -> dict[str, Any]:
    """Accuracy and values of two questions with two choices, of which the first is what the forms may say."""
    folder = Path(tempfile.mkdtemp())
    rows = [
        {"question": "What is the sum of age and qty?", "choices": ["age 3", "nothing at all"], "answer": 0},
        {"question": "Read the form.", "choices": ["age 3", "zzz"], "answer": 0},
    ]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "choices",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "choices.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "choices.yaml").write_text(json.dumps(task))
    results = simple_evaluate(
        "dimple",
        model_args=f"pretrained={checkpoint},dtype=float32",
        tasks=["choices"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        force_simple=True,
        device="cpu",
        batch_size=32,
        bootstrap_iters=0,
    )
    return {
        "accuracy": results["results"]["choices"]["acc,none"],
        "values": [sample["filtered_resps"] for sample in results["samples"]["choices"]],
    }


def refusal(call: Callable[[], Any]) -> str:
    """What the error of a call says."""
    try:
        call()
    except (ValueError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was refused")


report = {
    "paper": evaluate("preset=paper-8", batch_size=5),
    "cut": evaluate("preset=confident-16", gen_kwargs="until=e,image_aspect_ratio=pad"),
    "choices": evaluate_choices(),
    "refusals": {
        "unknown": refusal(lambda: evaluate("confidence_treshold=0.9")),
        "argument": refusal(lambda: Dimple(pretraned=checkpoint)),
        "batch_size": refusal(lambda: evaluate("preset=paper-8", batch_size="auto")),
        "dtype": refusal(lambda: Dimple(checkpoint, dtype="float12")),
        "causal": refusal(lambda: Dimple(causal_checkpoint)),
        "other": refusal(lambda: Dimple(other_model)),
        "simple": refusal(lambda: get_model("dimple", force_simple=True)(checkpoint).generate_until([])),
        "rounds": refusal(lambda: Dimple(checkpoint).generate_until_multi_round([])),
    },
}
print(json.dumps(report))
