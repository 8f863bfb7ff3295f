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
"""Model cards: the `README.md` of a model or an adapter, written from its own files.

Nothing is invented: the license, the data sets and the scores are the author's to state; the rest is read from the
configurations and from the headers of the weights. The metadata follow the Hub's model card specification, which
huggingface_hub implements.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, get_local_safetensors_metadata
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..data.whole_file import whole_file
from ..modeling import DimpleConfig, DimpleGenerationConfig
from ..modeling.adapter_dimple import MODE_KEY
from ..modeling.generation_config_dimple import DIFFUSION_OPTIONS, SHARED_OPTIONS
from ..modeling.weight_files_dimple import read_json

ADAPTER_CONFIG = "adapter_config.json"

TAGS = ("dimple", "diffusion-language-model", "masked-diffusion", "vision-language-model")

#: Generation options that do not change how answers are decoded. The others are listed when a checkpoint sets them.
OTHER_OPTIONS = (
    "bos_token_id", "eos_token_id", "mask_token_id", "num_return_sequences", "output_history", "pad_token_id",
    "return_dict_in_generate", "transformers_version",
)  # fmt: skip

#: By mode; `None`: an adapter that does not record it.
WHAT_IT_IS = {
    True: "a [Dimple](https://arxiv.org/abs/2505.16990): a vision-language model that does not write its answers from "
    "left to right. It starts from an answer that is all masks and fills in, at each pass, every token that it is "
    "sure of",
    False: "a [Dimple](https://arxiv.org/abs/2505.16990) in its first, autoregressive phase: a vision-language model "
    "that writes its answers from left to right, one token a pass. Filling in many tokens at once is what the "
    "diffusion phase teaches it afterwards",
    None: "a [Dimple](https://arxiv.org/abs/2505.16990), a diffusion vision-language model",
}

MODES = {
    True: "diffusion: every token sees every token (`full_attn_mask: true`)",
    False: "autoregressive: a token sees what stands before it (`full_attn_mask: false`)",
    None: "not recorded in the adapter; the base model's",
}

MODEL_SNIPPET = """\
from transformers import AutoModelForImageTextToText, AutoProcessor
import dimple_hf  # registers Dimple with transformers

model_id = {repo_id}
processor = AutoProcessor.from_pretrained(model_id)
model = AutoModelForImageTextToText.from_pretrained(model_id, dtype="auto", device_map="auto")
"""

ADAPTER_SNIPPET = """\
from transformers import AutoModelForImageTextToText, AutoProcessor
import dimple_hf  # registers Dimple with transformers

base_id = {base_id}
processor = AutoProcessor.from_pretrained(base_id)
model = AutoModelForImageTextToText.from_pretrained(base_id, dtype="auto", device_map="auto")
model.load_adapter({repo_id})  # and switches the model to the mode that the adapter was trained in
"""

QUESTION_SNIPPET = """
content = [{{"type": "image", "path": "photo.png"}}, {{"type": "text", "text": {question}}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device)
output = model.generate(**inputs, max_new_tokens={max_new_tokens})
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""

WITH_CODE = (
    "`pip install dimple_hf` for the line that imports it. Without the package, leave that line out and pass "
    "`trust_remote_code=True` to both `from_pretrained`: this repository brings the code."
)
WITHOUT_CODE = "The package is needed: `pip install dimple_hf`."
ADAPTER_CODE = (
    "`pip install dimple_hf peft`. Without `dimple_hf`, leave its line out and pass `trust_remote_code=True` to both "
    "`from_pretrained`, if the base model's repository brings this package's code (`modeling_dimple.py` beside "
    "`adapter_dimple.py`)."
)

CITATION = """\
```bibtex
@misc{yu2025dimple,
  title = {Dimple: Discrete Diffusion Multimodal Large Language Model with Parallel Decoding},
  author = {Runpeng Yu and Xinyin Ma and Xinchao Wang},
  year = {2025},
  eprint = {2505.16990},
  archivePrefix = {arXiv},
}
```"""


def write_model_card(directory: str | os.PathLike, overwrite: bool = False, **options: Any) -> Path:
    """
    Writes the `README.md` of a model or an adapter.

    Args:
        directory (`str` or `os.PathLike`):
            Where the model or adapter lies.
        overwrite (`bool`, defaults to `False`):
            Whether to replace a `README.md` that somebody wrote. The empty form that PEFT puts there is replaced
            anyway.
        **options:
            See [`build_model_card`].

    Returns:
        `Path`: The file.

    Raises:
        ValueError: If there is a `README.md` already, or for the reasons of [`build_model_card`].

    Example:

    ```python
    >>> from dimple_hf.hub import write_model_card

    >>> write_model_card("runs/receipts", license="apache-2.0", scores={"text/fields": 0.97})
    ```
    """
    path = Path(directory) / "README.md"
    if path.exists() and not overwrite and not is_blank_card(path.read_text(encoding="utf-8")):
        raise ValueError(
            f"`overwrite` must be True to replace a card that is there already (`--overwrite`; got {path})"
        )
    card = build_model_card(directory, **options)
    with whole_file(path) as file:
        file.write(str(card).encode())
    return path


def is_blank_card(text: str) -> bool:
    """
    Whether a card is the Hub's form with nothing filled in, as PEFT saves it beside every adapter.

    Args:
        text (`str`):
            Content of a `README.md`.

    Returns:
        `bool`: Whether nothing but metadata and a heading for library versions was added to the form.
    """
    form = ModelCard.from_template(ModelCardData()).text.split()
    words = ModelCard(text, ignore_metadata_errors=True).text.split()
    added = " ".join(words[len(form) :])
    return words[: len(form)] == form and re.fullmatch(r"(### Framework versions( - PEFT \S+)+)?", added) is not None


def build_model_card(
    directory: str | os.PathLike,
    repo_id: str | None = None,
    description: str | None = None,
    question: str = "What is in the image?",
    scores: Mapping[str, float] | None = None,
    scores_data: str = "evaluation data",
    base_models: Sequence[str] = (),
    license: str | None = None,
    datasets: Sequence[str] = (),
) -> ModelCard:
    """
    Describes a model or an adapter. No weights are read.

    Args:
        directory (`str` or `os.PathLike`):
            Where the model (`config.json`) or adapter (`adapter_config.json`) lies.
        repo_id (`str`, *optional*):
            What the snippet loads, such as `"owner/name"`; the directory's name when missing.
        description (`str`, *optional*):
            What it was trained for, in the author's words. Stands first.
        question (`str`, defaults to `"What is in the image?"`):
            What the snippet asks.
        scores (`Mapping[str, float]`, *optional*):
            Name of a score to its value, such as `{"text/fields": 0.97, "passes_per_token": 0.3}`.
        scores_data (`str`, defaults to `"evaluation data"`):
            What the scores were measured on: a name, or the id of a data set on the Hub.
        base_models (`Sequence[str]`, *optional*):
            Hub ids of what this was made from; an adapter's is taken from its own files when missing.
        license (`str`, *optional*):
            The license as the Hub abbreviates it, such as `"apache-2.0"`. Left out when missing.
        datasets (`Sequence[str]`, *optional*):
            Hub ids of the training data.

    Returns:
        `ModelCard`

    Raises:
        ValueError: If the directory holds no Dimple and no adapter, or one without weights, a score is no number, an
            id is malformed, or an adapter's base model is unknown.
    """
    directory = Path(directory)
    for name, ids in (("base_models", base_models), ("datasets", datasets)):
        _check_ids(name, ids)
    if repo_id is not None:
        _check_ids("repo_id", [repo_id])
    _check_scores(scores)
    repo_id = repo_id or directory.resolve().name
    is_adapter = (directory / ADAPTER_CONFIG).is_file()
    describe = _describe_adapter if is_adapter else _describe_model
    metadata, introduction, usage, facts = describe(directory, repo_id, question, list(base_models))

    name = repo_id.rpartition("/")[2]
    data = ModelCardData(
        pipeline_tag="image-text-to-text",
        license=license,
        datasets=list(datasets) or None,
        model_name=name if scores else None,
        eval_results=_eval_results(scores, scores_data) if scores else None,
        **metadata,
    )
    sections = [f"# {name}"]
    sections += [description.strip()] if description else []
    sections += [introduction, usage, "## Facts\n\n" + _table(("", ""), facts)]
    if scores:
        rows = [(f"`{key}`", f"{value:.4g}") for key, value in scores.items()]
        sections.append(f"## Scores\n\nOn {scores_data}.\n\n" + _table(("score", "value"), rows))
    sections.append("## Citation\n\n" + CITATION)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


#: What differs between a model's card and an adapter's: metadata, introduction, section on use, rows of facts.
Parts = tuple[dict[str, Any], str, str, list[tuple[str, str]]]


def _describe_model(directory: Path, repo_id: str, question: str, base_models: list[str]) -> Parts:
    raw = read_json(directory / "config.json")
    if raw.get("model_type") != DimpleConfig.model_type:
        raise ValueError(
            f"a model card is written for a Dimple or an adapter (got a model of type {raw.get('model_type')!r} in "
            f"{directory})"
        )
    config = DimpleConfig.from_pretrained(directory)
    metadata: dict[str, Any] = {"library_name": "transformers", "tags": list(TAGS)}
    if base_models:
        metadata["base_model"] = base_models
    if "quantization_config" in raw and base_models:
        metadata["base_model_relation"] = "quantized"

    set_options = _set_decoding_options(directory)
    snippet = MODEL_SNIPPET.format(repo_id=_quoted(repo_id)) + _question_snippet(question, set_options)
    # The original's code, which a repository may hold instead, has no entry for this Auto class.
    module = raw.get("auto_map", {}).get("AutoModelForImageTextToText", "").partition(".")[0]
    has_code = (directory / f"{module}.py").is_file()
    vision = config.vision_config
    facts = [
        ("phase", MODES[config.full_attn_mask]),
        ("parameters", _count_parameters(directory)),
        (
            "language model",
            f"{config.num_hidden_layers} layers, width {config.hidden_size:,}, {config.vocab_size:,} tokens, "
            f"sequences of up to {config.max_position_embeddings:,}",
        ),
        (
            "vision tower",
            f"{vision.depth} layers, width {vision.hidden_size:,}, patches of {vision.patch_size} pixels",
        ),
        *_pixel_bounds(directory),
    ]
    if set_options:
        facts.append(("decoding", _settings(set_options)))
    if config.loss_weighting != "uniform" or config.complementary_masks:
        loss = {"loss_weighting": config.loss_weighting, "complementary_masks": config.complementary_masks}
        facts.append(("diffusion loss", _settings(loss)))
    if "quantization_config" in raw:
        facts.append(("quantization", f"`{raw['quantization_config'].get('quant_method')}`"))
    return (
        metadata,
        f"This is {WHAT_IT_IS[config.full_attn_mask]}.",
        _usage(snippet, WITH_CODE if has_code else WITHOUT_CODE),
        facts,
    )


def _describe_adapter(directory: Path, repo_id: str, question: str, base_models: list[str]) -> Parts:
    raw = read_json(directory / ADAPTER_CONFIG)
    if not base_models:
        base_models = [_base_of_adapter(raw)]
    kind = "DoRA" if raw.get("use_dora") else {"LORA": "LoRA"}.get(raw["peft_type"], raw["peft_type"])
    mode = (raw.get("auto_mapping") or {}).get(MODE_KEY)
    metadata = {
        "library_name": "peft",
        "base_model": base_models,
        "base_model_relation": "adapter",
        "tags": [*TAGS, kind.lower()],
    }
    snippet = ADAPTER_SNIPPET.format(base_id=_quoted(base_models[0]), repo_id=_quoted(repo_id)) + _question_snippet(
        question, {}
    )
    facts = [("phase", MODES[mode]), ("parameters", _count_parameters(directory / "adapter_model.safetensors"))]
    sizes = {name: raw[name] for name in ("r", "lora_alpha", "lora_dropout") if raw.get(name) is not None}
    if sizes:
        facts.append(("sizes", _settings(sizes)))
    targets = raw.get("target_modules")
    if targets:
        facts.append(("adapts", _code(targets if isinstance(targets, str) else ", ".join(sorted(targets)))))
    if raw.get("modules_to_save"):
        facts.append(("trained whole", _code(", ".join(sorted(raw["modules_to_save"])))))
    base = f"[{base_models[0]}](https://huggingface.co/{base_models[0]})"
    return (
        metadata,
        f"This is a {kind} adapter for {base}, which is {WHAT_IT_IS[mode]}.",
        _usage(snippet, ADAPTER_CODE),
        facts,
    )


def _base_of_adapter(raw: dict[str, Any]) -> str:
    """The base model's Hub id; PEFT notes what the base was loaded from, which may be a directory."""
    base = raw.get("base_model_name_or_path") or ""
    if base.count("/") != 1 or Path(base).exists() or not _is_repo_id(base):
        raise ValueError(
            f"`base_models` must name the adapter's base model by its Hub id (got none, and {base!r} in "
            f"{ADAPTER_CONFIG}, which is no id)"
        )
    return base


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _check_ids(name: str, ids: Sequence[str]) -> None:
    if isinstance(ids, str):
        raise ValueError(f"`{name}` must be a list of Hub ids (got the string {ids!r})")
    for repo_id in ids:
        if not _is_repo_id(repo_id):
            raise ValueError(f"`{name}` must have the form of a Hub id, such as 'owner/name' (got {repo_id!r})")


def _check_scores(scores: Mapping[str, float] | None) -> None:
    for name, value in (scores or {}).items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"`scores` must be finite numbers by name (got {value!r} for {name!r})")


def _eval_results(scores: Mapping[str, float], scores_data: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=scores_data.lower().replace(" ", "-"),
            dataset_name=scores_data,
            metric_type=name.rpartition("/")[2],
            metric_name=name,
            metric_value=value,
        )
        for name, value in scores.items()
    ]


def _count_parameters(weights: Path) -> str:
    """How many numbers are stored in which type, from the headers of the files."""
    counts = get_local_safetensors_metadata(weights).parameter_count
    return ", ".join(f"{count:,} in {dtype}" for dtype, count in sorted(counts.items(), key=lambda item: -item[1]))


def _set_decoding_options(directory: Path) -> dict[str, Any]:
    """Decoding options in the checkpoint's generation config that differ from the package's defaults."""
    if not (directory / "generation_config.json").is_file():
        return {}
    options, defaults = DimpleGenerationConfig.from_pretrained(directory), DimpleGenerationConfig()
    return {
        name: getattr(options, name)
        for name in (*SHARED_OPTIONS, *DIFFUSION_OPTIONS)
        if name not in OTHER_OPTIONS and getattr(options, name) != getattr(defaults, name)
    }


def _pixel_bounds(directory: Path) -> list[tuple[str, str]]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (directory / name).is_file():
            raw = read_json(directory / name)
            raw = raw.get("image_processor", raw)
            size = raw.get("size") or {}
            least = raw.get("min_pixels", size.get("shortest_edge"))
            most = raw.get("max_pixels", size.get("longest_edge"))
            if least is not None and most is not None:
                return [("images", f"scaled to {least:,} pixels at least and {most:,} at most")]
    return []


def _question_snippet(question: str, set_options: dict[str, Any]) -> str:
    max_new_tokens = set_options.get("max_new_tokens", 64)
    return QUESTION_SNIPPET.format(question=_quoted(question), max_new_tokens=max_new_tokens)


def _quoted(text: str) -> str:
    """A Python string in double quotes, like the rest of the snippet. JSON's escapes are Python's, too."""
    return json.dumps(text, ensure_ascii=False)


def _usage(snippet: str, remark: str) -> str:
    return f"## Use\n\n```python\n{snippet}```\n\n{remark}"


def _settings(options: dict[str, Any]) -> str:
    return ", ".join(f"`{name}` {value}" for name, value in options.items())


def _code(text: str) -> str:
    return f"`{text}`"


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    # A bar would end the cell, in code too.
    return "\n".join(lines + [f"| {name} | {value} |" for name, value in _escaped(rows)])


def _escaped(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name.replace("|", "\\|"), value.replace("|", "\\|")) for name, value in rows]
