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
"""The processor of Dimple: chats and images in, tensors out, and token ids back to text.

Source: the released processor, which is Qwen2-VL's: a chat template puts one placeholder where an image stands, and
the placeholder grows to as many tokens as the image has merged patches (Dimple, section 3, arXiv 2505.16990).
"""

import copy
import inspect
import json
import os
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, TextKwargs, Unpack
from transformers.utils.chat_template_utils import _CONTROL_TOKEN_START, mark_control_tokens

from .image_processing_dimple import DimpleImageProcessor, flatten_images, refuse_unknown_names
from .messages_dimple import check_conversation, holds_any, join_split_tokens
from .structure_prior_dimple import OptionalPart, RepeatedPart, Slot, StructurePrior, canvas_inputs, read_answers
from .tokenization_dimple import DimpleTokenizer

#: Stands for one image token in the text. The same for every checkpoint, as the chat template spells it out.
IMAGE_TOKEN = "<|image_pad|>"

#: Files that the image processor and the tokenizer are loaded from.
IMAGE_FILES = ("preprocessor_config.json",)
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json")

#: Arguments that `apply_chat_template` takes itself; it passes the rest on to the template or to the processor's call.
TEMPLATE_ARGUMENTS = frozenset(inspect.signature(ProcessorMixin.apply_chat_template).parameters)


def _is_nested(images: Any) -> bool:
    """Whether images come as one list per row of the text."""
    return isinstance(images, (list, tuple)) and any(isinstance(row, (list, tuple)) for row in images)


@contextmanager
def _naming_files(folder: str | os.PathLike[str], names: Sequence[str]) -> Iterator[None]:
    """Makes one line of what goes wrong while a part is loaded from files: the file, if it can be told, and why."""
    try:
        yield
    except Exception as error:  # libraries raise any of a dozen types, depending on the damage
        if not os.path.isdir(folder):
            raise
        damaged = [
            name for name in names if os.path.exists(os.path.join(folder, name)) and not _is_readable(folder, name)
        ]
        files = ", ".join(damaged or names)
        raise ValueError(
            f"{files} in {folder} must be valid (got {type(error).__name__}: {' '.join(str(error).split())})"
        ) from error


def _is_readable(folder: str | os.PathLike[str], name: str) -> bool:
    """Whether a file is text, and JSON holds an object."""
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            text = file.read()
            return not name.endswith(".json") or isinstance(json.loads(text), dict)
    except (OSError, ValueError, RecursionError):
        return False


class _PriorClasses:
    """What structure priors are made of, for those who have a processor but no package to import from."""

    StructurePrior = StructurePrior
    Slot = Slot
    OptionalPart = OptionalPart
    RepeatedPart = RepeatedPart


class DimpleProcessor(_PriorClasses, ProcessorMixin):
    r"""
    Turns chats and images into the inputs of [`DimpleForConditionalGeneration`], and token ids back into text.

    It joins a [`DimpleImageProcessor`] and a [`DimpleTokenizer`]. The differences from transformers' processor of
    Qwen2.5-VL:

    - No video and no audio: the model was not trained on them. They are refused.
    - Rows are padded, on the left, when tensors are returned: `generate` needs the prompts to end at the same
      position. `padding_side="right"` and `padding=False` override that for one call.
    - Unknown arguments are refused, with the nearest known name.
    - Control tokens that a user's text spells stay text: a user cannot end a turn, nor write an image placeholder.
    - An image of a message may have options of its own: `min_pixels`, `max_pixels`, `resized_height` and
      `resized_width`, as in Qwen's message format.
    - A directory of the released model loads as it is, and what is saved loads in the released code.
    - What priors are made of are its attributes: `processor.StructurePrior`, `processor.Slot`,
      `processor.OptionalPart`, `processor.RepeatedPart`. So a processor that came with its own code
      (`trust_remote_code=True`, on a machine without this package) has them, too.

    Args:
        image_processor ([`DimpleImageProcessor`]):
            Makes the patches.
        tokenizer ([`DimpleTokenizer`]):
            Makes the token ids.
        chat_template (`str` or `dict[str, str]`, *optional*):
            Jinja template that turns a chat into text, or several by name. Defaults to the tokenizer's.

    Raises:
        ValueError: If the tokenizer lacks the image placeholder `<|image_pad|>`.

    Example:

    ```python
    >>> from dimple_hf import DimpleProcessor

    >>> processor = DimpleProcessor.from_pretrained("rp-yu/Dimple-7B")
    >>> content = [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What is this?"}]
    >>> inputs = processor.apply_chat_template(
    ...     [{"role": "user", "content": content}],
    ...     add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    ... )
    ```
    """

    def __init__(
        self,
        image_processor: DimpleImageProcessor,
        tokenizer: DimpleTokenizer,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        if chat_template is None:
            self.chat_template = tokenizer.chat_template
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.get_vocab().get(IMAGE_TOKEN)
        if self.image_token_id is None:
            raise ValueError(f"`tokenizer` must have the token {IMAGE_TOKEN} (got one of {len(tokenizer)} without it)")

    @classmethod
    def _get_arguments_from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        processor_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """
        Loads the two parts with the classes of this package. The parent would ask the Auto classes, which may offer to
        run the code that a released directory names in its `auto_map`.
        """
        image_settings = DimpleImageProcessor.valid_kwargs.__annotations__
        with _naming_files(pretrained_model_name_or_path, IMAGE_FILES):
            image_processor = DimpleImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        with _naming_files(pretrained_model_name_or_path, TOKENIZER_FILES):
            tokenizer = DimpleTokenizer.from_pretrained(
                pretrained_model_name_or_path,
                **{name: value for name, value in kwargs.items() if name not in image_settings},
            )
        return [image_processor, tokenizer]

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Lets the code travel with what is saved: that of the processor, and that of its two parts."""
        super().register_for_auto_class(auto_class)
        DimpleImageProcessor.register_for_auto_class()
        DimpleTokenizer.register_for_auto_class()

    def to_dict(self) -> dict[str, Any]:
        """The contents of `processor_config.json`. The image settings are in `preprocessor_config.json` alone."""
        output = super().to_dict()
        output.pop("image_processor", None)
        return output

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """
        Saves the processor in the layout of the released model, which transformers 5 reads too: the image settings in
        `preprocessor_config.json`, and the chat template also in `chat_template.json`. Of the files that hold the
        template, transformers 5 prefers that one: to change the template by hand, change or delete it.

        Args:
            save_directory (`str` or `os.PathLike`):
                Where to save. It is made if it does not exist.
            push_to_hub (`bool`, *optional*, defaults to `False`):
                Whether to upload the files as well.
            **kwargs:
                `repo_id` (default: the name of the directory) and the other arguments of `push_to_hub`.

        Returns:
            `list[str]`: The paths of the processor's own files.
        """
        # The parent notes in what it saves where the code of the saved files is.
        saved = copy.copy(self)
        saved.image_processor = copy.copy(self.image_processor)
        files = super(DimpleProcessor, saved).save_pretrained(save_directory)
        files += saved.image_processor.save_pretrained(save_directory)
        if isinstance(self.chat_template, str):  # the released code has a single template only
            files.append(os.path.join(save_directory, "chat_template.json"))
            with open(files[-1], "w", encoding="utf-8") as file:
                file.write(json.dumps({"chat_template": self.chat_template}, indent=2, ensure_ascii=False) + "\n")
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", os.path.basename(os.path.abspath(save_directory)))
            self.push_to_hub(repo_id, **kwargs)
        return files

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        videos: None = None,
        audio: None = None,
        structure_prior: StructurePrior | Sequence[StructurePrior | None] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """
        Turns texts with image placeholders, and their images, into tensors.

        Args:
            images (`ImageInput`, *optional*):
                The images, of any kind that [`DimpleImageProcessor`] takes: in reading order as one flat list, or as
                one list per row, which is empty (or `None`) for a row without images.
            text (`str` or `list[str]`, *optional*):
                One row of text, or several, with one `<|image_pad|>` for each image, as the chat template writes it.
            videos, audio (`None`):
                Not supported; here only because every processor of transformers has them.
            structure_prior ([`StructurePrior`] or `Sequence[StructurePrior | None]`, *optional*):
                The form of the answers, for all rows or one for each; `None` for a row that is free. Needs
                `return_tensors="pt"`.
            **kwargs:
                Arguments of the tokenizer and of the image processor for this call, flat or as `text_kwargs`,
                `images_kwargs` and `common_kwargs`: `return_tensors` (`"pt"` or `"np"`), `padding` (defaults to `True`
                if tensors are requested, else `False`), `padding_side` (defaults to the tokenizer's, left),
                `truncation`, `max_length`, `size` and others.

        Returns:
            [`BatchFeature`] with
            - **input_ids** (int64 of shape `(rows, length)`, with `text`): token ids, an image being as many
              `<|image_pad|>` as it has merged patches; `<|endoftext|>` where padded.
            - **attention_mask** (int64 of shape `(rows, length)`, with `text`): 1 for tokens, 0 where padded.
            - **pixel_values**, **image_grid_thw** (with images): see [`DimpleImageProcessor.preprocess`].
            - **answer_ids**, **answer_constraint** and, where rows differ in length, **answer_attention_mask** (with
              `structure_prior`): see [`~DimpleForConditionalGeneration.generate`].

        Raises:
            ValueError: Where videos, audio or unknown arguments are given, where the images do not match the
                placeholders (the message names the row), where text is not valid Unicode, where an image is none, and
                where a prior cannot be laid out.
        """
        for name, value in (("videos", videos), ("audio", audio)):
            if value is not None:
                raise ValueError(f"`{name}` must be None, as Dimple takes text and images only (got {type(value)})")
        groups = self._argument_groups()
        refuse_unknown_names(kwargs, self._argument_names(), type(self).__name__)
        for group in groups.keys() & kwargs.keys():
            refuse_unknown_names(kwargs[group], groups[group], f"`{group}`")
        if kwargs.get("sanitize_control_tokens") is None and holds_any(text, (_CONTROL_TOKEN_START,)):
            kwargs["sanitize_control_tokens"] = True  # text that `apply_chat_template` has marked
        if structure_prior is None:
            return super().__call__(images=images, text=text, **kwargs)
        if text is None:
            raise ValueError("`structure_prior` must be given with `text` (got images only)")
        num_rows = 1 if isinstance(text, str) else len(text)
        answers = canvas_inputs(structure_prior, num_rows, self.tokenizer)
        features = super().__call__(images=images, text=text, **kwargs)
        if not isinstance(features["input_ids"], torch.Tensor):
            raise ValueError('`return_tensors` must be "pt" with a `structure_prior`')
        features.update(answers)
        return features

    def _argument_groups(self) -> dict[str, set[str]]:
        """The known names of each group of arguments of a call."""
        text = set(TextKwargs.__annotations__)
        images = set(self.image_processor.valid_kwargs.__annotations__)
        return {"text_kwargs": text, "images_kwargs": images, "common_kwargs": text & images}

    def _argument_names(self) -> set[str]:
        """The names of all arguments of a call."""
        groups = self._argument_groups()
        own = {"images", "text", "structure_prior"}
        return own.union(ProcessingKwargs.__annotations__, groups, *groups.values())

    def _merge_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, dict[str, Any]]:
        """Sorts the arguments of a call as the parent does, and pads by default where tensors are requested."""
        merged = super()._merge_kwargs(*args, **kwargs)
        text_kwargs = merged["text_kwargs"]
        if (side := text_kwargs.get("padding_side")) not in ("left", "right", None):
            raise ValueError(f"`padding_side` must be 'left' or 'right' (got {side!r})")
        text_kwargs.setdefault("padding", text_kwargs.get("return_tensors") is not None)
        return merged

    def prepare_inputs_layout(
        self, images: Any = None, text: Any = None, videos: None = None, audio: None = None, **kwargs: Any
    ) -> tuple[Any, Any, None, None]:
        """Brings the inputs into lists. Nothing is opened yet: the rows are compared with the images first."""
        if isinstance(text, str):
            text = [text]
        elif isinstance(text, (list, tuple)):
            text = list(text)
        if _is_nested(images):
            images = [[] if row is None else row for row in images]
        if images is not None and not flatten_images(images):
            images = None
        return images, text, None, None

    def validate_inputs(
        self, images: Any = None, text: Any = None, videos: None = None, audio: None = None, **kwargs: Any
    ) -> None:
        """Refuses text that is none, and images that do not match its placeholders."""
        if text is None:
            if images is None:
                raise ValueError("`text` or `images` must be given (got neither)")
            return
        if not isinstance(text, list) or not text:
            raise ValueError(f"`text` must be a string or a list of at least one (got {text!r})")
        for row, sample in enumerate(text):
            if not isinstance(sample, str):
                raise ValueError(f"`text` must be a string or a list of strings (got {type(sample)} in row {row})")
            try:
                sample.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"`text` must be valid Unicode (row {row}: {error})") from error
        placeholders = [sample.count(self.image_token) for sample in text]
        if _is_nested(images):
            self._check_images_of_rows(placeholders, images)
        else:
            self._check_flat_images(placeholders, 0 if images is None else len(flatten_images(images)))

    def _check_images_of_rows(self, placeholders: list[int], images: list[Any]) -> None:
        """Compares one list of images per row with the number of placeholders of each row."""
        if len(images) != len(placeholders):
            raise ValueError(
                f"`images` must hold one list for each row of `text` (got {len(images)} for {len(placeholders)} rows)"
            )
        for row, (number, given) in enumerate(zip(placeholders, images, strict=True)):
            given = len(flatten_images(given))
            if number != given:
                raise ValueError(
                    f"`images` must match the {self.image_token} placeholders in `text`"
                    f" (row {row} has {number} placeholders and {given} images)"
                )

    def _check_flat_images(self, placeholders: list[int], given: int) -> None:
        """Compares images in reading order with the placeholders, and names the row where they run out."""
        left = given
        for row, number in enumerate(placeholders):
            if number > left:
                raise ValueError(
                    f"`images` must match the {self.image_token} placeholders in `text`"
                    f" (row {row} has {number} placeholders, and of {given} images {left} are left for it)"
                )
            left -= number
        if left:
            raise ValueError(
                f"`images` must match the {self.image_token} placeholders in `text`"
                f" (after row {len(placeholders) - 1}, the last one, {left} of {given} images are left over)"
            )

    def _process_images(self, images: ImageInput, **kwargs: Any) -> tuple[BatchFeature, list[str]]:
        """The patches of all images, and what the placeholder of each grows to."""
        features = self.image_processor(images, **kwargs)
        count = len(features["image_grid_thw"])
        return features, [self.replace_image_token(features, index, **kwargs) for index in range(count)]

    def replace_image_token(self, image_inputs: BatchFeature, image_idx: int, **kwargs: Any) -> str:
        """The placeholder of one image, repeated once for each merged patch."""
        merge_size = kwargs.get("merge_size") or self.image_processor.merge_size
        return self.image_token * (int(image_inputs["image_grid_thw"][image_idx].prod()) // merge_size**2)

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Sequence[int]] | None = None, video_sizes: None = None, **kwargs: Any
    ) -> MultiModalData:
        """
        The number of tokens of images by their sizes alone, for inference engines.

        Args:
            image_sizes (`Sequence[Sequence[int]]`, *optional*):
                Height and width of each image.
            video_sizes (`None`):
                Not supported.
            **kwargs:
                Arguments of the image processor, such as `max_pixels`.

        Returns:
            `MultiModalData`: `num_image_tokens` and `num_image_patches`, one number per image.

        Raises:
            ValueError: If there are videos.
        """
        if video_sizes is not None:
            raise ValueError(f"`video_sizes` must be None, as Dimple takes text and images only (got {video_sizes!r})")
        if image_sizes is None:
            return MultiModalData()
        options = self._merge_kwargs(**kwargs)["images_kwargs"]
        patches = [self.image_processor.get_number_of_image_patches(*size, options) for size in image_sizes]
        merged = (options.get("merge_size") or self.image_processor.merge_size) ** 2
        return MultiModalData(num_image_tokens=[number // merged for number in patches], num_image_patches=patches)

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: str | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        frames_as_images: bool = False,
        sanitize_control_tokens: bool | None = None,
        **kwargs: Any,
    ) -> str | list[str] | list[list[int]] | torch.Tensor | BatchFeature:
        """
        Turns a chat, or a batch of chats, into text or into the inputs of the model.

        Args:
            conversation (`list[dict]` or `list[list[dict]]`):
                Messages with a `role` and a `content`: a string, or a list of parts such as
                `{"type": "text", "text": "Hi"}`, `{"type": "image", "image": image}` (the key may also be `path`,
                `url` or `base64`, and the value whatever [`DimpleImageProcessor`] takes), or OpenAI's `image_url`.
                An image part may also have `min_pixels` and `max_pixels`, or `resized_height` and `resized_width`,
                which win over the processor's `size`. Chats of a batch may hold different numbers of images, or none.
            chat_template (`str`, *optional*):
                A template, or the name of one, to use instead of the processor's default.
            processor_kwargs (`dict`, *optional*):
                Arguments of [`~DimpleProcessor.__call__`].
            frames_as_images (`bool`, *optional*, defaults to `False`):
                Whether a part such as `{"type": "video", "video": [frame, frame]}` becomes one image per frame.
            sanitize_control_tokens (`bool`, *optional*):
                Whether control tokens that the conversation spells are encoded as text. Defaults to `tokenize`. True
                without `tokenize` marks them in the returned text, for a later call of the processor.
            **kwargs:
                `tokenize` (default `False`: return text), `return_dict` (default `False`: return token ids only),
                `return_tensors`, `add_generation_prompt` (default `False`), `continue_final_message` and the other
                arguments of [`ProcessorMixin.apply_chat_template`]; variables of the template; and, as an alternative
                to `processor_kwargs`, arguments of the call, such as `structure_prior`, `padding_side`, or
                `images` for image parts without a source (a list of lists for a batch).

        Returns:
            `str`, or `list[str]` for a batch, without `tokenize`. With it token ids, and with `return_dict` too what
            [`~DimpleProcessor.__call__`] returns.

        Raises:
            ValueError: Where a message has no role, no content or parts of another type (videos, audio), where an
                argument is unknown, and wherever the call itself refuses its inputs.
        """
        conversation = check_conversation(conversation, frames_as_images)
        template = self._resolve_chat_template(chat_template)
        processor_kwargs = dict(processor_kwargs or {})
        call_names = self._argument_names()
        for name in [name for name in kwargs if name not in TEMPLATE_ARGUMENTS]:
            if name in call_names:
                processor_kwargs[name] = kwargs.pop(name)
            elif not re.search(rf"\b{re.escape(name)}\b", template):
                refuse_unknown_names([name], call_names | TEMPLATE_ARGUMENTS, f"{type(self).__name__}'s chat template")
        if processor_kwargs.get("structure_prior") is not None and not (
            kwargs.get("tokenize") and kwargs.get("return_dict")
        ):
            raise ValueError("`tokenize` and `return_dict` must be True with a `structure_prior`")
        images = processor_kwargs.get("images")
        if images is not None and not isinstance(conversation[0], list):
            processor_kwargs["images"] = flatten_images(images)  # the parent wraps this list and iterates over it
        elif images is not None and not _is_nested(images):
            raise ValueError(f"`images` must be one list per conversation of a batch (got {type(images).__name__})")
        if kwargs.get("tokenize", False) if sanitize_control_tokens is None else sanitize_control_tokens:
            conversation, kwargs = self._sanitized(conversation, template, kwargs)
        return super().apply_chat_template(
            conversation, chat_template=chat_template, processor_kwargs=processor_kwargs, **kwargs
        )

    def _sanitized(self, conversation: list[Any], template: str, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments of `apply_chat_template`, so that control tokens which users spelled become text."""
        tokens = self.tokenizer._get_control_tokens(template)
        if isinstance(conversation[0], list):
            conversation = [join_split_tokens(messages, tokens) for messages in conversation]
        else:
            conversation = join_split_tokens(conversation, tokens)
        if not holds_any([conversation, kwargs], tokens):
            return conversation, kwargs
        if kwargs.get("tokenize"):
            return conversation, kwargs | {"sanitize_control_tokens": True}
        longest_first = sorted(map(re.escape, tokens), key=len, reverse=True)
        return mark_control_tokens(conversation, re.compile("|".join(longest_first))), kwargs

    def parse(
        self,
        output: Any,
        prior: StructurePrior | Sequence[StructurePrior | None],
        return_confidence: bool = False,
    ) -> Any:
        """
        The values of answers that were generated under structure priors.

        Args:
            output (`torch.LongTensor` of shape `(rows, length)`, or [`DimpleGenerationOutput`]):
                What `generate` returned.
            prior ([`StructurePrior`] or `Sequence[StructurePrior | None]`):
                The prior of all rows, or one for each, as the inputs were made with. With several sequences for each
                input, the priors of the inputs.
            return_confidence (`bool`, *optional*, defaults to `False`):
                Whether to return the probability of each value too; `output` must then have `token_logprobs`.

        Returns:
            What the prior reads: a dict of slots, a JSON value, or an object of a pydantic class; the text of a row
            without a prior; the exception, as a value, of a row that the class does not take. A list of these, one for
            each row, unless there is one row and `prior` is not a sequence. With `return_confidence`, a tuple of that
            and of trees of the same shape with probabilities (`None` for a row without a prior).

        Raises:
            ValueError: Where an answer does not have the prior's form, as it was not generated under it or not to its
                end, and where the number of priors does not match the rows.
        """
        return read_answers(output, prior, self.tokenizer, return_confidence)

    def infill(
        self,
        template: str,
        images: ImageInput | None = None,
        prompt: str = "Fill in the gaps:",
        slots: Mapping[str, Slot | dict[str, Any]] | None = None,
    ) -> tuple[BatchFeature, StructurePrior]:
        """
        The inputs that let the model fill in the gaps of a text.

        Args:
            template (`str`):
                The text, with gaps such as `{gap:6}` (see [`StructurePrior.from_template`]).
            images (`ImageInput`, *optional*):
                Images that the text is about.
            prompt (`str`, *optional*, defaults to `"Fill in the gaps:"`):
                Text of the user; the text with lines for gaps follows.
            slots (`Mapping[str, Slot | dict]`, *optional*):
                What gaps may hold.

        Returns:
            `tuple[BatchFeature, StructurePrior]`: Inputs of `generate`, and the prior for [`~DimpleProcessor.parse`].

        Raises:
            ValueError: Where the template is none, or has no gap.
        """
        prior = StructurePrior.from_template(template, slots=slots)
        fields = list(string.Formatter().parse(template))
        if all(name is None for _, name, _, _ in fields):
            raise ValueError(f"`template` must have a gap such as {{gap:6}} (got {template!r})")
        blanks = "".join(text + ("" if name is None else "____") for text, name, _, _ in fields)
        content: list[dict[str, Any]] = [
            {"type": "image", "image": image} for image in ([] if images is None else flatten_images(images))
        ]
        content.append({"type": "text", "text": f"{prompt} {blanks}"})
        inputs = self.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", structure_prior=prior,
        )  # fmt: skip
        return inputs, prior


__all__ = ["DimpleProcessor"]
