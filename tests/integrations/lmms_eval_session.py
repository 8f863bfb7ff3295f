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
from collections.abc import Callable
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
    "refusals": {
        "unknown": refusal(lambda: evaluate("confidence_treshold=0.9")),
        "argument": refusal(lambda: Dimple(pretraned=checkpoint)),
        "batch_size": refusal(lambda: evaluate("preset=paper-8", batch_size="auto")),
        "dtype": refusal(lambda: Dimple(checkpoint, dtype="float12")),
        "causal": refusal(lambda: Dimple(causal_checkpoint)),
        "other": refusal(lambda: Dimple(other_model)),
        "likelihood": refusal(lambda: Dimple(checkpoint).loglikelihood([])),
        "rounds": refusal(lambda: Dimple(checkpoint).generate_until_multi_round([])),
    },
}
print(json.dumps(report))
