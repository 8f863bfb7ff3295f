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
"""Recipes: YAML files for `dimple-hf train`, checked as a whole before anything expensive happens.

An unknown key is refused with the nearest known one, a missing file and a contradiction with the position in the YAML
where they are. `docs/fine_tuning.md` describes every key.
"""

import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml
from peft import LoraConfig
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.utils import is_bitsandbytes_available

from ..data.images import describe_no_data
from ..data.sources import Source, read_source
from ..modeling.generation_config_dimple import nearest_name
from .adapters import check_initialization, lora_config
from .collator import DimpleDataCollator, check_options
from .option_types import check_fields, on_one_line
from .stages import PARTS, STAGE_FIELDS, STAGES, Stage

RECIPE_KEYS = (
    "model", "output_dir", "data", "stages", "collator", "trainer", "held_out", "peft", "quantization", "dtype",
    "attn_implementation", "seed",
)  # fmt: skip
REQUIRED_KEYS = ("model", "output_dir", "data", "stages")
DATA_KEYS = ("train", "eval")
SOURCE_KEYS = tuple(field.name for field in fields(Source))
STAGE_KEYS = (*STAGE_FIELDS, "data", "collator", "trainer")
HELD_OUT_KEYS = ("num_examples", "max_new_tokens")
QUANTIZATIONS = ("nf4", "int8")
DTYPES = ("float32", "bfloat16", "auto")
ATTN_IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")

#: Arguments of the Trainer that follow from other parts of a recipe -> where to set them instead.
MANAGED_ARGUMENTS = {
    "output_dir": "`output_dir` of the recipe",
    "seed": "`seed` of the recipe",
    "learning_rate": "`learning_rate` of a stage",
    "lr_scheduler_type": "`warmup_ratio` and `decay_ratio` of a stage",
    "lr_scheduler_kwargs": "`warmup_ratio` and `decay_ratio` of a stage",
    "warmup_steps": "`warmup_ratio` of a stage",
    "max_grad_norm": "`max_grad_norm` of a stage",
    "num_train_epochs": "`num_epochs` of a stage",
    "max_steps": "`max_steps` of a stage",
    "gradient_accumulation_steps": "`batch_size` of a stage, which is that of the whole optimizer step",
    "auto_find_batch_size": "`batch_size` of a stage and `per_device_train_batch_size`",
    "resume_from_checkpoint": "nothing: the same command goes on where it was interrupted",
    "remove_unused_columns": "nothing: the collator needs all columns",
    "label_smoothing_factor": "nothing: the model computes its own loss",
    "hub_token": "`hf auth login`: a recipe must not hold secrets",
    "gradient_checkpointing": "`activation_checkpointing`, its new name",
    "gradient_checkpointing_kwargs": "`activation_checkpointing_kwargs`, its new name",
}
TRAINER_KEYS = tuple(field.name for field in fields(TrainingArguments) if field.init)

#: Arguments of the Trainer -> where their numbers must lie.
TRAINER_RANGES = {
    "per_device_train_batch_size": ">= 1",
    "per_device_eval_batch_size": ">= 1",
    "weight_decay": ">= 0",
    "adam_beta1": "in [0, 1)",
    "adam_beta2": "in [0, 1)",
    "adam_epsilon": ">= 0",
    "neftune_noise_alpha": ">= 0",
    "logging_steps": "> 0",
    "save_steps": "> 0",
    "eval_steps": "> 0",
    "eval_delay": ">= 0",
    "eval_accumulation_steps": ">= 1",
    "torch_empty_cache_steps": ">= 1",
    "dataloader_num_workers": ">= 0",
    "dataloader_prefetch_factor": ">= 1",
    "ddp_timeout": "> 0",
    "ddp_bucket_cap_mb": "> 0",
    "data_seed": "from 0 to 2**63 - 1",
}

#: Arguments of the Trainer that take other types than they announce.
TRAINER_TYPES = {"fsdp": bool | str | list[str] | None, "accelerator_config": AcceleratorConfig | None}

#: Fields of `LoraConfig` that a recipe does not choose.
MANAGED_PEFT_FIELDS = (
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "modules_to_save", "runtime_config",
)  # fmt: skip
PEFT_KEYS = tuple(field.name for field in fields(LoraConfig) if field.name not in MANAGED_PEFT_FIELDS)
COLLATOR_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(DimpleDataCollator).parameters.items()
    if name != "processor"
}


@dataclass(frozen=True)
class HeldOut:
    """
    Which held-out answers are generated at each evaluation.

    Args:
        num_examples (`int`, defaults to 4):
            How many examples of the evaluation data, from the first; 0: none.
        max_new_tokens (`int`, defaults to 64):
            Positions of an answer.
    """

    num_examples: int = 4
    max_new_tokens: int = 64


@dataclass(frozen=True)
class StagePlan:
    """
    A stage of a recipe with all that is resolved.

    Args:
        stage ([`Stage`]):
            What is trained and how.
        train, eval ([`Source`]):
            Its examples; `eval` may be `None`.
        collator (`dict[str, Any]`):
            Options of [`DimpleDataCollator`].
        trainer (`dict[str, Any]`):
            Further arguments of `TrainingArguments`.
        directory (`Path`):
            Where it writes.
        base (`str`):
            Directory or Hub id of the model that it starts from.
        adapter (`Path`, *optional*):
            Directory of the adapter that it goes on with.
        uses_peft (`bool`):
            Whether it trains an adapter.
    """

    stage: Stage
    train: Source
    eval: Source | None
    collator: dict[str, Any]
    trainer: dict[str, Any]
    directory: Path
    base: str
    adapter: Path | None
    uses_peft: bool


@dataclass(frozen=True)
class Recipe:
    """
    A checked recipe. See `docs/fine_tuning.md` for the keys of the file.

    Args:
        path (`Path`):
            The file.
        model (`str`):
            Directory or Hub id of the model that training starts from.
        output_dir (`Path`):
            Where the stages' directories are.
        plans (`tuple[StagePlan, ...]`):
            The stages in order.
        held_out ([`HeldOut`], *optional*):
            Answers at evaluation; `None` without evaluation data.
        peft (`dict[str, Any]`, *optional*):
            Fields of `LoraConfig`; `None`: all weights of a part are trained.
        quantization (`str`, *optional*):
            `"nf4"` or `"int8"`.
        dtype (`str`):
            Type in which the model is loaded.
        attn_implementation (`str`, *optional*):
            How attention is computed, as in `from_pretrained`; transformers' choice when missing.
        seed (`int`):
            Seed of everything that is drawn.
    """

    path: Path
    model: str
    output_dir: Path
    plans: tuple[StagePlan, ...]
    held_out: HeldOut | None
    peft: dict[str, Any] | None
    quantization: str | None
    dtype: str
    attn_implementation: str | None
    seed: int


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `1e-3` is a number (as in YAML 1.2), and a key that is there twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{key}` is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Prefixes errors with their location in the recipe."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """
    Reads and checks a recipe. No model and no data is loaded.

    Args:
        path (`str` or `os.PathLike`):
            A YAML file.

    Returns:
        [`Recipe`]

    Raises:
        ValueError: If the file is missing or no YAML, a key is unknown or missing, a value is of the wrong kind or out
            of range, a file is missing, or two values contradict each other. The message begins with its location.
    """
    path = Path(path)
    with _at(str(path)):
        entries = _mapping(_read_yaml(path), RECIPE_KEYS, REQUIRED_KEYS)
        for key, wanted, kind in (
            ("model", str, "text"), ("output_dir", str, "text"), ("stages", list, "a list"), ("seed", int, "a number"),
        ):  # fmt: skip
            if key in entries and (not isinstance(entries[key], wanted) or isinstance(entries[key], bool)):
                raise ValueError(f"`{key}` must be {kind} (got {entries[key]!r})")
        for key, known in (
            ("quantization", QUANTIZATIONS), ("dtype", DTYPES), ("attn_implementation", ATTN_IMPLEMENTATIONS),
        ):  # fmt: skip
            if entries.get(key) is not None and entries[key] not in known:
                raise ValueError(f"`{key}` must be one of {', '.join(known)} (got {entries[key]!r})")
        if entries.get("seed", 0) < 0:
            raise ValueError(f"`seed` must be >= 0 (got {entries['seed']})")
        _check_model(entries["model"])
        recipe = Recipe(
            path=path,
            model=entries["model"],
            output_dir=Path(entries["output_dir"]),
            plans=_read_stages(entries, path.resolve().parent),
            held_out=_read_held_out(entries),
            peft=_read_peft(entries),
            quantization=entries.get("quantization"),
            # Small steps vanish in bfloat16 weights; an adapter's own weights are float32 whatever the model is in.
            dtype=entries.get("dtype") or ("auto" if entries.get("peft") is not None else "float32"),
            attn_implementation=entries.get("attn_implementation"),
            seed=entries.get("seed", 0),
        )
        _check_whole(recipe)
    return recipe


def _read_yaml(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"the recipe must be a file (got {'a folder' if path.is_dir() else 'none there'})")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a subclass of SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        found = describe_no_data(path) or f"an error: {on_one_line(error)}"
        raise ValueError(f"the recipe must be YAML (got {found})") from error


def _mapping(value: Any, known: Iterable[str], required: Iterable[str] = ()) -> dict[str, Any]:
    """Checks the keys of a mapping. An empty entry in YAML is `None` and stands for no keys."""
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a mapping with keys of {', '.join(known)} (got {value!r})")
    for key in value:
        if key not in known:
            raise ValueError(f"`{key}` is unknown{nearest_name(str(key), known)}")
    for key in required:
        if value.get(key) is None:
            raise ValueError(f"`{key}` must be given (got nothing)")
    return dict(value)


def _given(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries without the empty ones, which stand for the default."""
    return {key: value for key, value in entries.items() if value is not None}


def _check_model(model: str) -> None:
    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise ValueError(f"`model` must be a model's directory (got {model}, which has no config.json)")
    elif model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ValueError(f"`model` must be a directory or a Hub id such as 'owner/name' (got {model!r})")


def _read_data(value: Any, recipe_dir: Path, default: Mapping[str, Source] | None = None) -> dict[str, Source]:
    """Reads training and evaluation data; what a stage does not name is the recipe's own, the `default`."""
    with _at("data"):
        entries = _mapping(value, DATA_KEYS, ("train",) if default is None else ())
    sources = dict(default or {})
    for key, entry in entries.items():
        if entry is None:
            continue
        with _at(f"data.{key}"):
            if not isinstance(entry, str):
                entry = _given(_mapping(entry, SOURCE_KEYS, ("location",)))
            sources[key] = read_source(entry)
            sources[key].check(recipe_dir)
    return sources


def _read_trainer(value: Any) -> dict[str, Any]:
    with _at("trainer"):
        entries = _mapping(value, TRAINER_KEYS)
        for key in entries:
            if key in MANAGED_ARGUMENTS:
                raise ValueError(f"`{key}` must not be given here: use {MANAGED_ARGUMENTS[key]}")
        return check_fields(entries, TrainingArguments, TRAINER_RANGES, TRAINER_TYPES)


def _read_collator(value: Any) -> dict[str, Any]:
    with _at("collator"):
        options = _mapping(value, COLLATOR_DEFAULTS)
        options = {
            name: option for name, option in options.items() if option is not None or COLLATOR_DEFAULTS[name] is None
        }
        check_options(options)
        folder = options.get("image_folder")
        if folder is not None and not Path(folder).is_dir():
            raise ValueError(f"`image_folder` must be a directory (got {folder})")
    return options


def _read_held_out(entries: Mapping[str, Any]) -> HeldOut | None:
    has_eval = any(
        isinstance(part, Mapping) and isinstance(part.get("data"), Mapping) and part["data"].get("eval") is not None
        for part in (entries, *entries["stages"])
    )
    with _at("held_out"):
        options = HeldOut(**_given(_mapping(entries.get("held_out"), HELD_OUT_KEYS)))
        for name, least in (("num_examples", 0), ("max_new_tokens", 1)):
            value = getattr(options, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"`{name}` must be an integer >= {least} (got {value!r})")
        if entries.get("held_out") is not None and not has_eval:
            raise ValueError("answers are generated from `data.eval`, which must be given (got none)")
    return options if has_eval else None


def _read_peft(entries: Mapping[str, Any]) -> dict[str, Any] | None:
    if entries.get("peft") is None:
        return None
    with _at("peft"):
        options = _mapping(entries["peft"], PEFT_KEYS)
        lora_config(False, **options)
        check_initialization(_given(options))
    return options


def _read_stages(entries: Mapping[str, Any], recipe_dir: Path) -> tuple[StagePlan, ...]:
    """Reads the stages and chains them: each starts from what the one before it leaves."""
    with _at("stages"):
        if not entries["stages"]:
            raise ValueError("must name at least one stage (got none)")
    uses_peft = entries.get("peft") is not None
    default_data = _read_data(entries["data"], recipe_dir)
    default_collator = {"seed": entries.get("seed", 0)} | _read_collator(entries.get("collator"))
    default_trainer = _read_trainer(entries.get("trainer"))
    plans: list[StagePlan] = []
    base, adapter = entries["model"], None
    for index, entry in enumerate(entries["stages"]):
        with _at(f"stages[{index}]"):
            entry = _mapping({"name": entry} if isinstance(entry, str) else entry, STAGE_KEYS, ("name",))
            stage = _read_stage(entry, uses_peft)
            if any(plan.stage.name == stage.name for plan in plans):
                raise ValueError(f"`name` must be different for each stage (got {stage.name!r} twice)")
            data = _read_data(entry.get("data"), recipe_dir, default_data)
            plan = StagePlan(
                stage=stage,
                train=data["train"],
                eval=data.get("eval"),
                collator=default_collator | _read_collator(entry.get("collator")),
                trainer=default_trainer | _read_trainer(entry.get("trainer")),
                directory=Path(entries["output_dir"]) / stage.name,
                base=base,
                adapter=adapter,
                uses_peft=uses_peft and "language_model" in stage.train,
            )
            if plan.uses_peft:
                adapter = plan.directory
            elif adapter is not None:
                raise ValueError(
                    "a stage that does not train `language_model` must come before the stages that train its adapter"
                )
            else:
                base = str(plan.directory)
            plans.append(plan)
    return tuple(plans)


def _read_stage(entry: Mapping[str, Any], uses_peft: bool) -> Stage:
    given = _given({name: entry.get(name) for name in STAGE_FIELDS})
    if isinstance(given.get("train"), list):
        given["train"] = tuple(given["train"])
    elif "train" in given:
        raise ValueError(f"`train` must be a list of {', '.join(PARTS)} (got {given['train']!r})")
    if not isinstance(given["name"], str):
        raise ValueError(f"`name` must be text (got {given['name']!r})")
    preset = STAGES.get(given["name"])
    if preset is None:
        for name in ("mode", "train", "learning_rate", "batch_size"):
            if name not in given:
                raise ValueError(
                    f"`{name}` must be given for a stage that is none of {', '.join(STAGES)} (got {given['name']!r}"
                    f"{nearest_name(given['name'], STAGES)})"
                )
        return Stage(**given)
    if "max_steps" in given:
        given.setdefault("num_epochs", None)
    if uses_peft and "language_model" in preset.train:
        # The head is as large as an eighth of the 7B model; an adapter that holds it would be no small file.
        given.setdefault("train", tuple(part for part in preset.train if part != "head"))
    return replace(preset, **given)


def _check_whole(recipe: Recipe) -> None:
    """What only shows when the parts are put together."""
    if Path(recipe.model).resolve() == recipe.output_dir.resolve():
        raise ValueError(f"`output_dir` must be another directory than `model` (got {recipe.model} for both)")
    if recipe.output_dir.exists() and not recipe.output_dir.is_dir():
        raise ValueError(f"`output_dir` must be a directory (got the file {recipe.output_dir})")
    if recipe.quantization is not None:
        if recipe.peft is None:
            raise ValueError("`quantization` must come with `peft`: quantized weights cannot be trained themselves")
        if recipe.dtype == "float32":
            raise ValueError("`dtype` must be bfloat16 or auto with `quantization` (got float32)")
        if not is_bitsandbytes_available():
            raise ValueError("`quantization` needs bitsandbytes: run `pip install bitsandbytes` (got no such package)")
    if recipe.peft is not None and not any(plan.uses_peft for plan in recipe.plans):
        raise ValueError("`peft` needs a stage that trains `language_model` (got none)")
    whole: set[str] | None = None  # parts that the adapter holds whole
    for index, plan in enumerate(recipe.plans):
        with _at(f"stages[{index}]"):
            if recipe.quantization is not None and not plan.uses_peft:
                raise ValueError("with `quantization` every stage must train `language_model` (got one that does not)")
            if plan.eval is None and plan.trainer.get("eval_strategy", "no") != "no":
                raise ValueError("`trainer.eval_strategy` needs `data.eval` (got none)")
            if plan.uses_peft:
                parts = set(plan.stage.train) - {"language_model"}
                whole = parts if whole is None else whole
                if parts - whole:
                    raise ValueError(
                        "`train` must name no more parts than the first stage with an adapter does "
                        f"(got {', '.join(sorted(parts - whole))} too)"
                    )
