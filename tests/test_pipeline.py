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
"""`pipeline("image-text-to-text")` on the model of the package: chats and plain prompts, batches, options, streaming.

What it says is compared with what `generate` says, never with fixed text, since the model may be trained anew.
"""

import threading
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Pipeline, TextIteratorStreamer, pipeline

from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.training import lora_config

QUESTIONS = ("Read the form.", "Read the form as JSON.", "How many rows are there?")


@pytest.fixture(scope="module")
def image(repo_root: Path) -> Image.Image:
    return Image.open(repo_root / "examples" / "forms" / "sample.png")


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return pipeline("image-text-to-text", model=str(FORMS_CHECKPOINT), device="cpu")


def chat(question: str, *images: Image.Image) -> list[dict[str, Any]]:
    images = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]


@cache
def own_model() -> tuple[Any, Any]:
    """The model and its processor, of which no pipeline has set an option."""
    model = AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT)
    return model, AutoProcessor.from_pretrained(FORMS_CHECKPOINT)


def generated(messages: list[dict[str, Any]], **options: Any) -> str:
    """What the model says when it is asked without a pipeline."""
    model, processor = own_model()
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    sequences = model.generate(**inputs, **options)
    return processor.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def answers(image: Image.Image) -> list[str]:
    """The model's own answer to each question, all different, so that a mixed-up one would be seen."""
    answers = [generated(chat(question, image)) for question in QUESTIONS]
    assert len(set(answers)) == len(QUESTIONS)
    assert all(answers)
    return answers


def texts(results: list[Any]) -> list[str]:
    """The answers of a batch, whose results come singly or in lists of one."""
    return [(result[0] if isinstance(result, list) else result)["generated_text"] for result in results]


def test_chat_gives_what_generate_gives(pipe: Pipeline, image: Image.Image, answers: list[str]) -> None:
    """With the checkpoint's own options, not the pipeline's; by default the chat comes back with the answer in it."""
    messages = chat(QUESTIONS[0], image)
    assert texts(pipe(text=messages, return_full_text=False)) == answers[:1]
    assert texts(pipe(text=messages)) == [[*messages, {"role": "assistant", "content": answers[0]}]]
    (tokens,) = pipe(text=messages, return_tensors=True)
    prompt = pipe.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    num_prompt_tokens = len(prompt["input_ids"][0])
    assert len(tokens["generated_token_ids"]) == num_prompt_tokens + pipe.model.generation_config.max_new_tokens


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_of_chats_gives_each_its_own_answer(
    pipe: Pipeline, image: Image.Image, answers: list[str], batch_size: int
) -> None:
    """Prompts of different lengths with one or two images, of which the pipeline makes batches itself."""
    chats = [chat(question, image) for question in QUESTIONS] + [chat(QUESTIONS[2], image, image.rotate(180))]
    expected = [*answers, generated(chats[-1])]
    assert texts(pipe(text=chats, batch_size=batch_size, return_full_text=False)) == expected


def test_batch_with_and_without_images_is_refused_by_transformers(pipe: Pipeline, image: Image.Image) -> None:
    """The page says so. One after the other they work."""
    chats = [chat(QUESTIONS[0], image), chat("Hello!")]
    with pytest.raises(ValueError, match="different keys"):
        pipe(text=chats, batch_size=2)
    assert texts(pipe(text=chats, return_full_text=False)) == [generated(one) for one in chats]


def test_plain_prompts_give_what_chats_give(pipe: Pipeline, image: Image.Image, answers: list[str]) -> None:
    """Text with the placeholder in it, one or several; images in a list or in a list for each prompt."""
    prompts = [
        pipe.processor.apply_chat_template(chat(question, image), add_generation_prompt=True, tokenize=False)
        for question in QUESTIONS
    ]
    options = {"return_full_text": False}
    assert texts(pipe(images=image, text=prompts[0], **options)) == answers[:1]
    assert texts(pipe(images=[image] * 3, text=prompts, **options)) == answers
    assert texts(pipe(images=[[image]] * 3, text=prompts, **options)) == answers
    assert texts(pipe({"images": image, "text": prompts[1]}, **options)) == answers[1:2]
    assert texts(pipe(images=image, text=prompts[0])) == [prompts[0] + answers[0]]


def test_chat_that_ends_with_the_assistant_is_continued(pipe: Pipeline, image: Image.Image) -> None:
    """The answer's beginning is given and kept, and what follows is generated."""
    beginning = {"role": "assistant", "content": [{"type": "text", "text": "price 929\n"}]}
    (result,) = pipe(text=[*chat(QUESTIONS[0], image), beginning])
    (part,) = result["generated_text"][-1]["content"]
    assert part["text"].startswith("price 929\n")
    assert len(part["text"]) > len("price 929\n")


def test_options_of_generate_are_passed_on(pipe: Pipeline, image: Image.Image) -> None:
    """In `generate_kwargs`: transformers' and ours, and those that there are not are refused."""
    messages = chat(QUESTIONS[0], image)
    options = {"max_new_tokens": 16, "confidence_threshold": None, "max_denoising_steps": 3}
    expected = generated(messages, **options)
    assert texts(pipe(text=messages, generate_kwargs=dict(options), return_full_text=False)) == [expected]
    assert generated(messages, max_new_tokens=48) != expected  # control
    assert texts(pipe(text=messages, max_new_tokens=48, return_full_text=False)) == [generated(messages)]
    with pytest.raises(ValueError, match="did you mean `confidence_threshold`"):
        pipe(text=messages, generate_kwargs={"confidence_treshold": 0.5})


def test_streamer_gets_the_answer_in_pieces(pipe: Pipeline, image: Image.Image) -> None:
    """As in a server: the pipeline runs in one thread, and another one reads what is settled from the left."""
    streamer = TextIteratorStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    options = {"streamer": streamer, "unmasking": "left_to_right", "confidence_threshold": None}
    results: list[Any] = []
    thread = threading.Thread(
        target=lambda: results.extend(
            pipe(text=chat(QUESTIONS[0], image), generate_kwargs=options, return_full_text=False)
        )
    )
    thread.start()
    pieces = [piece for piece in streamer if piece]
    thread.join()
    assert len(pieces) > 1
    assert "".join(pieces) == texts(results)[0]


def test_structure_prior_gives_the_answer_its_form(pipe: Pipeline, image: Image.Image) -> None:
    """An argument of the chat template. Priors of several rows are made by the processor, not by a pipeline."""
    prior = pipe.processor.StructurePrior.from_template("rows: {rows:1:int}!")
    messages = chat(QUESTIONS[2], image)
    (answer,) = texts(pipe(text=messages, structure_prior=prior, return_full_text=False))
    assert answer.startswith("rows: ")
    assert answer.endswith("!")
    assert texts(pipe(text=messages, return_full_text=False)) != [answer]  # control
    with pytest.raises(ValueError, match="a pipeline cannot join them"):
        pipe(text=[messages] * 2, structure_prior=prior, batch_size=2)


def test_pipeline_of_loaded_parts_takes_their_device_and_dtype(image: Image.Image, answers: list[str]) -> None:
    """`pipeline(model=model, processor=processor)`, as after fine-tuning."""
    model = AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype=torch.float32)
    pipe = pipeline("image-text-to-text", model=model, processor=AutoProcessor.from_pretrained(FORMS_CHECKPOINT))
    assert pipe.model is model
    assert len(texts(pipe(text=chat(QUESTIONS[0], image), return_full_text=False))[0]) > 0
    assert pipe.model.dtype == torch.float32


def test_pipeline_loads_an_adapter_by_its_folder(image: Image.Image, tmp_path: Path) -> None:
    """With the model that the adapter was trained on, the processor beside that, and the adapter's weights."""
    model = AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype=torch.float32)
    adapted = get_peft_model(model, lora_config(model.config.full_attn_mask, init_lora_weights=False)).eval()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.mul_(50)  # so that it changes the answer
    adapted.save_pretrained(tmp_path)
    pipe = pipeline("image-text-to-text", model=str(tmp_path), device="cpu", dtype=torch.float32)
    assert pipe.model.active_adapters() == ["default"]
    messages = chat(QUESTIONS[2], image)
    inputs = pipe.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    sequences = adapted.generate(**inputs)
    expected = pipe.processor.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert texts(pipe(text=messages, return_full_text=False)) == [expected]
    assert generated(messages) != expected  # control
