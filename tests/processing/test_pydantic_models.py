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
"""Everything that pydantic 2 has a JSON schema for: most types are taken, and each answer becomes an object."""

import datetime
import enum
import ipaddress
import pathlib
import random
import uuid
from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import pytest
from random_answers import random_answer
from typing_extensions import TypedDict

from dimple_hf.processing import DimpleTokenizer, StructurePrior


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Item(pydantic.BaseModel):
    what: str = pydantic.Field(max_length=8)
    price: float = pydantic.Field(ge=0, le=999)


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int = pydantic.Field(ge=0, le=9)


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    name: str


class Node(pydantic.BaseModel):
    value: int
    children: list["Node"] = []


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    a: int | None = None


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: int


class Typed(TypedDict):
    a: int
    b: str


class Pair(NamedTuple):
    a: int
    b: str


@dataclass
class Plain:
    a: int
    b: bool = False


OPTIONAL_FIELDS: dict[str, Any] = {f"field{i}": (int | None, None) for i in range(40)}
MANY = pydantic.create_model("Many", **OPTIONAL_FIELDS)

MODELS: dict[str, Any] = {
    "int": int, "float": float, "bool": bool, "str": str, "none": None | int, "bytes": bytes, "date": datetime.date,
    "time": datetime.time, "datetime": datetime.datetime, "timedelta": datetime.timedelta, "uuid": uuid.UUID,
    "decimal": Decimal, "path": pathlib.Path, "ipv4": ipaddress.IPv4Address, "ipv6": ipaddress.IPv6Address,
    "network": ipaddress.IPv4Network, "url": pydantic.AnyUrl, "http": pydantic.HttpUrl, "secret": pydantic.SecretStr,
    "enum": Colour, "literal": Literal["a", 1, True], "list": list[int], "models": list[Item], "set": set[int],
    "frozenset": frozenset[str], "tuple": tuple[int, str], "tuples": tuple[int, ...], "dict": dict[str, int],
    "dict of models": dict[str, Item], "any": Any, "dict of any": dict[str, Any], "union": Cat | Dog,
    "deque": deque[int], "dict of numbers": dict[int, bool],
    "discriminated": Annotated[Cat | Dog, pydantic.Field(discriminator="kind")], "recursive": Node, "strict": Strict,
    "open": Open, "typed dict": Typed, "dataclass": Plain, "named tuple": Pair, "40 optional fields": MANY,
    "constrained": Annotated[int, pydantic.Field(ge=0, multiple_of=5)],
    "pattern": Annotated[str, pydantic.Field(pattern=r"^[A-Z]{3}\d+$")],
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_answer_becomes_an_object_of_the_type(tokenizer: DimpleTokenizer, name: str) -> None:
    """Random answers, written and read back."""
    prior = StructurePrior.from_json_schema(MODELS[name], max_items=2, max_tokens=160)
    adapter, rng = pydantic.TypeAdapter(MODELS[name]), random.Random(0)
    for _ in range(2):
        ids = random_answer(prior, tokenizer, rng)
        value = prior.read(tokenizer, ids)
        assert adapter.validate_python(value) == value or value != value  # noqa: PLR0124  # nan
    with pytest.raises(ValueError, match="must be a complete filling"):  # control
        prior.read(tokenizer, [tokenizer.pad_token_id] * len(ids))


def test_string_that_holds_json_is_refused() -> None:
    """Its schema takes any string, so an answer might not be read."""
    with pytest.raises(ValueError, match="a string that holds JSON is not supported"):
        StructurePrior.from_json_schema(pydantic.Json[int])


def test_row_that_a_validator_rejects_does_not_cost_the_others(tokenizer: DimpleTokenizer) -> None:
    """Its place holds the error."""
    from dimple_hf.processing.structure_prior_dimple import read_answers

    class Even(pydantic.BaseModel):
        n: int = pydantic.Field(ge=0, le=9)

        @pydantic.field_validator("n")
        @classmethod
        def _even(cls, value: int) -> int:
            if value % 2:
                raise ZeroDivisionError("odd")  # of any kind
            return value

    import torch

    prior = StructurePrior.from_json_schema(Even)
    answers = [prior.write(tokenizer, f'{{"n":{n}}}')[0] for n in (4, 5)]
    good, bad = read_answers(torch.tensor(answers), prior, tokenizer)
    assert good == Even(n=4)
    assert isinstance(bad, ZeroDivisionError)
