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
"""The original's `diffusion_generate` in a loop of its own, with its option names, defaults and quirks.

Source: the released `diffusion_generate` (github.com/yu-rp/Dimple). Unlike there, budgets, rankings and fallbacks are
per row.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import GenerationConfig

from .cache_dimple import CACHE_POLICIES, CachePolicy
from .canvas_dimple import CanvasRunner
from .constraint_dimple import AnswerConstraint
from .generation_config_dimple import nearest_name
from .sampling_dimple import (
    CONFIDENCE_MEASURES,
    DEFAULT_EPS,
    MAX_DENOISING_STEPS,
    SCHEDULES,
    argmax,
    check_finite,
    chunked,
    denoising_times,
    draw_tokens,
    rank_positions,
    sampling_filters,
    scatter,
)

#: The original's name of a ranking -> ours.
RANKINGS = {
    "maskgit_plus": "confidence",
    "topk_margin": "margin",
    "entropy": "entropy",
    "origin": "random",
    "origin-ratio": "random",
    "autoregressive": "left_to_right",
}

#: Its name of a schedule -> ours.
PIPELINES = {"dim": "adaptive", "dream": "fixed"}

#: What `generate` has instead of an option that it does not take.
REPLACEMENTS = {
    "alg": "`unmasking`",
    "alg_p_threshold": "`confidence_threshold`",
    "alg_temp": "no drawn order",
    "decoding_pipeline": "`unmasking_schedule`",
    "eps": "no such option",
    "steps": "`max_denoising_steps`",
    "use_original_confidence": "confidences before temperature and top-p always",
    "generation_tokens_hook_func": "`answer_ids`",
    "generation_logits_hook_func": "`logits_processor`",
}

#: The last three are ours: what the processor makes of a structure prior.
MODEL_INPUTS = (
    "attention_mask", "pixel_values", "image_grid_thw", "answer_ids", "answer_attention_mask", "answer_constraint",
)  # fmt: skip


@dataclass
class OriginalOptions:
    """
    The options of the original's call, with its defaults; see
    [`~original_generation_dimple.DimpleOriginalGenerationMixin.diffusion_generate`] for their meaning.

    Raises:
        ValueError: If a value is out of range or a name unknown.
    """

    max_length: int = 20
    max_new_tokens: int | None = None
    steps: int = 512
    eps: float = DEFAULT_EPS
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    alg: str = "origin"
    alg_temp: float | None = None
    alg_p_threshold: float | None = None
    use_original_confidence: bool = True
    decoding_pipeline: str = "dim"
    use_cache: bool = False
    num_return_sequences: int = 1
    output_history: bool = False
    return_dict_in_generate: bool = False
    mask_token_id: int | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    generation_tokens_hook_func: Callable | None = None
    generation_logits_hook_func: Callable | None = None

    @classmethod
    def collect(cls, generation_config: GenerationConfig | None, kwargs: dict[str, Any]) -> "OriginalOptions":
        """
        Args:
            generation_config (`GenerationConfig`, *optional*):
                Any object with options as attributes; `None` values count as not set.
            kwargs (`dict[str, Any]`):
                Keyword arguments of the call, which win; options are taken out, model inputs stay.
        """
        names = [field.name for field in fields(cls)]
        values: dict[str, Any] = {name: getattr(generation_config, name, None) for name in names}
        values = {name: value for name, value in values.items() if value is not None}
        values |= {name: kwargs.pop(name) for name in names if name in kwargs}
        for name in kwargs:
            if name not in MODEL_INPUTS:
                raise ValueError(
                    f"`{name}` must be an option of the original or a model input"
                    f"{nearest_name(name, [*names, *MODEL_INPUTS])}"
                )
        return cls(**values)

    def __post_init__(self) -> None:
        for name in ("max_length", "max_new_tokens", "steps", "num_return_sequences", "top_k"):
            value = getattr(self, name)
            may_be_missing = name in ("max_new_tokens", "top_k")
            if not (isinstance(value, int) and value >= 1) and not (may_be_missing and value is None):
                raise ValueError(f"`{name}` must be an integer >= 1 (got {value!r})")
        if self.steps > MAX_DENOISING_STEPS:
            raise ValueError(f"`steps` must be at most {MAX_DENOISING_STEPS} (got {self.steps})")
        for name, known in (("alg", RANKINGS), ("decoding_pipeline", PIPELINES)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(known)} (got {value!r}){nearest_name(str(value), known)}"
                )
        if not (isinstance(self.eps, (int, float)) and 0 < self.eps < 1):
            raise ValueError(f"`eps` must lie in (0, 1) (got {self.eps!r})")
        for name in ("temperature", "alg_temp"):
            value = getattr(self, name)
            may_be_missing = name == "alg_temp"
            if not (isinstance(value, (int, float)) and value >= 0) and not (may_be_missing and value is None):
                raise ValueError(f"`{name}` must be a number >= 0 (got {value!r})")
        for name in ("top_p", "alg_p_threshold"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 1):
                raise ValueError(f"`{name}` must lie in [0, 1] (got {value!r})")

    def answer_length(self, prompt_length: int) -> int:
        """
        Args:
            prompt_length (`int`):
                Tokens of the prompt, padding included.

        Returns:
            `int`: Positions of the answer.

        Raises:
            ValueError: If `max_length` leaves none.
        """
        length = self.max_length - prompt_length if self.max_new_tokens is None else self.max_new_tokens
        if length < 1:
            raise ValueError(
                f"`max_length` must leave room for an answer after the prompt of {prompt_length} tokens, or "
                f"`max_new_tokens` be given (got max_length={self.max_length})"
            )
        return length

    def policy(self) -> CachePolicy | None:
        """The cache policy: the prompt's keys and values, or nothing."""
        return CACHE_POLICIES["prompt" if self.use_cache else "none"](None, None)

    @property
    def is_dim(self) -> bool:
        """Whether the pipeline is Dimple's, which ends with the last mask token; Dream's runs all steps."""
        return self.decoding_pipeline == "dim"

    @property
    def threshold(self) -> float:
        """The confidence above which positions are unmasked; infinite without one. The original's entropies are
        negative and pass none."""
        has_threshold = self.is_dim and self.alg != "entropy"
        return (self.alg_p_threshold or torch.inf) if has_threshold else torch.inf

    @property
    def ranking_temperature(self) -> float | None:
        """The temperature at which ranked positions are drawn; `None` to sort them."""
        return (self.alg_temp or None) if self.alg in ("maskgit_plus", "topk_margin", "entropy") else None

    @property
    def draws_positions(self) -> bool:
        """Whether each position is unmasked with the schedule's share as its probability."""
        return self.alg == "origin-ratio" or (self.alg == "origin" and not self.is_dim)

    def choose_tokens(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token and confidence, each of shape `(num_positions,)`, of `logits`, `(num_positions, vocab_size)`."""
        filtered = sampling_filters(self.temperature or None, self.top_p, self.top_k)(None, logits.float())
        tokens = draw_tokens(filtered) if self.temperature > 0 else argmax(logits)
        scores = logits if self.is_dim and self.use_original_confidence else filtered
        confidence = chunked(CONFIDENCE_MEASURES[RANKINGS[self.alg]], scores, tokens)
        check_finite(bool(confidence.isfinite().all()))
        return tokens, confidence

    def choose_positions(
        self, step: int, masked: torch.Tensor, confidence: torch.Tensor, num_maskable: torch.Tensor
    ) -> torch.Tensor:
        """
        Args:
            step (`int`):
                Index of the step, from 0.
            masked (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
                `True` at masked positions.
            confidence (`torch.FloatTensor` of shape `(batch_size, answer_length)`):
                Confidence of each of them.
            num_maskable (`torch.LongTensor` of shape `(batch_size,)`):
                Masked positions before the first step.

        Returns:
            `torch.BoolTensor` of shape `(batch_size, answer_length)`: `True` at the positions to unmask: those above
            the threshold, in the last step all, else what the schedule sets.
        """
        ranking, one_by_one = RANKINGS[self.alg], self.alg == "autoregressive"
        if step == self.steps - 1 and not (one_by_one and self.threshold == torch.inf):
            return masked
        times = denoising_times(self.steps, self.eps, masked.device)
        num_masked = masked.sum(dim=1)
        steps = torch.full_like(num_masked, step)
        fraction = SCHEDULES[PIPELINES[self.decoding_pipeline]](steps, times, num_masked, num_maskable)
        if self.draws_positions:
            scheduled = masked & (torch.rand(masked.shape, device=masked.device) < fraction[:, None])
        else:
            score = confidence
            if self.ranking_temperature is not None:  # without replacement, by the Gumbel trick
                score = confidence.log() if ranking == "entropy" else confidence  # the original's is -H
                score = score / self.ranking_temperature - torch.empty_like(score).exponential_().log()
            counts = torch.ones_like(num_masked) if one_by_one else (num_masked * fraction).int()
            scheduled = masked & (rank_positions(ranking, score, masked) < counts[:, None])
        confident = masked & (confidence > self.threshold)
        return torch.where(confident.any(dim=1, keepdim=True), confident, scheduled)

    def rewrite(
        self, step: int | None, prompt: torch.Tensor, answer: torch.Tensor, logits: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Calls the tokens hook, which may rewrite the answer.

        Args:
            step (`int`, *optional*):
                Index of the step that ended; `None` before the first.
            prompt (`torch.LongTensor` of shape `(batch_size, prompt_length)`):
                Prompt tokens.
            answer (`torch.LongTensor` of shape `(batch_size, answer_length)`):
                Answer tokens.
            logits (`torch.FloatTensor`, *optional*):
                What the logits hook returned in this step.

        Returns:
            `torch.LongTensor` of shape `(batch_size, answer_length)`

        Raises:
            ValueError: If the hook changed the prompt or the shape.
        """
        if self.generation_tokens_hook_func is None:
            return answer
        before = torch.cat([prompt, answer], dim=1)
        after = self.generation_tokens_hook_func(step, before.clone(), logits)
        if after.shape != before.shape or not torch.equal(after[:, : prompt.shape[1]], prompt):
            raise ValueError("`generation_tokens_hook_func` must keep the prompt and the shape of the sequences")
        return after[:, prompt.shape[1] :]


@torch.no_grad()
def denoise_as_original(
    runner: CanvasRunner,
    canvas: torch.Tensor,
    mask_token_id: int,
    options: OriginalOptions,
    constraint: AnswerConstraint | None = None,
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """
    The original's loop. All rows stay until the end; one without masked positions does not change any more.

    Args:
        runner ([`CanvasRunner`]):
            Runs the model over the prompts.
        canvas (`torch.LongTensor` of shape `(batch_size, answer_length)`):
            Fixed tokens and mask tokens.
        mask_token_id (`int`):
            The mask token. The model may write it, as any other token.
        options ([`OriginalOptions`]):
            What to do.
        constraint ([`AnswerConstraint`], *optional*):
            What the answers must keep to. Under one the last step unmasks everything.

    Returns:
        `tuple(torch.LongTensor, list[torch.LongTensor], torch.LongTensor)`: The canvas as the tokens hook leaves it
        before the first step, the answers after each step, both of shape `(batch_size, answer_length)`, and the
        forward passes of each row, `(batch_size,)`.
    """
    prompt, rows = runner.input_ids, torch.arange(len(canvas), device=canvas.device)
    hook = options.generation_logits_hook_func
    has_hooks = hook is not None or options.generation_tokens_hook_func is not None
    # 1. The tokens hook may write a prior.
    canvas = answer = options.rewrite(None, prompt, canvas, None)
    num_maskable = (canvas == mask_token_id).sum(dim=1)
    num_passes, history = torch.zeros_like(num_maskable), []
    for step in range(options.steps):
        # 2. Dimple's pipeline ends when nothing is masked. Dream's goes on, where only hooks can change anything.
        masked = answer == mask_token_id
        is_done = not bool(masked.any())
        if is_done and options.is_dim:
            break
        if is_done and not has_hooks:
            history.append(answer)
            continue
        num_passes += masked.any(dim=1)

        # 3. One forward pass; hooks see the logits of all positions that it runs.
        if has_hooks:
            sequences, all_logits = runner.all_logits(answer)
            all_logits = all_logits if hook is None else hook(step, sequences, all_logits)
            logits = all_logits[:, -answer.shape[1] :][masked]
        else:
            all_logits, logits = None, runner.logits(answer, masked)

        # 4. A token and a confidence for each masked position; the positions to unmask.
        while True:
            if constraint is not None:
                logits = constraint.mask_logits(rows, answer, masked, logits, masked)
            tokens, confidence = options.choose_tokens(logits)
            confidence, proposed = scatter(masked, confidence), answer.masked_scatter(masked, tokens)
            chosen = options.choose_positions(step, masked, confidence, num_maskable)
            if constraint is not None:
                chosen = constraint.accept(rows, answer, masked, proposed, chosen, confidence)
            answer = torch.where(chosen, proposed, answer)
            left = masked & (answer == mask_token_id)
            if constraint is None or step < options.steps - 1 or not bool(left.any()):
                break
            logits, masked = logits[left[masked]], left  # what was not accepted chooses again

        # 5. The tokens hook may rewrite the answer.
        answer = options.rewrite(step, prompt, answer, all_logits)
        history.append(answer)
    return canvas, history, num_passes
