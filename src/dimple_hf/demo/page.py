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
"""The page of `dimple-hf demo`: ask about an image, watch the answer come (`pip install 'dimple_hf[demo]'`).

Only the wiring of gradio: what is asked and answered is in `answers`, how a canvas looks in `canvas`. The page needs
no network: its fonts are the browser's, and nothing is reported to anyone.
"""

import json
import os
import time
from abc import ABCMeta
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Gradio reads it when it is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from transformers import PreTrainedModel, ProcessorMixin

from ..checkpoints import FORMS_SAMPLE
from ..data.image_features import ImageFeatures
from .answers import FREE, SCHEMA, TEMPLATE, AnswerState, Question, answer_states, open_image, read_form
from .canvas import CANVAS_CSS, CANVAS_JS, canvas_html, canvas_text, replay_html

#: Largest file that can be uploaded.
MAX_FILE_SIZE = "30mb"

#: Most positions of an answer without a form, where the model can take as many.
MAX_ANSWER_LENGTH = 512

#: Runs when the page has loaded: the canvas's controls, and a role that lets screen readers read the status out.
PAGE_JS = (
    "() => {"
    + CANVAS_JS
    + "document.querySelector('#status [data-testid=markdown]').setAttribute('role', 'status'); }"
)

#: Seconds that each step is shown for; the small model would be done before anyone has looked.
DEFAULT_PAUSE = 0.2

EMPTY_CANVAS = (
    '<div class="dimple-canvas"><span class="hint">The answer appears here, all positions at once. Dashed boxes are'
    " still masked; colour and number show which step unmasked a position; a strong colour means a high"
    " confidence."
    "</span></div>"
)

PAGE_CSS = (
    CANVAS_CSS
    + """
#canvas, #canvas > div { padding: 0; }
#status { min-height: 1.6em; }
#form textarea { font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
#intro h1 { margin: 0; }
button:disabled { opacity: 1 !important; filter: none !important; color: var(--neutral-500) !important;
  background: var(--background-fill-secondary) !important; border: 1px dashed var(--border-color-primary) !important; }
.dark button:disabled { color: var(--neutral-400) !important; }
@media (max-width: 640px) { #image { height: 150px !important; min-height: 150px !important; } }
"""
)

FORM_HINTS = {
    FREE: "",
    TEMPLATE: "Fixed text and gaps, such as: price {price:4} in {currency:3}",
    SCHEMA: '{"type": "object", "properties": {"price": {"type": "integer"}}, "required": ["price"]}',
}

FORM_SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            name: {"type": "integer", "minimum": 0, "maximum": 9999} for name in ("price", "floor", "table", "qty")
        },
        "required": ["price", "floor", "table", "qty"],
    },
    indent=2,
)

#: What the package's small model was trained to answer; another model is for any question.
FORMS_HINT = (
    "It reads images of small handwritten forms, and nothing else: *Read the form.* *Read the form as JSON.*"
    " *What is the floor?* *How many rows are there?* Try an example."
)
OTHER_HINT = "Ask anything about an image of yours, or try an example."

#: Name, image, question and form of the answer.
EXAMPLES = [
    ["A form, freely", str(FORMS_SAMPLE), "Read the form.", FREE, ""],
    ["A form, as JSON of a schema", str(FORMS_SAMPLE), "Read the form as JSON.", SCHEMA, FORM_SCHEMA],
    ["One of its numbers", str(FORMS_SAMPLE), "What is the floor?", FREE, ""],
    ["Its number of rows", str(FORMS_SAMPLE), "How many rows are there?", FREE, ""],
]


def status_text(state: AnswerState) -> str:
    """
    Args:
        state ([`AnswerState`]):
            Where an answer stands.

    Returns:
        `str`: Forward passes and time, in a line.
    """
    passes = f"{state.num_passes} forward pass{'' if state.num_passes == 1 else 'es'}"
    if state.text is None:
        return f"{passes}, {state.num_unmasked} of {state.num_positions} positions unmasked, {state.seconds:.2f} s"
    return f"Done: {passes} for {state.num_positions} positions, {state.seconds:.2f} s"


def answer_markdown(state: AnswerState) -> str:
    """
    Args:
        state ([`AnswerState`]):
            The last state of an answer, or the one that it was stopped at.

    Returns:
        `str`: What the chat shows: the answer, as JSON where it has a form; of a stopped one what was unmasked, with
        a sign for each position that was not.
    """
    if state.text is None:
        return f"{canvas_text(state.runs)} (stopped)"
    if state.value is None:
        return state.text or "(an empty answer)"
    return f"```json\n{json.dumps(state.value, indent=2, ensure_ascii=False, default=str)}\n```"


#: An image as its file: gradio's own opens it, and shows a traceback for one that is no image. Without the metaclass's
#: `__new__`, which writes a `.pyi` file beside the source of every subclass.
_ImageFile = ABCMeta.__new__(
    type(gr.Image),
    "_ImageFile",
    (gr.Image,),
    {
        "__module__": __name__,
        "is_template": True,  # in the browser it is gradio's
        "preprocess": lambda self, payload: None if payload is None else payload.path,
    },
)


@dataclass(frozen=True)
class _Parts:
    """The components of the page that events read and write."""

    image: gr.Image
    kind: gr.Radio
    form: gr.Textbox
    threshold: gr.Slider
    length: gr.Slider
    pause: gr.Slider
    remember: gr.Checkbox
    question: gr.Textbox
    ask: gr.Button
    stop: gr.Button
    new_chat: gr.Button
    canvas: gr.HTML
    status: gr.Markdown
    chat: gr.Chatbot


def build_page(model: PreTrainedModel, processor: ProcessorMixin, name: str, remembers: bool = True) -> gr.Blocks:
    """
    Args:
        model ([`DimpleForConditionalGeneration`]), processor ([`DimpleProcessor`]):
            What answers.
        name (`str`):
            What the page calls the model.
        remembers (`bool`, *optional*, defaults to `True`):
            Whether the page starts out sending earlier questions and answers along.

    Returns:
        `gr.Blocks`: The page. It answers one question at a time, and others wait.

    Raises:
        ValueError: If the model is not in bidirectional mode, in which alone there is something to watch.
    """
    if not model.config.full_attn_mask:
        raise ValueError("`model` must be in bidirectional mode to be watched (got `full_attn_mask=False`)")
    with gr.Blocks(title="Dimple", analytics_enabled=False) as page:
        gr.Markdown(
            "# Dimple\n**It does not write from left to right: the answer starts as masks, and each step unmasks what"
            f" it is sure of.** You ask {name}. {OTHER_HINT if remembers else FORMS_HINT}",
            elem_id="intro",
        )
        _Events(_lay_out(model, remembers), model, processor).connect()
    return page


def _lay_out(model: PreTrainedModel, remembers: bool) -> _Parts:
    """Image and examples; question, canvas, form of the answer, settings and chat. On a phone one column."""
    question = gr.Textbox(label="Question", placeholder="Read the form.", max_lines=4, render=False)
    kind = gr.Radio([FREE, TEMPLATE, SCHEMA], value=FREE, label="Form of the answer", render=False)
    form = gr.Textbox(label=SCHEMA, lines=4, max_lines=12, visible=False, elem_id="form", render=False)
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            image = _ImageFile(
                label="Image", type="filepath", sources=["upload", "clipboard"], height=240, elem_id="image"
            )
            gr.Examples(
                [example for _, *example in EXAMPLES],
                [image, question, kind, form],
                example_labels=[label for label, *_ in EXAMPLES],
            )
        with gr.Column(scale=7, min_width=300):
            question.render()
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", size="md", min_width=80)
                stop = gr.Button("Stop", variant="stop", size="md", interactive=False, min_width=80)
                new_chat = gr.Button("New chat", size="md", min_width=80)
            canvas = gr.HTML(EMPTY_CANVAS, elem_id="canvas")
            status = gr.Markdown("", elem_id="status")
            kind.render()
            form.render()
            threshold, length, pause, remember = _lay_out_settings(model, remembers)
            chat = gr.Chatbot(label="Chat", height=320, buttons=[], elem_id="chat")
    return _Parts(
        image, kind, form, threshold, length, pause, remember, question, ask, stop, new_chat, canvas, status, chat
    )


def _lay_out_settings(model: PreTrainedModel, remembers: bool) -> tuple[gr.Slider, gr.Slider, gr.Slider, gr.Checkbox]:
    """Threshold, length, pause, and whether earlier turns are sent along, folded away."""
    options = model.generation_config
    longest = min(MAX_ANSWER_LENGTH, model.config.max_position_embeddings // 2)
    with gr.Accordion("Settings", open=False):
        threshold = gr.Slider(
            0.05,
            1,
            value=options.confidence_threshold or 0.95,
            step=0.01,
            label="Confidence threshold",
            info="Every position above it is unmasked at once; at 1, one position in each step.",
        )
        length = gr.Slider(
            1,
            longest,
            value=min(options.max_new_tokens or 64, longest),
            step=1,
            label="Answer length",
            info="Positions of an answer. A form has its own.",
        )
        pause = gr.Slider(
            0,
            1,
            value=DEFAULT_PAUSE,
            step=0.05,
            label="Pause after each step",
            info="Seconds, to watch. They are not counted.",
        )
        remember = gr.Checkbox(value=remembers, label="Send earlier questions and answers along")
    return threshold, length, pause, remember


class _Events:
    """What happens on the page: its components, and the model that answers."""

    def __init__(self, parts: _Parts, model: PreTrainedModel, processor: ProcessorMixin):
        self.parts = parts
        self.features = ImageFeatures(model)
        self.processor = processor
        self.turns = gr.State([])  # finished questions and answers
        self.asked_about = gr.State(None)  # the image that they were about
        self.stopped: set[str | None] = set()  # sessions whose answer is to end after the step that is running
        self.buttons = (parts.ask, parts.stop, parts.new_chat)

    def enabled(self, *active: gr.Button) -> dict[Any, Any]:
        """Updates that enable these buttons only."""
        return {button: gr.update(interactive=button in active) for button in self.buttons}

    def respond(
        self,
        text: str,
        path: str | None,
        kind: str,
        form: str,
        threshold: float,
        length: int,
        pause: float,
        remember: bool,
        earlier: list[tuple[str, str]],
        about: str | None,
        messages: list[dict[str, Any]],
        request: gr.Request,
    ) -> Iterator[dict[Any, Any]]:
        """Asks, and shows each state of the answer. What is wrong with the question becomes the status. Gradio passes
        an argument for each input."""
        parts, at_rest = self.parts, self.enabled(self.parts.ask, self.parts.new_chat)
        self.stopped.discard(request.session_hash)
        earlier = earlier if path == about else []
        messages = [*messages, {"role": "user", "content": text}]
        try:
            if not text.strip():
                raise ValueError("Type a question first.")
            asked = Question(
                text=text,
                image=None if path is None else open_image(path),
                earlier=earlier if remember else [],
                prior=read_form(kind, form),
                confidence_threshold=threshold,
                max_new_tokens=int(length),
            )
            for state in answer_states(self.features, self.processor, asked):
                is_stopped = state.text is None and request.session_hash in self.stopped
                shown = self.shown(state, is_stopped)
                if state.step == 0:
                    shown |= {parts.question: "", parts.chat: [*messages, _reply("…")], **self.enabled(parts.stop)}
                if state.text is not None:
                    shown |= {self.turns: [*earlier, (text, state.text)], self.asked_about: path}
                if state.text is not None or is_stopped:
                    yield shown | {parts.chat: [*messages, _reply(answer_markdown(state))], **at_rest}
                    return
                yield shown
                time.sleep(pause)
        except ValueError as error:
            yield {parts.status: f"⚠ {error}", **at_rest}
        except Exception:  # a defect, or too little memory: the page stays usable, and the log has the traceback
            yield {parts.status: "⚠ Something went wrong; see the log of the server.", **at_rest}
            raise

    def shown(self, state: AnswerState, is_stopped: bool) -> dict[Any, Any]:
        """Canvas and status of a state."""
        draw = replay_html if state.text is not None or is_stopped else canvas_html
        return {
            self.parts.canvas: draw(state.runs, state.step),
            self.parts.status: f"Stopped: {status_text(state)}" if is_stopped else status_text(state),
        }

    def check(self, path: str) -> dict[Any, Any]:
        """Refuses a bad file as soon as it is there."""
        try:
            open_image(path)
        except ValueError as error:
            return {self.parts.image: None, self.parts.status: f"⚠ {error}"}
        return {self.parts.status: ""}

    def request_stop(self, request: gr.Request) -> None:
        """Ends the session's answer after the step that is running."""
        self.stopped.add(request.session_hash)

    def connect(self) -> None:
        """Lets the components call the methods."""
        parts = self.parts
        gr.on(
            [parts.ask.click, parts.question.submit],
            self.respond,
            [
                parts.question, parts.image, parts.kind, parts.form, parts.threshold, parts.length, parts.pause,
                parts.remember, self.turns, self.asked_about, parts.chat,
            ],
            [
                parts.question, parts.chat, parts.canvas, parts.status, self.turns, self.asked_about, *self.buttons
            ],
            show_progress="hidden",
            concurrency_limit=1,
        )  # fmt: skip
        # On a phone the answer may be below the screen.
        parts.ask.click(
            None, js="() => document.getElementById('canvas').scrollIntoView({block: 'nearest', behavior: 'smooth'})"
        )
        parts.stop.click(self.request_stop, queue=False, show_progress="hidden")
        gr.on(
            [parts.new_chat.click, parts.chat.clear],
            lambda: ([], EMPTY_CANVAS, "", [], None),
            None,
            [parts.chat, parts.canvas, parts.status, self.turns, self.asked_about],
            queue=False,
            show_progress="hidden",
        )
        parts.image.upload(self.check, parts.image, [parts.image, parts.status], show_progress="hidden")
        parts.kind.change(
            lambda kind: gr.update(visible=kind != FREE, label=kind, placeholder=FORM_HINTS[kind]),
            parts.kind,
            parts.form,
            show_progress="hidden",
        )


def _reply(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def page_theme() -> gr.themes.Base:
    """Gradio's default look with the browser's fonts, and grey texts and buttons dark enough to be read."""
    theme = gr.themes.Default(
        primary_hue="sky", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )


def launch_page(page: gr.Blocks, host: str, port: int | None, block: bool = True) -> str:
    """
    Serves a page, to this machine or its network, never by a tunnel.

    Args:
        page (`gr.Blocks`):
            What [`build_page`] returned.
        host (`str`):
            Address to listen at.
        port (`int`, *optional*):
            Port; the first free one from 7860 when missing.
        block (`bool`, *optional*, defaults to `True`):
            Whether to return only when the server is stopped.

    Returns:
        `str`: Where the page is.

    Raises:
        OSError: If the port is taken.
    """
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        max_file_size=MAX_FILE_SIZE,
        footer_links=[],
        quiet=True,  # else it advises to share the page by a tunnel
        run_history=False,  # else every browser keeps the questions and answers
        prevent_thread_lock=not block,
        css=PAGE_CSS,
        js=PAGE_JS,
        theme=page_theme(),
    )
    return str(url).rstrip("/")
