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
"""Answer OpenAI's clients: chat completions with images, streamed or at once, free or by a JSON schema."""

import argparse
import importlib.util
import logging
import os

from ..checkpoints import FORMS_CHECKPOINT
from .address import refuse_taken_address
from .arguments import add_device_argument, checkpoint_name

HELP = "serve a model to OpenAI's clients"

#: What the `serve` extra brings.
LIBRARIES = ("uvicorn", "starlette", "pydantic", "httpcore2", "prometheus_client")

#: This machine's names for itself.
LOOPBACK_HOSTS = frozenset(("localhost", "127.0.0.1", "::1"))

#: Options that are numbers -> the smallest.
SMALLEST = {
    "max_requests": 1,
    "max_batch_size": 1,
    "max_new_tokens": 1,
    "max_body_mib": 1,
    "max_image_mib": 1,
    "max_image_pixels": 1,
    "max_images": 1,
    "grace_seconds": 0,
}

#: Longest wait for the last responses to be sent, when all is answered.
LAST_SECONDS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument(
        "model",
        nargs="?",
        type=checkpoint_name,
        default=str(FORMS_CHECKPOINT),
        help="directory or Hub id of a checkpoint (default: the small one of the package, which reads forms)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default: %(default)s)")
    add_device_argument(parser)
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="type of the weights (default: the checkpoint's)",
    )
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="divide decisions by the temperatures that `calibrate` left beside the model",
    )
    parser.add_argument(
        "--allow-remote-images", action="store_true", help="fetch images from addresses, public ones only"
    )
    parser.add_argument("--max-requests", type=int, default=128, help="at a time; more get 429 (default: %(default)s)")
    parser.add_argument("--max-batch-size", type=int, default=8, help="answered together (default: %(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=1024, help="of an answer, at most (default: %(default)s)"
    )
    parser.add_argument("--max-body-mib", type=int, default=12, help="of a request (default: %(default)s)")
    parser.add_argument("--max-image-mib", type=int, default=8, help="of a request's files (default: %(default)s)")
    parser.add_argument(
        "--max-image-pixels", type=int, default=1 << 24, help="of a request's images (default: %(default)s)"
    )
    parser.add_argument("--max-images", type=int, default=64, help="of a request (default: %(default)s)")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("DIMPLE_HF_API_KEY"),
        help="key that clients must send (default: the variable DIMPLE_HF_API_KEY; without either nobody needs one)",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        metavar="HOST",
        help="host that requests may be for, besides this machine's own names; may be given several times "
        "(default: any, unless the server listens to this machine only)",
    )
    parser.add_argument(
        "--grace-seconds", type=int, default=30, help="for running requests on SIGTERM (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command: serves until it is told to stop."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"`serve` needs {', '.join(missing)}: run `pip install 'dimple_hf[serve]'`")
    check_arguments(args)
    import uvicorn
    from transformers.utils import logging as transformers_logging

    from ..serve import load_app
    from ..serve.limits import MIB, Limits
    from ..serve.server import BACKLOG, BoundedConnection, DrainingServer, RateLimit
    from .loading import explain_failure, find_checkpoint, find_device

    limits = Limits(
        max_requests=args.max_requests,
        max_batch_size=args.max_batch_size,
        max_new_tokens=args.max_new_tokens,
        max_body_bytes=args.max_body_mib * MIB,
        max_image_bytes=args.max_image_mib * MIB,
        max_image_pixels=args.max_image_pixels,
        max_images=args.max_images,
    )
    refuse_taken_address(args.host, args.port or None)
    find_checkpoint(args.model)
    # Of uvicorn too, whose own configuration writes to stdout.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(RateLimit())
    transformers_logging.disable_progress_bar()
    device = find_device(args.device)
    with explain_failure(args.model):
        app = load_app(
            args.model,
            limits,
            device,
            args.dtype,
            args.calibrated,
            allows_remote_images=args.allow_remote_images,
            api_key=args.api_key,
            allowed_hosts=allowed_hosts(args.host, args.allowed_host),
        )
    logging.info("serving the model %s", app.state.chat.name)
    config = uvicorn.Config(
        app,
        host=args.host,
        port=args.port,
        http=BoundedConnection,
        ws="none",
        log_config=None,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    DrainingServer(config, args.grace_seconds).run()
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: If a number is out of range, or the API key is empty.
    """
    if not 0 <= args.port < 1 << 16:
        raise ValueError(f"`--port` must lie between 0 and 65535 (got {args.port})")
    for name, smallest in SMALLEST.items():
        value = getattr(args, name)
        if value < smallest:
            raise ValueError(f"`--{name.replace('_', '-')}` must be at least {smallest} (got {value})")
    if args.api_key == "":  # as of a variable that a deployment leaves empty: no client could send it
        raise ValueError("`--api-key` must not be empty; unset DIMPLE_HF_API_KEY for a server without a key")


def allowed_hosts(host: str, given: list[str] | None) -> frozenset[str] | None:
    """
    Args:
        host (`str`):
            Address that the server listens to.
        given (`list[str]`, *optional*):
            Hosts that the caller allows.

    Returns:
        `frozenset[str]`, *optional*: The hosts that requests may be for; `None` if any may be.
    """
    if host not in LOOPBACK_HOSTS and given is None:
        return None
    return LOOPBACK_HOSTS | {host} | {name.lower() for name in given or ()}
