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
"""Dimple as a model of lmms-eval: `lmms-eval --model dimple --model_args pretrained=...,preset=paper-8 --tasks ...`.

The entry point group `lmms_eval.models` of pyproject.toml names `MANIFEST`, so that lmms-eval finds the model by
itself. Written against lmms-eval 0.7.3 (https://github.com/EvolvingLMMs-Lab/lmms-eval); needs the extra `eval`.
How to use it: `docs/evaluation.md`.
"""

import inspect
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import eval_logger
from tqdm import tqdm
from transformers import AutoConfig, ProcessorMixin

from ..data.image_features import ImageFeatures
from ..modeling import DimpleConfig
from .evaluation_model import answer_likelihood, load_evaluated, with_system_prompt
from .evaluation_settings import end_at, model_options, task_options

MANIFEST = ModelManifest(
    model_id="dimple",
    simple_class_path="dimple_hf.integrations.lmms_eval.DimpleLikelihoods",
    chat_class_path="dimple_hf.integrations.lmms_eval.Dimple",
)


@dataclass(frozen=True)
class Answer:
    """
    The model's answer.

    Args:
        text (`str`): Its answer, without special tokens.
        num_passes (`int`): Passes of the model.
        num_tokens (`int`): Tokens of the answer, special ones not counted.
    """

    text: str
    num_passes: int
    num_tokens: int


class Dimple(lmms):
    r"""
    Answers the questions of lmms-eval's tasks, several at a time.

    Args:
        pretrained (`str`, defaults to `"rp-yu/Dimple-7B"`):
            Directory or Hub id of a checkpoint, in bidirectional mode.
        preset (`str`, *optional*):
            A key of `PRESETS`: how to decode, and the answer's length.
        dtype (`str`, defaults to `"auto"`):
            Type of the weights; `"auto"` is the checkpoint's.
        device (`str`, *optional*):
            Where to run; `accelerate`'s choice when missing and with several processes.
        batch_size (`int` or `str`, defaults to 1):
            Questions of one call of `generate`. Answers do not depend on it.
        adapter (`str`, *optional*):
            Directory or Hub id of a PEFT adapter.
        attn_implementation (`str`, *optional*):
            `"sdpa"`, `"eager"` or another of transformers'.
        max_pixels (`int`, *optional*):
            Largest area of an image, instead of the processor's.
        system_prompt (`str`, *optional*):
            What the chat template puts first, instead of its own.
        options:
            Options of `generate` (`MODEL_OPTIONS`). They win over the preset, and both win over the task.

    Raises:
        ValueError: If an argument is unknown, out of range or contradicts another, or the checkpoint is causal.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "rp-yu/Dimple-7B",
        preset: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        adapter: str | None = None,
        attn_implementation: str | None = None,
        max_pixels: int | None = None,
        system_prompt: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options = model_options(preset, options, inspect.signature(Dimple).parameters)
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"`batch_size` must be a positive integer (got {batch_size!r})")
        self.batch_size = int(batch_size)
        if dtype != "auto" and not isinstance(getattr(torch, str(dtype), None), torch.dtype):
            raise ValueError(f"`dtype` must be 'auto' or a type of torch such as 'bfloat16' (got {dtype!r})")
        config = AutoConfig.from_pretrained(pretrained)
        if config.model_type != DimpleConfig.model_type or not config.full_attn_mask:
            raise ValueError(f"`pretrained` must be a Dimple in bidirectional mode (got {pretrained})")
        self.accelerator = Accelerator()
        several_processes = self.accelerator.num_processes > 1
        self.device = self.accelerator.device if device is None or several_processes else torch.device(device)
        self.system_prompt = system_prompt
        self.model, self.processor = load_evaluated(
            pretrained, dtype, self.device, adapter, attn_implementation, max_pixels
        )
        self.features = ImageFeatures(self.model)

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers all requests, in their order, and logs passes and tokens of each task."""
        results: list[GenerationResult] = []
        answers_of_task: dict[str, list[Answer]] = defaultdict(list)
        progress = tqdm(total=len(requests), desc="Dimple", disable=self.rank != 0)
        start = time.perf_counter()
        # Only requests with the same options can share a batch. Those of a task have, and they come together.
        for asked, group in groupby(requests, key=lambda request: request.args[2]):
            options, stop_strings, foreign = task_options(asked)
            if foreign:
                eval_logger.warning(f"{', '.join(foreign)} mean nothing for Dimple and are left out")
            while batch := list(islice(group, self.batch_size)):
                chats = [self._chat(request) for request in batch]
                answers = ask(self.features, self.processor, chats, **(options | self.options))
                for request, answer in zip(batch, answers, strict=True):
                    answers_of_task[request.task_name].append(answer)
                    text = end_at(answer.text, stop_strings)
                    results.append(GenerationResult(text, TokenCounts(output_tokens=answer.num_tokens)))
                progress.update(len(batch))
        progress.close()
        report_passes(answers_of_task, time.perf_counter() - start)
        return results

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """
        The negative log-likelihood of each answer, a bound that is estimated over random masks, and whether it is the
        greedy one. Negative, because lmms-eval takes the choice with the least value, as its own models return losses.
        """
        results = []
        for request in tqdm(requests, desc="Dimple", disable=self.rank != 0):
            messages, answer = self._question_and_answer(request)
            likelihood, is_greedy = answer_likelihood(
                self.model, self.processor, messages, answer, self.batch_size, **self.options
            )
            # lmms-eval 0.7.3 turns bare pairs into text, which its own scoring cannot read.
            results.append(GenerationResult((-likelihood, is_greedy)))
        return results

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Refused: no benchmark of the paper has several rounds."""
        raise NotImplementedError(
            "this model answers single questions; use a task whose output_type is generate_until"
        )

    def _chat(self, request: Instance) -> list[dict[str, Any]]:
        """The messages of a request, in the form of `apply_chat_template`."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id])).to_hf_messages()
        return with_system_prompt(messages, self.system_prompt)

    def _question_and_answer(self, request: Instance) -> tuple[list[dict[str, Any]], str]:
        """The messages of a request for a likelihood, and the answer; `("", answer)` stands for no question."""
        question, answer, *rest = request.args
        images: list[Any] = []
        if rest:
            doc_to_visual, doc_id, task, split = rest
            document = self.task_dict[task][split][doc_id]
            answer = answer if isinstance(answer, str) else answer(document)
            images = doc_to_visual(document) or []
        content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
        return with_system_prompt([{"role": "user", "content": content}], self.system_prompt), answer


class DimpleLikelihoods(Dimple):
    """[`Dimple`] for tasks that need likelihoods, which lmms-eval sends with `--force_simple` only."""

    is_simple = True

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Refused: its requests have no messages."""
        raise NotImplementedError("tasks whose output_type is generate_until must be run without `--force_simple`")


def ask(
    features: ImageFeatures, processor: ProcessorMixin, chats: Sequence[list[dict[str, Any]]], **options: Any
) -> list[Answer]:
    """
    Answers a batch of chats.

    Args:
        features ([`ImageFeatures`]), processor ([`DimpleProcessor`]):
            What encodes the images, with the model that is asked, and its processor.
        chats (`Sequence[list[dict]]`):
            Messages, images in them.
        options:
            Options of `generate`.

    Returns:
        `list[Answer]`: One for each chat.
    """
    inputs = processor.apply_chat_template(
        list(chats), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )
    output = features.model.generate(**features.encode(inputs), **options, return_dict_in_generate=True)
    tokens = output.sequences[:, inputs["input_ids"].shape[1] :].cpu()
    is_special = torch.isin(tokens, torch.tensor(processor.tokenizer.all_special_ids))
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    num_tokens = (~is_special).sum(dim=1).tolist()
    return list(map(Answer, texts, output.num_forward_passes.tolist(), num_tokens))


def report_passes(answers_of_task: dict[str, list[Answer]], seconds: float) -> None:
    """
    Logs what the answers cost. lmms-eval prints it under the scores and keeps it in the `"throughput"` of its results,
    as `"avg_TASK/passes_per_answer"` and `"avg_TASK/tokens_per_pass"`; with several processes, of the first one.
    """
    total_tokens = sum(answer.num_tokens for answers in answers_of_task.values() for answer in answers)
    metrics: dict[str, float] = {}
    for task, answers in answers_of_task.items():
        num_passes = sum(answer.num_passes for answer in answers)
        metrics[f"{task}/passes_per_answer"] = num_passes / len(answers)
        metrics[f"{task}/tokens_per_pass"] = sum(answer.num_tokens for answer in answers) / num_passes
    log_metrics(seconds, total_tokens, total_tokens / seconds, metrics)
