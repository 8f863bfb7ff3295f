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
"""Serve a page to play with a model: ask about an image, watch the answer being denoised, give it a form. Needs
`pip install 'dimple_hf[demo]'`."""

import argparse
from importlib.util import find_spec

from ..checkpoints import FORMS_CHECKPOINT
from .address import refuse_taken_address
from .arguments import add_device_argument, add_model_argument

HELP = "serve a page to play with a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    add_model_argument(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine only)"
    )
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command until it is interrupted; the page's address goes to stdout."""
    if args.port is not None and not 0 < args.port < 65536:
        raise ValueError(f"`--port` must lie between 1 and 65535 (got {args.port})")
    if find_spec("gradio") is None:
        raise ValueError(
            "`dimple-hf demo` must have gradio: run `pip install 'dimple_hf[demo]'` (got no such library)"
        )
    refuse_taken_address(args.host, args.port)
    from ..demo.page import build_page, launch_page
    from .loading import load_model, load_processor

    processor = load_processor(args.model)
    model = load_model(args.model, args.device)
    is_small = args.model == str(FORMS_CHECKPOINT)
    # The small model was taught single questions; earlier ones confuse it.
    page = build_page(
        model, processor, name="the small forms model" if is_small else args.model, remembers=not is_small
    )
    try:
        url = launch_page(page, args.host, args.port, block=False)
        print(f"The page is at {url}", flush=True)
        page.block_thread()
    except KeyboardInterrupt:  # it came before gradio waits for it
        page.close(verbose=False)
    return 0
