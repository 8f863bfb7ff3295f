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
"""The classes of tokens inside a segment: what is found beside free text is what walking all tokens finds."""

import numpy as np
import pytest

from dimple_hf.processing import DimpleTokenizer, segment_table_dimple
from dimple_hf.processing.byte_dfa_dimple import ByteDFA, written
from dimple_hf.processing.char_dfa_dimple import CharDFA, free_text
from dimple_hf.processing.patterns_dimple import pattern_dfa
from dimple_hf.processing.segment_table_dimple import SegmentTable, _classes, _classes_beside_free_text
from dimple_hf.processing.vocabulary_dimple import Vocabulary


@pytest.mark.parametrize(
    "names",
    [
        ["price", "quantity", "name"],
        ["a", "ab", "abc", "é", "日本", 'q"x', "\n", "$id"],
        ["!a"],  # begins with the first token of all
        [""],
    ],
)
def test_classes_beside_free_text_are_those_of_walking_all_tokens(
    names: list[str], tokenizer: DimpleTokenizer
) -> None:
    """Names other than some act like free text but on the way of those, and nothing else may differ."""
    vocabulary = Vocabulary.of(tokenizer)
    dfa = written(CharDFA.all_but(names), in_json=True, is_quoted=True)
    found = _classes_beside_free_text(dfa, vocabulary)
    assert found is not None
    expected = _classes(dfa, vocabulary)
    for own, other in ((found[2], expected[2]), (found[3], expected[3])):
        assert (found[0][own] == expected[0][other]).all()
        is_reached = expected[0][other] >= 0
        assert (np.where(is_reached, found[1][own], 0) == np.where(is_reached, expected[1][other], 0)).all()
    free = _classes(written(free_text(), in_json=True, is_quoted=True), vocabulary)
    assert len(found[0]) > len(free[0])  # the control: some tokens have classes of their own


@pytest.mark.parametrize("pattern", ["[a-z]+", "a.*", "(?!ab).{0,3}", r"[^\x01-\x09]*", "(?s:.)*"])
@pytest.mark.timeout(20)
def test_segments_that_differ_from_free_text_are_walked_whole(pattern: str, tokenizer: DimpleTokenizer) -> None:
    """Those that forbid what free text allows, or allow what it does not; telling them apart ends."""
    dfa = written(pattern_dfa(pattern)[0], in_json=True, is_quoted=True)
    assert _classes_beside_free_text(dfa, Vocabulary.of(tokenizer)) is None


@pytest.mark.timeout(20)
def test_segment_that_allows_more_than_free_text_is_walked_whole(tokenizer: DimpleTokenizer) -> None:
    """A state that only such a byte leads to acts like none of free text."""
    free = written(free_text(), in_json=True, is_quoted=True)
    table = np.concatenate([free.table[:, free.column], free.table[1:2, free.column]])
    table[1, 0x01] = len(free.table)
    accepting = np.append(free.accepting, True)
    dfa = ByteDFA(table, np.arange(256, dtype=np.uint8), accepting, np.append(free.is_char_start, True), True)
    assert _classes_beside_free_text(dfa, Vocabulary.of(tokenizer)) is None


def test_tables_of_a_vocabulary_take_bounded_memory(
    tokenizer: DimpleTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those used least recently go; the one that is made stays, however large it is."""
    vocabulary = Vocabulary(tokenizer)
    dfas = [written(pattern_dfa(pattern)[0]) for pattern in ("[a-c]+", "[d-f]+", "[g-i]+")]
    first, second = (SegmentTable.of(dfa, vocabulary) for dfa in dfas[:2])
    assert SegmentTable.of(dfas[0], vocabulary) is first  # the control: there is room for both
    monkeypatch.setattr(segment_table_dimple, "MAX_TABLE_BYTES", 1)
    third = SegmentTable.of(dfas[2], vocabulary)
    assert [found for found, _ in vocabulary.memory.values()] == [third]
    assert SegmentTable.of(dfas[1], vocabulary) is not second


def test_segment_of_more_states_than_tables_can_hold_is_refused(
    tokenizer: DimpleTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their numbers would wrap around, and lead elsewhere."""
    dfa = written(pattern_dfa("[a-c]{8}")[0])
    monkeypatch.setattr(segment_table_dimple, "MAX_STATES", len(dfa.table) - 1)
    with pytest.raises(ValueError, match="must need at most .* states"):
        SegmentTable.of(dfa, Vocabulary(tokenizer))
    monkeypatch.setattr(segment_table_dimple, "MAX_STATES", len(dfa.table))
    assert SegmentTable.of(dfa, Vocabulary(tokenizer))  # the control
