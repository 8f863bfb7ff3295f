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
"""Log-likelihood of given answers: exact in causal mode, estimated in bidirectional mode.

Sources: the bound of LLaDA (arXiv 2502.09992, section 2.4, equation 6) and the one-step estimate of diffu-GRPO (d1,
arXiv 2504.12216, section 3.2). Both are differentiable.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from .diffusion_dimple import token_cross_entropy
from .generation_inputs_dimple import check_length

ESTIMATORS = ("elbo", "one_step")


def sample_answer_masks(
    answer_mask: torch.Tensor, num_samples: int, antithetic: bool, generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    Draws which answer tokens each sample masks: n of L tokens without replacement, n uniform on 1 to L.

    The numbers n of a row are drawn systematically: one from each of `num_samples` equal parts of its range. With
    `antithetic=True` half of the samples are drawn so, and each has a partner that masks the other `L - n` tokens and
    one of the same. The partner's number, `L + 1 - n`, is uniform on 1 to L too, and its tokens are a uniform draw of
    that size, so the estimate stays unbiased.

    Args:
        answer_mask (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
            `True` at answer tokens, `False` at padding.
        num_samples (`int`):
            Samples of each row.
        antithetic (`bool`):
            Whether to draw pairs; `num_samples` is even then.
        generator (`torch.Generator`, *optional*):
            Source of randomness; the global one when missing.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, num_samples, answer_length)`: `True` at masked tokens.
    """
    batch_size, answer_length = answer_mask.shape
    device = answer_mask.device
    num_draws = num_samples // 2 if antithetic else num_samples
    lengths = answer_mask.sum(dim=1)[:, None]
    offsets = torch.empty(batch_size, 1, device=device).uniform_(generator=generator)
    strata = (torch.arange(num_draws, device=device) + offsets) / num_draws
    numbers = (strata * lengths).long().clamp(max=lengths - 1) + 1
    order = torch.empty(batch_size, num_draws, answer_length, device=device).uniform_(generator=generator)
    ranks = order.masked_fill(~answer_mask[:, None], torch.inf).argsort(dim=-1).argsort(dim=-1)
    masks = ranks < numbers[..., None]
    if antithetic:
        masks = torch.cat([masks, ranks >= numbers[..., None] - 1], dim=1)
    return masks & answer_mask[:, None]


class DimpleLikelihoodMixin:
    """Adds `answer_log_likelihood` to [`DimpleForConditionalGeneration`]."""

    def answer_log_likelihood(
        self: Any,
        inputs: Mapping[str, Any],
        answer_ids: torch.LongTensor,
        answer_attention_mask: torch.LongTensor | None = None,
        estimator: str = "elbo",
        num_samples: int = 32,
        antithetic: bool = True,
        prompt_mask_probability: float = 0.0,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.FloatTensor:
        r"""
        The log-likelihood of answers, given prompts and images. Gradients flow unless `torch.no_grad()` is active.

        In causal mode it is exact. In bidirectional mode, with L the length of the answer $x$ and $p$ the prompt:

        - `"elbo"`, a lower bound: the mean over `num_samples` draws of
          $\frac{L}{n} \sum_{i \in M} \log p_\theta(x^i \mid p, x_{\setminus M})$, where $n$ is uniform on 1 to L and
          $M$ are $n$ of the answer's tokens, all masked (LLaDA, equation 6).
        - `"one_step"`: $\sum_i \log p_\theta(x^i \mid p)$ with the whole answer masked, from one forward pass. No
          bound, but cheap (diffu-GRPO); `prompt_mask_probability` masks tokens of the prompt, whose images stay.

        Args:
            inputs (`Mapping[str, torch.Tensor]`):
                What the processor makes of prompts: `input_ids`, `attention_mask`, `pixel_values`, `image_grid_thw`.
            answer_ids (`torch.LongTensor` of shape `(batch_size, answer_length)`):
                The answers. The mask token is not allowed.
            answer_attention_mask (`torch.LongTensor` of shape `(batch_size, answer_length)`, *optional*):
                1 at answer tokens, 0 at padding on the right. All ones when missing.
            estimator (`"elbo"` or `"one_step"`, defaults to `"elbo"`):
                See above. Without effect in causal mode.
            num_samples (`int`, defaults to 32):
                Draws of `"elbo"` for each row; each costs a forward pass of a row.
            antithetic (`bool`, defaults to `True`):
                Whether to draw pairs of complementary masks, which lowers the variance; see [`sample_answer_masks`].
            prompt_mask_probability (`float`, defaults to 0):
                In [0, 1), for `"one_step"`.
            batch_size (`int`, *optional*):
                Most rows of one forward pass. All of them when missing.
            generator (`torch.Generator`, *optional*):
                Source of randomness; the global one when missing.

        Returns:
            `torch.FloatTensor` of shape `(batch_size,)`: In nats, float32.

        Raises:
            ValueError: If an argument is out of range or of another shape, inputs are unknown, or prompt and answer
                have more tokens than the model has positions.
        """
        inputs = dict(inputs)
        answer_mask = _checked_answer(inputs, answer_ids, answer_attention_mask, self.config.mask_token_id)
        check_length(inputs["input_ids"].shape[1], answer_ids.shape[1], self.config.max_position_embeddings)
        _check_options(estimator, num_samples, antithetic, prompt_mask_probability, batch_size)
        answer_ids, answer_mask = answer_ids.to(self.device), answer_mask.to(self.device)
        is_causal = not self.config.full_attn_mask

        # 1. Which answer tokens each row of a forward pass masks, and which it counts
        if is_causal:
            masked, counted = torch.zeros_like(answer_mask)[:, None], answer_mask[:, None]
        elif estimator == "one_step":
            masked = counted = answer_mask[:, None]
        else:
            masked = counted = sample_answer_masks(answer_mask, num_samples, antithetic, generator)

        # 2. Images and prompts, once for all draws
        mask_probability = 0.0 if is_causal else prompt_mask_probability
        prompt = _embed_prompt(self, inputs, answer_ids, answer_mask, mask_probability, generator)

        # 3. Log-probabilities of the counted tokens, a batch of rows at a time
        num_masks = masked.shape[1]
        rows = torch.arange(len(answer_ids), device=self.device).repeat_interleave(num_masks)
        sums = [
            _sum_log_probs(self, prompt.select(row), answer_ids[row], mask, count)
            for row, mask, count in zip(
                rows.split(batch_size or len(rows)),
                masked.flatten(0, 1).split(batch_size or len(rows)),
                counted.flatten(0, 1).split(batch_size or len(rows)),
                strict=True,
            )
        ]

        # 4. Mean over the draws, each weighted by L / n, which is 1 where all tokens are counted
        weights = answer_mask.sum(dim=1, keepdim=True) / counted.sum(dim=-1)
        return (torch.cat(sums).view(-1, num_masks) * weights).mean(dim=1)


@dataclass(frozen=True)
class _Prompt:
    """Embedded prompts, with the attention mask `(batch_size, length)` and the positions of prompt and answer."""

    embeds: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor

    def select(self, rows: torch.Tensor) -> "_Prompt":
        return _Prompt(self.embeds[rows], self.attention_mask[rows], self.position_ids[:, rows])


def _embed_prompt(
    model: PreTrainedModel,
    inputs: dict[str, Any],
    answer_ids: torch.Tensor,
    answer_mask: torch.Tensor,
    mask_probability: float,
    generator: torch.Generator | None,
) -> _Prompt:
    """Encodes images and embeds prompts, whose text tokens are masked with `mask_probability`."""
    prompt_ids = inputs["input_ids"].to(model.device)
    prompt_mask = inputs.get("attention_mask")
    prompt_mask = torch.ones_like(prompt_ids) if prompt_mask is None else prompt_mask.to(model.device)
    image_features = None
    if inputs.get("pixel_values") is not None:
        outputs = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        image_features = torch.cat(outputs.pooler_output)
    attention_mask = torch.cat([prompt_mask, answer_mask.to(prompt_mask.dtype)], dim=1)
    input_ids = torch.cat([prompt_ids, answer_ids], dim=1)
    position_ids = model.get_rope_index(input_ids, inputs.get("image_grid_thw"), attention_mask)
    if mask_probability > 0:
        draws = torch.empty(prompt_ids.shape, device=model.device).uniform_(generator=generator)
        is_text = (prompt_ids != model.config.image_token_id) & prompt_mask.bool()
        prompt_ids = prompt_ids.masked_fill((draws < mask_probability) & is_text, model.config.mask_token_id)
    return _Prompt(model.embed(prompt_ids, image_features), attention_mask, position_ids)


def _sum_log_probs(
    model: PreTrainedModel, prompt: _Prompt, answer_ids: torch.Tensor, masked: torch.Tensor, counted: torch.Tensor
) -> torch.Tensor:
    """Log-probability of the `counted` answer tokens of each row, `(num_rows,)`, where `masked` ones are masked."""
    ids = answer_ids.masked_fill(masked, model.config.mask_token_id)
    hidden_states = model.model(
        inputs_embeds=torch.cat([prompt.embeds, model.model.embed_tokens(ids)], dim=1),
        attention_mask=prompt.attention_mask,
        position_ids=prompt.position_ids,
        is_causal=not model.config.full_attn_mask,
    ).last_hidden_state
    # The output of a position predicts the token after it.
    hidden_states = hidden_states[:, prompt.embeds.shape[1] - 1 : -1]
    losses, _, _ = token_cross_entropy(
        hidden_states[counted], model.lm_head, answer_ids[counted], model.config.vocab_size
    )
    return torch.zeros(counted.shape, device=losses.device).masked_scatter(counted, -losses).sum(dim=1)


def _checked_answer(
    inputs: dict[str, Any],
    answer_ids: torch.LongTensor,
    answer_attention_mask: torch.LongTensor | None,
    mask_token_id: int,
) -> torch.BoolTensor:
    known = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    for name in inputs:
        if name not in known:
            raise ValueError(f"`inputs` must hold {', '.join(known)} only (got {name!r})")
    if inputs.get("input_ids") is None:
        raise ValueError("`inputs` must hold `input_ids` (got none)")
    num_rows = len(inputs["input_ids"])
    if answer_ids.ndim != 2 or len(answer_ids) != num_rows or answer_ids.shape[1] == 0:
        raise ValueError(
            f"`answer_ids` must have shape ({num_rows}, answer_length) with at least one token "
            f"(got {tuple(answer_ids.shape)})"
        )
    if answer_attention_mask is None:
        answer_attention_mask = torch.ones_like(answer_ids)
    if answer_attention_mask.shape != answer_ids.shape:
        raise ValueError(
            f"`answer_attention_mask` must have the shape of `answer_ids`, {tuple(answer_ids.shape)} "
            f"(got {tuple(answer_attention_mask.shape)})"
        )
    answer_mask = answer_attention_mask.bool()
    if bool((answer_mask[:, 1:] & ~answer_mask[:, :-1]).any()) or not bool(answer_mask[:, 0].all()):
        raise ValueError("`answer_attention_mask` must have its zeros on the right of at least one token a row")
    if bool((answer_ids == mask_token_id).any()):
        raise ValueError(f"`answer_ids` must not hold the mask token {mask_token_id}")
    return answer_mask


def _check_options(
    estimator: str, num_samples: int, antithetic: bool, prompt_mask_probability: float, batch_size: int | None
) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(f"`estimator` must be one of {', '.join(ESTIMATORS)} (got {estimator!r})")
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"`num_samples` must be an integer >= 1 (got {num_samples!r})")
    if estimator == "elbo" and antithetic and num_samples % 2:
        raise ValueError(f"`num_samples` must be even with `antithetic=True` (got {num_samples})")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"`batch_size` must be an integer >= 1 (got {batch_size!r})")
    if not 0 <= prompt_mask_probability < 1:
        raise ValueError(f"`prompt_mask_probability` must lie in [0, 1) (got {prompt_mask_probability!r})")
    if prompt_mask_probability > 0 and estimator != "one_step":
        raise ValueError(f'`prompt_mask_probability` must be used with `estimator`="one_step" (got {estimator!r})')
