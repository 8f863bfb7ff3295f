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
"""The server on two nodes of a Ray cluster on this machine, one of which is killed: `make ray-tests` installs Ray."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import openai
import pytest
import yaml
from server_process import LETTERS, slow_checkpoint

ray = pytest.importorskip("ray", reason="`make ray-tests` installs Ray and runs this")

with warnings.catch_warnings():  # Ray's own
    warnings.simplefilter("ignore")
    from ray import serve
    from ray.cluster_utils import Cluster
    from ray.serve.schema import ServeDeploySchema

    from dimple_hf.serve.ray import Options, Replica, build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

#: As many as the two replicas answer at a time.
NUM_STREAMS = 8

REQUEST: dict[str, Any] = {
    "model": "slow",
    "messages": [{"role": "user", "content": "Hello."}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "letters", "schema": LETTERS}},
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes with room for one replica each; the proxy is on the first."""
    monkeypatch.setenv("RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING", "0")
    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, connect=True, head_node_args=node)
    cluster.add_node(**node)
    yield cluster
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def url(cluster: Cluster, repo_root: Path, tmp_path: Path) -> Iterator[str]:
    """A server of two replicas, started by the command of the page."""
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
    checkpoint = slow_checkpoint(tmp_path / "slow")
    page = (repo_root / "docs" / "replicas.md").read_text()
    command = re.search(r"^serve run (.*)$", page, re.M)[1].replace("rp-yu/Dimple-7B", str(checkpoint)).split()
    command = ["run", "--address", cluster.address, *command, "gpus_per_replica=0"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "ray.serve.scripts", *command], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 300
        while not any(app.status == "RUNNING" for app in serve.status().applications.values()):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


class Stream(threading.Thread):
    """A request for a long answer: the replica that has accepted it, and the answer, or the error that ended it."""

    def __init__(self, client: openai.OpenAI):
        super().__init__()
        self.client = client
        self.replica = self.text = ""
        self.error: Exception | None = None
        self.is_accepted = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            response = self.client.chat.completions.with_raw_response.create(**REQUEST, stream=True)
            self.replica = response.headers["x-replica-id"]
            self.is_accepted.set()
            pieces = [piece.choices[0] for piece in response.parse()]
            assert pieces[-1].finish_reason == "stop"
            self.text = json.loads("".join(piece.delta.content or "" for piece in pieces))
        except Exception as error:  # judged by the test
            self.error = error
        finally:
            self.is_accepted.set()


def test_killed_node_takes_no_request_of_the_other_with_it(cluster: Cluster, url: str) -> None:
    """Requests that the other replica has accepted are answered, and so is whoever tries again."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        streams = [Stream(client) for _ in range(NUM_STREAMS)]
        for stream in streams:
            assert stream.is_accepted.wait(300)
        [worker] = cluster.worker_nodes
        cluster.remove_node(worker, allow_graceful=False)
        for stream in streams:
            stream.join(300)
        patient = client.with_options(max_retries=10)
        again = patient.chat.completions.with_raw_response.create(**REQUEST)
    surviving = again.headers["x-replica-id"]
    assert len(json.loads(again.parse().choices[0].message.content)) == 80
    kept = [stream for stream in streams if stream.replica == surviving]
    assert [len(stream.text) for stream in kept] == [80] * len(kept)
    killed = [stream for stream in streams if stream.replica != surviving]
    assert kept
    assert killed
    assert all(stream.error is not None for stream in killed)  # control: the node was killed while they were answered
    assert httpx2.get(f"{url}/health").json() == {"status": "ok"}


def test_options_become_those_of_the_deployment() -> None:
    """Values of the command line are strings; unknown names are errors."""
    fixed = deployment_of(Options(replicas="3", gpus_per_replica="0.5", limits={"max_batch_size": 7}))
    assert (fixed.num_replicas, fixed.max_ongoing_requests) == (3, 14)
    assert fixed.ray_actor_options == {"num_cpus": 1, "num_gpus": 0.5}
    assert fixed._deployment_config.autoscaling_config is None
    scaling = deployment_of(Options(replicas=2, max_replicas=4))._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 4, 8)
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        Options(replica=2)


def test_configuration_file_of_the_page_is_valid(repo_root: Path) -> None:
    page = (repo_root / "docs" / "replicas.md").read_text()
    config = ServeDeploySchema(**yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.S)[1]))
    [application] = config.applications
    assert application.import_path == "dimple_hf.serve.ray:build"
    options = Options(**application.args)
    assert (options.max_replicas, options.limits.max_batch_size) == (8, 16)


def deployment_of(options: Options) -> Any:
    return build(options)._bound_deployment


def test_replica_whose_model_has_stopped_is_not_healthy() -> None:
    replica = Replica()
    for is_alive in (True, False):
        chat = SimpleNamespace(worker=SimpleNamespace(is_alive=lambda is_alive=is_alive: is_alive))
        replica.app = SimpleNamespace(state=SimpleNamespace(chat=chat))
        if is_alive:
            replica.check_health()
        else:
            with pytest.raises(RuntimeError, match="the model has stopped"):
                replica.check_health()
