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
"""The server's metrics for Prometheus."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """Counters of one server. The methods may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"namespace": "dimple", "registry": self.registry}
        self.responses = Counter("responses", "Responses by HTTP status", ["status"], **options)
        self.queue_seconds = Histogram(
            "queue_seconds", "Wait of a prepared request for the model", buckets=_SECONDS, **options
        )
        self.first_token_seconds = Histogram(
            "time_to_first_token_seconds",
            "From a request to the first token of its answer",
            buckets=_SECONDS,
            **options,
        )
        self.steps = Counter("denoising_steps", "Denoising steps, each one forward pass of a batch", **options)
        self.tokens = Counter("answer_tokens", "Tokens that were unmasked", **options)
        self.tokens_per_forward = Gauge(
            "tokens_per_forward", "Tokens unmasked for each row of a forward pass, last answer", **options
        )
        self.batch_size = Gauge("batch_size", "Rows of the last forward pass", **options)
        self.image_features = Counter(
            "image_features", "Images by whether their features were kept", ["kept"], **options
        )

    def count_response(self, status: int) -> None:
        """Counts a response of HTTP status `status` (`int`)."""
        self.responses.labels(str(status)).inc()

    def observe_queue(self, seconds: float) -> None:
        """Notes how long (`float`, in seconds) a prepared request has waited."""
        self.queue_seconds.observe(seconds)

    def observe_first_token(self, seconds: float) -> None:
        """Notes how long (`float`, in seconds) the first token of an answer took."""
        self.first_token_seconds.observe(seconds)

    def count_step(self, num_rows: int) -> None:
        """Counts a denoising step of `num_rows` (`int`) rows."""
        self.steps.inc()
        self.batch_size.set(num_rows)

    def count_answer(self, num_tokens: int, num_steps: int) -> None:
        """Counts an answer of `num_tokens` (`int`) unmasked in `num_steps` (`int`)."""
        self.tokens.inc(num_tokens)
        self.tokens_per_forward.set(num_tokens / max(num_steps, 1))

    def count_image(self, kept: bool) -> None:
        """Counts an image of a prompt, and whether its features were `kept` (`bool`)."""
        self.image_features.labels("yes" if kept else "no").inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text form."""
        return generate_latest(self.registry)
