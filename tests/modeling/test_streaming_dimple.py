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
"""`DraftStreamer`: what a streamer gets while positions are decided in any order."""

import torch
from transformers.generation.streamers import BaseStreamer

from dimple_hf.modeling.streaming_dimple import DraftStreamer

MASK, END, PAD = 9, 7, 8
ENDS = torch.tensor([END, PAD])


class Recorder(BaseStreamer):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.received: list[list[int] | str] = []

    def put(self, value: torch.Tensor) -> None:
        assert value.device.type == "cpu"
        self.received.append(value.tolist())

    def end(self) -> None:
        self.received.append("end")


class DraftRecorder(Recorder):
    """A streamer that shows drafts, as transformers' `TextDiffusionStreamer`."""

    def put_draft(self, value: torch.Tensor) -> None:
        self.received.append(f"draft {value.tolist()}")


def put(streamer: Recorder, *answers: list[int]) -> None:
    drafts = DraftStreamer(streamer, MASK, ENDS)
    for answer in answers[:-1]:
        drafts.put_answer(torch.tensor([answer]), torch.tensor([answer]) != MASK)
    drafts.end(torch.tensor([answers[-1]]))


def test_streamer_gets_tokens_when_all_before_them_are_decided() -> None:
    """And an empty tensor when there are none, by which a server notices that its client has gone."""
    recorder = Recorder()
    put(recorder, [MASK, 2, MASK, MASK], [1, 2, MASK, 4], [1, 2, MASK, 4], [1, 2, 3, 4])
    assert recorder.received == [[], [1, 2], [], [3, 4], "end"]


def test_streamer_gets_nothing_after_the_end() -> None:
    """What was decided there is replaced by padding in the end."""
    recorder = Recorder()
    put(recorder, [1, MASK, 5, MASK], [1, END, 5, 6], [1, END, 5, 6], [1, END, PAD, PAD])
    assert recorder.received == [[1], [END], [], [], "end"]


def test_streamer_of_a_stopped_answer_gets_it_up_to_the_first_padding() -> None:
    """A stopping criterion left holes, which are padding now."""
    recorder = Recorder()
    put(recorder, [1, MASK, 3, MASK], [1, PAD, 3, PAD])
    assert recorder.received == [[1], [PAD], "end"]


def test_streamer_with_drafts_gets_each_whole_answer_and_the_finished_one() -> None:
    """As `TextDiffusionStreamer` wants it: drafts are overwritten, the last `put` stays."""
    recorder = DraftRecorder()
    put(recorder, [MASK, 2, MASK], [1, 2, MASK], [1, 2, END])
    assert recorder.received == [f"draft [[{MASK}, 2, {MASK}]]", f"draft [[1, 2, {MASK}]]", [1, 2, END], "end"]
