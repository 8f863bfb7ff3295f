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
"""Answers to a few held-out examples at every evaluation."""

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import ProcessorMixin, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_wandb_available

from ..data.examples import Conversation, naming, read_example
from ..processing.image_processing_dimple import load_pil_image
from .metrics import add_to_logs, logged_prefix
from .option_types import check_type

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOutAnswer:
    """
    The model's answer to a held-out example.

    Args:
        question (`str`):
            Text of the last user turn.
        expected (`str`):
            The example's own answer.
        answer (`str`):
            The model's.
        num_forward_passes (`int`):
            Passes of the model that it took.
    """

    question: str
    expected: str
    answer: str
    num_forward_passes: int

    @property
    def is_exact(self) -> bool:
        """Whether it is the expected one, but for spaces around it."""
        return self.answer.strip() == self.expected.strip()


class GenerationCallback(TrainerCallback):
    """
    Answers the last turn of held-out examples at each evaluation, in the model's current mode, and adds to its log
    entry

    - `eval_answers`: question, answer, expected answer and passes of each example, as text (reporters of
      numbers log that they leave it out),
    - `eval_exact_match`: share of answers that are the expected ones, but for spaces around them,
    - `eval_passes`: mean number of passes of the model.

    An example with a `structure_prior` is answered under it, but not in causal mode, which has no priors.

    Weights & Biases gets a table with the images, and TensorBoard the images if its writer is given. The entry is
    also what `metric_for_best_model` can name. Put the callback before the reporters with [`add_before_reporters`].
    Every process generates, because sharded models need all of them; keep the examples few.

    Args:
        processor ([`DimpleProcessor`]):
            Writes prompts and reads answers.
        examples (`Sequence[Mapping[str, Any]]`):
            Examples as [`read_example`] takes them.
        max_new_tokens (`int`, defaults to 64):
            Positions of an answer.
        image_folder (`str`, *optional*):
            What relative image paths are relative to.
        summary_writer (`SummaryWriter`, *optional*):
            TensorBoard's writer, the one that `TensorBoardCallback` was made with.

    Raises:
        ValueError: If there are no examples, one is bad, or `max_new_tokens` is no integer >= 1.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        examples: Sequence[Mapping[str, Any]],
        max_new_tokens: int = 64,
        image_folder: str | None = None,
        summary_writer: "SummaryWriter | None" = None,
    ) -> None:
        if not len(examples):
            raise ValueError("`examples` must hold at least one example (got none)")
        check_type("max_new_tokens", max_new_tokens, int, ">= 1")
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.summary_writer = summary_writer
        self.conversations: list[Conversation] = []
        for position, example in enumerate(examples):
            with naming(example, position):
                self.conversations.append(read_example(example, image_folder))
        # Apart, because the canvas of a prior would bound the answers of the examples beside it.
        under_prior = [conversation.structure_prior is not None for conversation in self.conversations]
        groups = [
            [position for position, flag in enumerate(under_prior) if flag is wanted] for wanted in (False, True)
        ]
        self._groups = [(positions, self._prepare_inputs(positions)) for positions in groups if positions]
        self._last_step: int | None = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        # Several data sets may be evaluated at one step; the answers would be the same.
        prefix = logged_prefix(logs)
        if not prefix or state.global_step == self._last_step:
            return
        self._last_step = state.global_step
        answers = self.answer(model)
        values = {
            "answers": _as_text(answers),
            "exact_match": sum(answer.is_exact for answer in answers) / len(answers),
            "passes": sum(answer.num_forward_passes for answer in answers) / len(answers),
        }
        add_to_logs(state, logs, {prefix + name: value for name, value in values.items()})
        if state.is_world_process_zero:
            logger.info("answers at step %d:\n%s", state.global_step, values["answers"])
            self._show_images(answers, state.global_step)

    def answer(self, model: nn.Module) -> list[HeldOutAnswer]:
        """
        Args:
            model (`nn.Module`):
                The model, also wrapped by PEFT. Its training mode is put back.

        Returns:
            `list[HeldOutAnswer]`: One for each example.
        """
        was_training = model.training
        model.eval()
        answers: dict[int, HeldOutAnswer] = {}
        for positions, inputs in self._groups:
            for position, (text, num_forward_passes) in zip(positions, self._generate(model, inputs), strict=True):
                conversation = self.conversations[position]
                expected = conversation.answer(conversation.answer_indices[-1])
                answers[position] = HeldOutAnswer(_last_question(conversation), expected, text, num_forward_passes)
        model.train(was_training)
        return [answers[position] for position in range(len(self.conversations))]

    def _generate(self, model: nn.Module, inputs: dict[str, Any]) -> list[tuple[str, int]]:
        """Text and passes of each example of a group."""
        tokenizer = self.processor.tokenizer
        device = next(model.parameters()).device
        length: dict[str, int] = {} if "answer_ids" in inputs else {"max_new_tokens": self.max_new_tokens}
        if not model.config.full_attn_mask:
            inputs = {name: value for name, value in inputs.items() if not name.startswith("answer_")}
            length = {"max_new_tokens": self.max_new_tokens}
        inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}
        output = model.generate(
            **inputs,
            **length,
            # Answers end with padding in training; in the causal phase transformers must be told so.
            eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
            pad_token_id=tokenizer.pad_token_id,
            return_dict_in_generate=True,
        )
        tokens = output.sequences[:, inputs["input_ids"].shape[1] :].cpu()
        passes = output.get("num_forward_passes")
        if passes is None:  # token by token: one pass each, up to and with the end
            is_end = torch.isin(tokens, torch.tensor([tokenizer.eos_token_id, tokenizer.pad_token_id]))
            passes = ((is_end.cumsum(dim=1) - is_end.long()) == 0).sum(dim=1)
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return list(zip(texts, passes.tolist(), strict=True))

    def _prepare_inputs(self, positions: list[int]) -> dict[str, Any]:
        """Inputs of `generate` for some of the examples, either all under a prior or none."""
        prompts, images = [], []
        conversations = [self.conversations[position] for position in positions]
        for conversation in conversations:
            messages = conversation.messages[: conversation.answer_indices[-1]]
            prompts.append(
                self.processor.apply_chat_template(messages, add_generation_prompt=True, sanitize_control_tokens=True)
            )
            num_images = sum(part["type"] == "image" for message in messages for part in message["content"])
            images.append(conversation.images[:num_images])
        priors = [conversation.structure_prior for conversation in conversations]
        form = {} if priors[0] is None else {"structure_prior": priors}
        return dict(
            self.processor(
                text=prompts, images=images if any(images) else None, padding_side="left", return_tensors="pt", **form
            )
        )

    def _show_images(self, answers: list[HeldOutAnswer], step: int) -> None:
        images = [self._image(conversation) for conversation in self.conversations]
        if is_wandb_available():
            wandb = importlib.import_module("wandb")
            if wandb.run is not None:
                table = wandb.Table(columns=["image", "question", "answer", "expected", "passes"])
                for image, example in zip(images, answers, strict=True):
                    image = None if image is None else wandb.Image(image)
                    table.add_data(
                        image, example.question, example.answer, example.expected, example.num_forward_passes
                    )
                wandb.log({"held_out_answers": table}, commit=False)
        if self.summary_writer is not None:
            for index, image in enumerate(images):
                if image is not None:
                    self.summary_writer.add_image(f"held_out/{index}", image, step, dataformats="HWC")

    def _image(self, conversation: Conversation) -> np.ndarray | None:
        """The example's last image as 8-bit RGB of shape `(H, W, 3)`, or `None`."""
        if not conversation.images:
            return None
        return np.asarray(load_pil_image(conversation.images[-1], len(conversation.images) - 1).convert("RGB"))


def _last_question(conversation: Conversation) -> str:
    message = conversation.messages[conversation.answer_indices[-1] - 1]
    return "".join(part.get("text", "") for part in message["content"])


def _as_text(answers: list[HeldOutAnswer]) -> str:
    return "\n\n".join(
        f"{example.question}\n-> {example.answer} ({example.num_forward_passes} passes; expected: {example.expected})"
        for example in answers
    )
