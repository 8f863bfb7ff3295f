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
"""`text_in_order`: a JSON text is written with its properties in an order that the canvas has, or not at all."""

import json

import pytest

from dimple_hf import DimpleTokenizer, StructurePrior
from dimple_hf.processing.answer_order_dimple import text_in_order

COMPACT = (",", ":")

DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
PAIR = {
    "type": "object",
    "properties": {"a": DIGIT, "b": DIGIT},
    "required": ["a", "b"],
    "additionalProperties": False,
}
NESTED = {
    "type": "object",
    "properties": {"x": {"type": "array", "items": PAIR, "maxItems": 3}, "y": {"type": "string", "maxLength": 4}},
    "required": ["x", "y"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        (PAIR, '{"b":1,"a":2}', '{"a":2,"b":1}'),
        (PAIR, '{"a": 1,\n "b": 2}', '{"a":1,"b":2}'),
        (NESTED, '{"y":"é","x":[{"b":1,"a":2},{"a":3,"b":4}]}', '{"x":[{"a":2,"b":1},{"a":3,"b":4}],"y":"é"}'),
    ],
)
def test_an_equal_text_is_found(schema: dict, text: str, expected: str, tokenizer: DimpleTokenizer) -> None:
    """Control: as it stands, the canvas does not have the text."""
    canvas = StructurePrior.from_json_schema(schema).canvas(tokenizer)
    with pytest.raises(ValueError, match="form"):
        canvas.fill(text)
    found = text_in_order(canvas, text, COMPACT)
    assert found == expected
    assert json.loads(found) == json.loads(text)
    assert canvas.fill(found)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"b":3,"a":2}',  # JSON's parser would keep the last one
        '{"a":1,"b":12}',
        '{"a":1,"b":2,"c":3}',
        '{"a":1}',
        '{"a":1,"b":NaN}',
        "[" * 100_000,
        json.dumps({str(number): 1 for number in range(3000)}),
        "no JSON",
    ],
)
def test_a_text_that_no_order_makes_an_answer_is_refused(text: str, tokenizer: DimpleTokenizer) -> None:
    """And not written as another one, which would be trained on."""
    prior = StructurePrior.from_json_schema(PAIR)
    assert text_in_order(prior.canvas(tokenizer), text, COMPACT) is None
    with pytest.raises(ValueError, match="`text` must have the prior's form"):
        prior.write(tokenizer, text)


def test_a_long_array_is_searched_as_far_as_the_budget_goes(tokenizer: DimpleTokenizer) -> None:
    """No recursion error, whatever its length; a short one is found."""
    schema = {"type": "array", "items": PAIR}
    canvas = StructurePrior.from_json_schema(schema, max_tokens=200).canvas(tokenizer)
    assert text_in_order(canvas, '[{"b":1,"a":2}]', COMPACT) == '[{"a":2,"b":1}]'
    assert text_in_order(canvas, json.dumps([{"b": 1, "a": 2}] * 2000), COMPACT) is None
