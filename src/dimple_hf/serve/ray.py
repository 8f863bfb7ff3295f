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
"""The server as a Ray Serve deployment: replicas on many machines, autoscaling (`pip install 'dimple_hf[ray]'`).

```bash
serve run dimple_hf.serve.ray:build model=rp-yu/Dimple-7B replicas=2 gpus_per_replica=1
```

Each replica is the application of `dimple-hf serve` with its own model; Ray's proxies distribute the requests.
"""

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..checkpoints import FORMS_CHECKPOINT
from .app import load_app
from .limits import Limits

#: For running requests when a replica is stopped.
GRACE_SECONDS = 30


class Options(BaseModel):
    """
    Options of [`build`], as `name=value` of `serve run` or `args` of Ray's configuration file.

    Args:
        model (`str`, *optional*, defaults to the small model of the package):
            Directory, the same on all machines, or Hub id.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Type of the weights: `"auto"` for the checkpoint's, `"float32"`, `"bfloat16"` or `"float16"`.
        calibrated (`bool`, *optional*, defaults to `False`), allow_remote_images (`bool`, *optional*, defaults to
        `False`):
            As the options of `dimple-hf serve`.
        limits ([`Limits`], *optional*):
            Bounds of each replica.
        replicas (`int`, *optional*, defaults to 1):
            Number of replicas, or their minimum with `max_replicas`.
        max_replicas (`int`, *optional*):
            Maximum number of replicas. With it, Ray starts a replica when the others have more requests than rows in a
            batch, and stops one when they have fewer.
        cpus_per_replica (`float`, *optional*, defaults to 1), gpus_per_replica (`float`, *optional*, defaults to 0):
            What a replica reserves. Without GPUs the model runs on the CPU.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = str(FORMS_CHECKPOINT)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    calibrated: bool = False
    allow_remote_images: bool = False
    limits: Limits = Limits()
    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    cpus_per_replica: float = Field(1, ge=0)
    gpus_per_replica: float = Field(0, ge=0)


class Replica:
    """A replica. `app` comes from Ray, which makes this the base of a class of its own."""

    app: Starlette

    def check_health(self) -> None:
        """Called by Ray now and then, which replaces a replica that raises."""
        if not self.app.state.chat.worker.is_alive():
            raise RuntimeError("the model has stopped")


class ReplicaName:
    """An ASGI middleware that names the replica in `X-Replica-Id`, for its logs and metrics."""

    def __init__(self, app: ASGIApp, name: str):
        self.app, self.name = app, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""

        async def send_with_name(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Replica-Id"] = self.name
            await send(message)

        await self.app(scope, receive, send_with_name)


def build(options: Options) -> serve.Application:
    """
    Builds the application for `serve run` and `serve deploy`.

    Args:
        options ([`Options`]):
            Model and replicas. The API key is not among them, because Ray shows them on its dashboard: clients must
            send that of the variable `DIMPLE_HF_API_KEY` in the environment of the replicas, if it is set.

    Returns:
        `ray.serve.Application`: The application.
    """

    def load() -> Starlette:
        app = load_app(
            options.model,
            options.limits,
            "cuda" if options.gpus_per_replica else "cpu",
            options.dtype,
            options.calibrated,
            allows_remote_images=options.allow_remote_images,
            api_key=os.environ.get("DIMPLE_HF_API_KEY"),
        )
        app.add_middleware(ReplicaName, name=serve.get_replica_context().replica_id.unique_id)
        return app

    deployment = serve.deployment(
        name="dimple",
        max_ongoing_requests=2 * options.limits.max_batch_size,  # a second batch is prepared while one is decoded
        max_queued_requests=options.limits.max_requests,
        graceful_shutdown_timeout_s=GRACE_SECONDS,
        ray_actor_options={"num_cpus": options.cpus_per_replica, "num_gpus": options.gpus_per_replica},
        num_replicas=None if options.max_replicas else options.replicas,
        autoscaling_config=options.max_replicas
        and {
            "min_replicas": options.replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.limits.max_batch_size,
        },
    )
    return deployment(serve.ingress(load)(Replica)).bind()
