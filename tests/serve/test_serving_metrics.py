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
"""What the server counts, against the Grafana dashboard that shows it."""

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from dimple_hf.serve.metrics import Metrics


def exported() -> set[str]:
    """The names of all samples, after everything has been counted once."""
    metrics = Metrics()
    metrics.count_response(200)
    metrics.observe_queue(0.1)
    metrics.observe_first_token(0.1)
    metrics.count_step(2)
    metrics.count_answer(8, 2)
    metrics.count_image(True)
    families = text_string_to_metric_families(metrics.text().decode())
    return {sample.name for family in families for sample in family.samples}


def test_dashboard_shows_what_the_server_counts(repo_root: Path) -> None:
    """A name that is not exported is an empty panel; every metric has a panel."""
    dashboard = json.loads((repo_root / "recipes" / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = set(re.findall(r"dimple_\w+", " ".join(queries)))
    names = {name for name in exported() if not name.endswith(("_created", "_count", "_sum"))}
    assert used == names
    assert {"dimple_responses_total", "dimple_queue_seconds_bucket"} <= used  # control: the names are found
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_answer_without_steps_has_tokens_per_forward() -> None:
    """A canvas of given tokens only."""
    metrics = Metrics()
    metrics.count_answer(3, 0)
    assert "dimple_tokens_per_forward 3.0" in metrics.text().decode()
