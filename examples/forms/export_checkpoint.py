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
"""Puts the trained forms model into the package: weights in bfloat16, processor, generation options, model card.

Of several checkpoints the weights are averaged (`docs/results.md`). The card's scores are those of the weights that
are written, on held-out forms. The old checkpoint stays until the new one is whole.

Command:
    python examples/forms/export_checkpoint.py runs/forms/extended/{words,decide} [--rows 500]

Hardware: one CPU core, a quarter of an hour.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from forms_evaluation import format_scores
from forms_evaluation import main as evaluate
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from dimple_hf import DimpleGenerationConfig
from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.hub import write_model_card

ANSWER_LENGTH = 48
"""Positions of an answer: those of the widest canvas in training."""
CONFIDENCE_THRESHOLD = 0.99
"""Loses one of a hundred whole texts that one position a pass has. The default of 0.95 saves a quarter of the passes,
and loses one or two more (`docs/results.md`)."""

DESCRIPTION = """\
A small model that reads images of forms: two to five rows, each with a printed label and a handwritten number of one
to four digits. It reads whole forms, finds a number by its label, counts rows and adds two numbers, in many wordings
of the question, and says so where there is no form or no answer on it. Each kind of question has one form of answer,
and nothing else can be expected of it:

| question | answer |
|---|---|
| Read the form. | `qty 12`, a line for each row |
| Read the form as JSON. | `{"qty":12,"age":345}`; also under a schema, with null for what is not on the form |
| How many rows are there? | `qty,age=2` |
| What is the age? | `age 345` |
| What is the sum of qty and age? | `qty 0012+age 0345=00357` |
| about a label that is not there, or anything else | `not on the form` |
| about an image without a form | `no form` |

It decides, by the labels of options, whether a label is on the form, whether there are more than a number of rows, how
many rows there are, and how many digits a number has; any number of such questions in one call. By the texts of
options (`reading="text"`) it also says which row comes first or last, and which of several numbers stands next to a
label.

In the scores, `schema` is JSON under the form's schema (layout `"padded"`), `shuffled` the same with the labels in
another order, and `nullable` with labels that are not on the form. `worked` and `add` are sums whose terms are given
by a prior. `rich` forms also have amounts, dates and checkboxes. `held-out words` are wordings that training never
used. Learned in part only, as the scores show: several numbers in an order of one's own (`fields`; use a schema), rich
forms, lists of labels, other decisions (`decide_one` and `decide` ask all types), such as comparing a number with
another. Not learned: choices whose options change by their labels.

The handwriting is that of the UCI data set "Optical Recognition of Handwritten Digits" (1,797 digits, as in
scikit-learn's `load_digits`). 1,400 of the digits were used in training, the other 397 in the images of the scores
below. Trained by `examples/forms` of dimple_hf: a vision stage instead of a public pretrained tower, autoregressive
training, then diffusion (`recipe.yaml`); more of both vision and diffusion (`recipe_extend.yaml`); and a curriculum of
decisions with reading beside them, in earlier forms of `train_decisions.py`."""


def average_models(trained: Sequence[Path], dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """The last of these checkpoints in `dtype`, with the mean of the weights of all (stochastic weight averaging,
    Izmailov et al., 2018, arXiv:1803.05407).
    """
    mean = AutoModelForImageTextToText.from_pretrained(trained[-1], dtype=dtype)
    models = [AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32) for path in trained]
    with torch.no_grad():
        for weight, *weights in zip(mean.parameters(), *(model.parameters() for model in models), strict=True):
            weight.copy_(torch.stack(weights).mean(dim=0))
    return mean


def write_checkpoint(trained: Sequence[Path], directory: Path) -> None:
    """Writes model and processor in the form in which they ship.

    Args:
        trained (`Sequence[Path]`): What stages of the recipe left; the processor is the last one's.
        directory (`Path`): Where to write; created.
    """
    model = average_models(trained)
    model.config.loss_normalization = "token"  # the default; what the last stage needed is no user's concern
    special = {name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = DimpleGenerationConfig(
        **special,
        mask_token_id=model.config.mask_token_id,
        max_new_tokens=ANSWER_LENGTH,
        confidence_threshold=CONFIDENCE_THRESHOLD,
    )
    model.save_pretrained(directory)
    AutoProcessor.from_pretrained(trained[-1]).save_pretrained(directory)
    # Inside the package the code is the package's own.
    for code in directory.glob("*.py"):
        code.unlink()
    for file in directory.glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("auto_map", None) is not None:
            file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, nargs="+", help="directories of the recipe's last stage, or last stages")
    parser.add_argument("--output", type=Path, default=FORMS_CHECKPOINT)
    parser.add_argument("--rows", type=int, default=500, help="held-out forms of each kind (default: %(default)s)")
    args = parser.parse_args()
    unfinished = args.output.with_name(args.output.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_checkpoint(args.trained, unfinished)
    report = evaluate(["--model", str(unfinished), "--rows", str(args.rows), "--decodings", "confident"])
    write_model_card(
        unfinished,
        repo_id="dimple-forms",
        description=f"{DESCRIPTION}\n\n{format_scores(report)}",
        question="Read the form.",
        scores=report["scores"]["confident"],
        scores_data=f"{args.rows} held-out forms for each kind of question",
        license="apache-2.0",
    )
    shutil.rmtree(args.output, ignore_errors=True)
    unfinished.rename(args.output)


if __name__ == "__main__":
    main()
