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
"""
Canvases and their constraint: what a position can take, given what is committed, and what can be committed together.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dimple_hf.processing import DimpleTokenizer, token_automaton_dimple
from dimple_hf.processing.answer_canvas_dimple import compact_canvas, padded_canvas
from dimple_hf.processing.answer_layout_dimple import Canvas, CanvasConstraint, Filling, Segment
from dimple_hf.processing.answer_parts_dimple import (
    EMPTY,
    Alternation,
    Choices,
    Concat,
    Language,
    Literal,
    Part,
    Repeat,
    ValueSlot,
)
from dimple_hf.processing.char_dfa_dimple import free_text
from dimple_hf.processing.patterns_dimple import pattern_dfa
from dimple_hf.processing.value_languages_dimple import number_dfa
from dimple_hf.processing.vocabulary_dimple import Vocabulary

VOCAB_SIZE = 448


def number(low: int, high: int, max_tokens: int | None = None, label: tuple[str, ...] | None = None) -> ValueSlot:
    return ValueSlot(Language(number_dfa(low, high, is_integer=True)), "n", max_tokens, label=label)


def text(pattern: str | None, max_tokens: int | None = None) -> ValueSlot:
    return ValueSlot(Language(free_text() if pattern is None else pattern_dfa(pattern)[0]), "text", max_tokens)


def canvas_of(tokenizer: DimpleTokenizer, part: Part) -> Canvas:
    return padded_canvas(part, Vocabulary.of(tokenizer))


def allowed(canvas: Canvas, tokens: list[int]) -> list[set[int]]:
    """The tokens that the constraint leaves at each masked position."""
    answer = torch.tensor([tokens])
    masked = answer == canvas.vocabulary.mask_id
    logits = torch.randn(int(masked.sum()), VOCAB_SIZE)
    constrained = CanvasConstraint([canvas]).mask_logits(torch.tensor([0]), answer, masked, logits.clone())
    kept = constrained.isfinite()
    assert torch.equal(constrained[kept], logits[kept])  # what is possible keeps its score
    return [set(row.nonzero()[:, 0].tolist()) for row in kept]


def digits(canvas: Canvas, text: str) -> set[int]:
    return {canvas.vocabulary.encode(digit)[0] for digit in text}


def test_mask_logits_leaves_what_fits_committed_neighbours(tokenizer: DimpleTokenizer) -> None:
    """95 to 104 in three positions: each committed position narrows the others, on both of its sides."""
    canvas = canvas_of(tokenizer, number(95, 104))
    mask, pad = canvas.vocabulary.mask_id, canvas.vocabulary.pad_id
    assert allowed(canvas, [mask] * 3) == [
        digits(canvas, "19"),
        digits(canvas, "056789"),
        digits(canvas, "01234") | {pad},
    ]
    one, nine, five = (canvas.vocabulary.encode(digit)[0] for digit in "195")
    assert allowed(canvas, [one, mask, mask]) == [digits(canvas, "0"), digits(canvas, "01234")]
    assert allowed(canvas, [mask, mask, pad]) == [digits(canvas, "9"), digits(canvas, "56789")]
    assert allowed(canvas, [mask, five, mask]) == [{nine}, {pad}]


def test_mask_logits_writes_forbidden_tokens_where_most_are_allowed(tokenizer: DimpleTokenizer) -> None:
    """Free text: the other way of writing, which also covers ids that the tokenizer does not have."""
    canvas = canvas_of(tokenizer, Concat((ValueSlot(Choices(("a", "b")), "c"), Literal("<|im_end|>"))))
    assert canvas.ids.count(canvas.vocabulary.mask_id) == 1  # control: a spelled special token is fixed text
    canvas = canvas_of(tokenizer, text("[^q]*", 4))
    free = allowed(canvas, [canvas.vocabulary.mask_id] * 4)[1]
    assert canvas.vocabulary.pad_id in free
    assert len(free) > VOCAB_SIZE // 2
    assert not free & {421, 422, 423, *range(429, VOCAB_SIZE)}  # special tokens but the pad, and no tokens at all
    assert not any(b"q" in (canvas.vocabulary.token_bytes[token] or b"") for token in free)


def test_mask_logits_joins_the_alternatives_that_are_still_open(tokenizer: DimpleTokenizer) -> None:
    """Segments side by side: a position takes what any of them takes, until a neighbour rules one out."""
    part = Alternation((Concat((Literal("ab"), number(0, 9))), Literal("xyz"), EMPTY))
    canvas = canvas_of(tokenizer, part)
    vocabulary = canvas.vocabulary
    mask, pad = vocabulary.mask_id, vocabulary.pad_id
    first, second = vocabulary.encode("ab"), vocabulary.encode("xyz")
    assert (len(first), len(second)) == (2, 3)
    everything = [
        {first[0], second[0], pad},
        {first[1], second[1], pad},
        digits(canvas, "0123456789") | {second[2], pad},
    ]
    assert allowed(canvas, [mask] * 3) == everything
    assert allowed(canvas, [mask, second[1], mask]) == [{second[0]}, {second[2]}]
    assert allowed(canvas, [mask, mask, pad]) == [{pad}, {pad}]


def test_mask_logits_refuses_answers_of_another_canvas(tokenizer: DimpleTokenizer) -> None:
    """Tokens that were not accepted, and masks after the canvas, have no way out."""
    canvas = canvas_of(tokenizer, number(95, 104))
    mask, five = canvas.vocabulary.mask_id, canvas.vocabulary.encode("5")[0]
    for tokens in ([five, mask, mask], [mask] * 4):
        with pytest.raises(ValueError, match="the answer of row 0 can no longer be completed"):
            allowed(canvas, tokens)


def test_mask_logits_leaves_free_rows_and_keeps_rows_apart(tokenizer: DimpleTokenizer) -> None:
    """Rows leave the batch as they finish, so the loop says which rows it still holds."""
    digit = canvas_of(tokenizer, number(0, 9, max_tokens=2))
    choice = canvas_of(tokenizer, ValueSlot(Choices(("a", "b")), "c"))
    constraint = CanvasConstraint([digit, None, choice]).repeat_interleave(2)
    assert constraint.constrained_rows.tolist() == [True, True, False, False, True, True]
    mask, pad = digit.vocabulary.mask_id, digit.vocabulary.pad_id
    answer = torch.tensor([[mask, 7], [mask, pad]])  # the third prompt's canvas is one position shorter
    logits = torch.zeros(2, VOCAB_SIZE)
    kept = constraint.mask_logits(torch.tensor([3, 5]), answer, answer == mask, logits).isfinite()
    assert kept[0].all()
    assert set(kept[1].nonzero()[:, 0].tolist()) == {digit.vocabulary.encode(letter)[0] for letter in "ab"}


def test_mask_logits_of_some_positions_takes_all_committed_ones_into_account(tokenizer: DimpleTokenizer) -> None:
    """
    A forward pass over one block has scores of its positions only; what the others are or may become counts as ever.
    """
    canvas = canvas_of(tokenizer, number(95, 104))
    mask, nine = canvas.vocabulary.mask_id, canvas.vocabulary.encode("9")[0]
    answer = torch.tensor([[nine, mask, mask], [mask, mask, mask]])
    masked = answer == mask
    constraint = CanvasConstraint([canvas, canvas])
    rows = torch.tensor([0, 1])
    whole = constraint.mask_logits(rows, answer, masked, torch.zeros(5, VOCAB_SIZE))
    positions = torch.tensor([[False, False, True], [True, False, True]])
    some = constraint.mask_logits(rows, answer, masked, torch.zeros(3, VOCAB_SIZE), positions)
    assert torch.equal(some, whole[[1, 2, 4]])
    assert not torch.equal(whole[1], whole[4])  # control: the rows differ at the last position
    with pytest.raises(
        ValueError, match="the answer of row 1 can no longer be completed"
    ):  # though not by a scored one
        constraint.mask_logits(
            rows, torch.tensor([[nine, mask, mask], [mask, nine, nine]]), torch.tensor([[0, 1, 1], [1, 0, 0]]) > 0,
            torch.zeros(1, VOCAB_SIZE), torch.tensor([[False, True, False], [False, False, False]]),
        )  # fmt: skip


def test_accept_unmasks_in_order_of_confidence_what_fits_together(tokenizer: DimpleTokenizer) -> None:
    """`9` and `0` are each possible in 95 to 104, but not together: the surer one stays, the other waits."""
    canvas = canvas_of(tokenizer, number(95, 104))
    mask, pad = canvas.vocabulary.mask_id, canvas.vocabulary.pad_id
    one, nine, zero, six = (canvas.vocabulary.encode(digit)[0] for digit in "1906")
    answer = torch.full((1, 3), mask)

    def accepted(proposed: list[int], confidence: list[float], chosen: list[bool]) -> list[bool]:
        return CanvasConstraint([canvas]).accept(
            torch.tensor([0]), answer, answer == mask, torch.tensor([proposed]), torch.tensor([chosen]),
            torch.tensor([confidence]),
        )[0].tolist()  # fmt: skip

    everywhere = [True, True, True]
    assert accepted([nine, zero, pad], [0.9, 0.8, 0.7], everywhere) == [True, False, True]
    assert accepted([nine, zero, pad], [0.8, 0.9, 0.7], everywhere) == [False, True, False]
    assert accepted([nine, zero, pad], [0.8, 0.9, 0.7], [True, False, False]) == [True, False, False]
    assert accepted([nine, six, pad], [0.7, 0.8, 0.9], everywhere) == everywhere
    assert accepted([one, zero, zero], [0.1, 0.1, 0.1], everywhere) == everywhere
    assert accepted([one, zero, zero], [0.1, 0.1, 0.1], [False] * 3) == [False] * 3
    free = CanvasConstraint([None]).accept(
        torch.tensor([0]), answer, answer == mask, answer, torch.tensor([everywhere]), torch.zeros(1, 3)
    )
    assert free.all()


@pytest.mark.parametrize("part", [number(95, 10**8), text("(ab|c)*d{2,5}", 12), Repeat(number(0, 9), ",", 1, 5, 5)])
def test_filling_after_commits_in_any_order_is_that_of_its_tokens(tokenizer: DimpleTokenizer, part: Part) -> None:
    """Sets of states are computed when they are read; what was committed before must all be in them."""
    canvas = canvas_of(tokenizer, part)
    mask = canvas.vocabulary.mask_id
    tokens = [None if token == mask else token for token in canvas.ids]
    filling, seen = Filling(canvas, tokens), set()
    draw = random.Random(0)
    for position in draw.sample([index for index, token in enumerate(tokens) if token is None], tokens.count(None)):
        options = Filling(canvas, tokens).options()
        if draw.random() < 0.5:  # else several are committed before all sets are read
            assert filling.copy().options() == options
        possible = sorted({token for found in options[position] for token in found.ids.tolist()})
        seen.add(tuple(possible))
        assert not filling.commit(position, mask)
        tokens[position] = draw.choice(possible)
        assert filling.commit(position, tokens[position])
    assert canvas.can_hold(tokens)
    assert len(seen) > 2  # control: commits do narrow the options


def test_commit_computes_no_more_sets_than_are_read(
    tokenizer: DimpleTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From left to right, one set on each side a token: not all sets again, which takes minutes on a long canvas."""
    canvas = canvas_of(tokenizer, text("(ab|c)*", 40))
    num_computed = 0
    for name in ("forward", "backward"):
        compute = getattr(Segment, name)

        def counted(*arguments: Any, compute: Any = compute) -> Any:
            nonlocal num_computed
            num_computed += 1
            return compute(*arguments)

        monkeypatch.setattr(Segment, name, counted)
    filling = Filling(canvas, [None] * 40)
    assert num_computed == 80  # control: all sets, once
    for position in range(40):
        assert filling.commit(position, canvas.vocabulary.encode("ab"[position % 2])[0])
    assert num_computed <= 80 + 40


def test_canvas_reads_only_complete_answers_of_its_own(tokenizer: DimpleTokenizer) -> None:
    """`parse` must not read what was not generated under the prior."""
    canvas = canvas_of(tokenizer, Concat((Literal("n="), number(0, 9, label=("n",)))))
    fixed, five = canvas.ids[:-1], canvas.vocabulary.encode("5")[0]
    (segment,) = canvas.path([*fixed, five])
    assert segment.label == ("n",)
    assert canvas.text([*fixed, five]) == "n=5"
    for wrong in ([*fixed, canvas.vocabulary.mask_id], [*fixed, canvas.vocabulary.pad_id], [five] * 3, fixed):
        with pytest.raises(ValueError, match="must be a complete filling"):
            canvas.path(wrong)


FORMS_OF_ANSWERS = {
    "two gaps": (
        Concat((Literal("a"), number(0, 999), Literal("b"), text(None, 4))),
        ["a7b", "a120bb12", "a0b77b7"],
        ["a7", "a07b", "x7b", "a7c", "a7bcdefgh", "a1000b"],
    ),
    "choices": (ValueSlot(Choices(("ab", "abc", "c")), "c"), ["ab", "abc", "c"], ["a", "abcc", ""]),
    "optional": (
        Concat((Literal("x"), Alternation((Concat((Literal("y"), text("[0-9]", 1))), EMPTY)), Literal("z"))),
        ["xz", "xy5z"],
        ["xyz", "xy55z", "x"],
    ),
    "repeated": (
        Repeat(number(0, 9), ",", 1, 3, 3),
        ["1", "1,2", "1,2,3"],
        ["", "1,", "1,2,3,4"],
    ),
}


@pytest.mark.parametrize("layout", [padded_canvas, compact_canvas])
@pytest.mark.parametrize("name", FORMS_OF_ANSWERS)
def test_canvas_fill_is_the_inverse_of_text_and_refuses_other_forms(
    tokenizer: DimpleTokenizer, layout: Callable[[Part, Vocabulary], Canvas], name: str
) -> None:
    """What is trained on must be an answer that can be generated: every position committed, the form kept."""
    part, texts, others = FORMS_OF_ANSWERS[name]
    canvas = layout(part, Vocabulary.of(tokenizer))
    for text in texts:
        tokens = canvas.fill(text)
        assert len(tokens) == len(canvas.ids)
        assert canvas.text(tokens) == text
        assert canvas.can_hold(tokens)
        canvas.path(tokens)  # raises if fixed positions were changed
    for text in others:
        if layout is compact_canvas and text == "a7bcdefgh":
            continue  # without positions of its own, a value may use those that others leave
        with pytest.raises(ValueError, match=r"`text` must have the prior's form and fit its positions \(got '"):
            canvas.fill(text)


def test_canvas_fill_puts_padding_after_each_value(tokenizer: DimpleTokenizer) -> None:
    """Padded: the fixed text stands where the canvas has it, whatever the values need."""
    canvas = canvas_of(tokenizer, FORMS_OF_ANSWERS["two gaps"][0])
    pad = canvas.vocabulary.pad_id
    encode = canvas.vocabulary.encode
    assert canvas.fill("a7b77") == [
        *encode("a"),
        *encode("7"),
        pad,
        pad,
        *encode("b"),
        *encode("77"),
        *[pad] * 2,
    ]


def test_memory_of_an_automaton_is_bounded(tokenizer: DimpleTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that runs for weeks sees ever new contents; sets that are forgotten are found again."""
    canvas = canvas_of(tokenizer, number(0, 999999999))
    automaton = canvas.segments[0].automaton
    first = [allowed(canvas, [*canvas.vocabulary.encode(digit), *canvas.ids[1:]]) for digit in "123"]
    grown = automaton._num_bytes
    monkeypatch.setattr(token_automaton_dimple, "MAX_REMEMBERED_BYTES", grown // 2)
    again = [allowed(canvas, [*canvas.vocabulary.encode(digit), *canvas.ids[1:]]) for digit in "123"]
    assert again == first
    assert automaton._num_bytes < 2 * grown  # each call began by forgetting


@pytest.mark.parametrize("bracket", ["{", "["])
def test_compact_canvas_leaves_a_bracket_open_that_may_join_what_follows(
    tokenizer: DimpleTokenizer, bracket: str
) -> None:
    """Other text at the beginning is fixed, in the tokenizer's own tokens."""
    vocabulary = Vocabulary.of(tokenizer)
    (token,) = vocabulary.encode(bracket)
    canvas = compact_canvas(Concat((Literal(f"a{bracket}"), text("b*", 2))), vocabulary)
    assert canvas.ids[:2] == [*vocabulary.encode("a"), vocabulary.mask_id]
    assert allowed(canvas, canvas.ids)[0] == {token}
    assert compact_canvas(Concat((Literal("a)"), text("b*", 2))), vocabulary).ids[:2] == vocabulary.encode("a)")


def test_compact_canvas_is_as_long_as_asked_and_refuses_what_cannot_hold_the_shortest_answer(
    tokenizer: DimpleTokenizer,
) -> None:
    """Values share the positions: a longer canvas lets each of them be longer."""
    vocabulary = Vocabulary.of(tokenizer)
    part = Concat((Literal("a"), text("b*", 2), Literal("cc")))
    assert len(compact_canvas(part, vocabulary).ids) == 5
    assert compact_canvas(part, vocabulary, 9).fill("abbbbbbcc")
    with pytest.raises(ValueError, match="must have the prior's form"):
        compact_canvas(part, vocabulary).fill("abbbbbbcc")
    with pytest.raises(ValueError, match=r"`max_tokens` must be at least [23], .* \(got 1\)"):
        compact_canvas(part, vocabulary, 1)
    with pytest.raises(ValueError, match='`max_tokens` must be None with the layout "padded"'):
        padded_canvas(part, vocabulary, 9)
