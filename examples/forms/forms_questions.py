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
"""How questions about forms are worded: at least eight wordings of each kind in training, four others held out.

Half of the training questions are put together from parts, but never into a held-out wording. A wording may be
dressed: in lower case, without its full stop, with a courtesy before or after it. Where a schema decides what the
answer holds, any words do. Questions that no form answers are put together from words of no form.
"""

import numpy as np

LATER_FIELD_WORDINGS = (
    "The {0}, please.",
    "The {0} of the form?",
    "{0}: what does the form say?",
    "The {0} is how much?",
)
"""Wordings that training had after the tokenizer was made: its words are not learned from them."""

WORDINGS: dict[str, tuple[str, ...]] = {
    "text": (
        "Read the form.",
        "What does the form say?",
        "Read this form as text.",
        "What does the image show?",
        "Read the image.",
        "Write down what is on the form.",
        "What is written on this form?",
        "List all fields of the form.",
        "Give the text of the form.",
        "Read everything on the form.",
    ),
    "json": (
        "Read the form as JSON.",
        "Give the form as JSON.",
        "What does the form say in JSON?",
        "Read the image as JSON.",
        "Return the fields as JSON.",
        "Extract the fields as JSON.",
        "Write the form as a JSON object.",
        "List all fields of the form in JSON.",
        "Extract all data of the image as JSON.",
        "I need the form as JSON.",
    ),
    "field": (
        "What is the {0}?",
        "Read the {0}.",
        "What does the form say for {0}?",
        "Give the {0}.",
        "Which {0} is on the form?",
        "What is the value of {0}?",
        "Find the {0}.",
        "What is written next to {0}?",
        "Look up the {0} for me.",
        "I need the {0}.",
        *LATER_FIELD_WORDINGS,
    ),
    "fields": (
        "Read the {0}.",
        "What are the {0}?",
        "Give the {0}.",
        "Find the {0}.",
        "I need the {0}.",
        "List the {0}.",
        "What does the form say for {0}?",
        "Look up the {0} for me.",
    ),
    "rows": (
        "How many rows are there?",
        "How many rows does the form have?",
        "Count the rows.",
        "What is the number of rows?",
        "Count the rows of the form.",
        "How many rows can you see?",
        "Give the number of rows.",
        "How many lines are on the form?",
    ),
    "sum": (
        "What is the sum of {0} and {1}?",
        "What is {0} plus {1}?",
        "Add {0} and {1}.",
        "How much are {0} and {1} together?",
        "Sum up {0} and {1}.",
        "Give the sum of {0} and {1}.",
        "Compute {0} plus {1}.",
        "Add the {0} to the {1}.",
    ),
}
"""Kind of question to its wordings in training."""

HELD_OUT_WORDINGS: dict[str, tuple[str, ...]] = {
    "text": (
        "Read all the text of this form.",
        "What can you read on the form?",
        "Tell me what the form says.",
        "Give everything that is written in the image.",
    ),
    "json": (
        "Extract the form as JSON.",
        "Write down all fields in JSON.",
        "Give me a JSON object of the form.",
        "What is on the form, as JSON?",
    ),
    "field": (
        "Tell me the {0}.",
        "What {0} does the form give?",
        "Extract the {0} from the form.",
        "The {0}, what is it?",
    ),
    "fields": ("Tell me the {0}.", "Extract the {0}.", "Look up the {0}.", "Find me the {0}."),
    "rows": (
        "Tell me how many rows there are.",
        "The form has how many rows?",
        "Count all rows that you can see.",
        "How many rows are on this form?",
    ),
    "sum": (
        "Give {0} plus {1}.",
        "Tell me the sum of {0} and {1}.",
        "What do {0} and {1} add up to?",
        "How much is {0} plus {1}?",
    ),
}
"""The same in scores only."""

VERBS = (
    "Read", "Give", "Give me", "Show", "Show me", "Tell me", "Find", "Write", "Write down", "Extract", "Copy", "List",
    "Look up", "I need", "I want", "Can you read", "Can you give me", "Let me have", "Say",
)  # fmt: skip
CONTENTS = (
    "the form", "this form", "the whole form", "the text", "all text", "the text of this form", "all of the form",
    "everything", "everything on this form", "everything that you see", "the image", "this image", "all the data",
    "the data of the form", "the fields", "all fields", "the fields of this form", "all that is written",
    "what the form says", "what is written", "what is on the form", "what you can read", "the content of the image",
)  # fmt: skip
PARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "text": (VERBS, CONTENTS, ("", "", "", " as text", " in the image")),
    "json": (VERBS, CONTENTS, (" as JSON", " in JSON", " as a JSON object", ", as JSON", " in JSON form")),
    "field": (
        (*VERBS, "What is", "Which is", "And"),
        ("the {0}", "the {0}", "the value of {0}", "the number of the {0}", "what is written for {0}", "this {0}"),
        ("", "", "", " of the form", " on this form", " that the form gives", " here"),
    ),
    "fields": (
        (*VERBS, "What is", "Which are", "And"),
        ("the {0}", "the {0}", "the values of {0}", "what is written for {0}"),
        ("", "", "", " of the form", " on this form", " that the form gives", " here"),
    ),
    "rows": (
        (*VERBS, "What is", "Count"),
        ("the number of rows", "the number of lines", "how many rows", "how many lines", "the rows", "all rows"),
        ("", " there are", " of the form", " on this form", " you see", " the image has"),
    ),
    "sum": (
        (*VERBS, "What is", "How much is", "Compute", "Add up", "And"),
        (
            "the sum of {0} and {1}",
            "{0} plus {1}",
            "{0} and {1} together",
            "{0} and {1} in sum",
            "the {0} plus the {1}",
        ),
        ("", "", " of the form", " on this form", " here"),
    ),
}
"""Kind of question to the parts, one after the other, of further wordings in training."""

LIST_ENDINGS = {"copy": "", "reverse": " from last to first", "shuffle": " in any order"}
"""How the labels of a form are to be listed. In any order, each position may hold any label, but no two the same one:
positions that are committed together cannot agree on that (ParallelBench, arXiv 2510.04767)."""
LIST_WORDINGS, HELD_OUT_LIST_WORDINGS = (
    {kind: tuple(wording.format(ending) for wording in wordings) for kind, ending in LIST_ENDINGS.items()}
    for wordings in (
        tuple(
            f"{verb} {what}{{}}."
            for verb in ("List", "Give", "Read", "Write down")
            for what in ("the labels", "all labels")
        ),
        ("List all labels of the form{}.", "What are the labels{}?", "Find the labels{}.", "I need the labels{}."),
    )
)
"""The same as `WORDINGS` and `HELD_OUT_WORDINGS`, for lists of labels."""

COURTESIES_BEFORE = ("Please", "Hello.", "Here is a form.", "Look at the image.", "Can you help?", "A question:")
COURTESIES_AFTER = ("Thank you.", "Thanks!", "Be exact.", "Please.", "Answer briefly.")
DRESSED = 0.3
"""Share of training questions that are dressed."""

NOUNS = {
    "train": "capital colour weather author river name owner city animal book song country height engine dog moon "
    "king history doctor language garden train planet bridge flower father ship winner school",
    "test": "president brand island speed painter sister village bird mountain recipe camera birthday ocean",
}
NAMES = {
    "train": (
        "France", "London", "the world", "this picture", "Spain", "the sea", "China", "my car", "the house", "Rome",
        "science", "a cat", "the sun", "bread",
    ),
    "test": ("Italy", "Berlin", "the sky", "that photo", "Japan", "my garden", "Paris", "the kitchen"),
}  # fmt: skip
UNRELATED: dict[str, tuple[str, ...]] = {
    "train": (
        "What is the {0} of {1}?",
        "Who is the {0} of {1}?",
        "Tell me about the {0} of {1}.",
        "What colour has the {0}?",
        "How old is the {0}?",
        "Where is the {0}?",
        "Why does the {0} like {1}?",
        "Write a poem about the {0}.",
        "Who wrote the {0}?",
        "When did {1} win the {0}?",
        "Translate {0} into the language of {1}.",
        "What is the weather in {1}?",
        "How long is the way from the {0} to {1}?",
        "How many people live in {1}?",
        "How do I get to {1}?",
        "How tall is the {0} of {1}?",
        "How much does a {0} cost in {1}?",
        "Which {0} is the best of {1}?",
        "Does {1} have a {0}?",
        "Is the {0} older than {1}?",
        "Are there many of them in {1}?",
        "Explain the {0} to me.",
        "Say something about {1}.",
        "Can you draw a {0}?",
        "What time is it in {1}?",
        "Do you like {1}?",
    ),
    "test": (
        "What is the {0} of {1}?",
        "Which {0} lives in {1}?",
        "How far is it to {1}?",
        "Describe the {0} in {1}.",
        "Is there a {0} in {1}?",
        "Who has painted the {0}?",
    ),
}
"""Questions that a form does not answer, by split, for a noun and a name."""


def word_question(kind: str, split: str, rng: np.random.Generator, words: str | int = "first") -> str:
    """Draws the wording of a question, with `{0}` and `{1}` for labels.

    Args:
        kind (`str`): A key of `WORDINGS` or `LIST_WORDINGS`.
        split (`str`): `"train"` or `"test"`.
        rng (`np.random.Generator`): The source of the wording.
        words (`str` or `int`, defaults to `"first"`): `"first"`, the first three of `WORDINGS`, which the first recipe
            trains on; `"all"` of them, now and then dressed in training; `"held_out"`; or the number of one wording,
            counted through `WORDINGS` and `HELD_OUT_WORDINGS`.
    """
    drawn = rng.random()
    wordings, held_out = wordings_of(kind)
    if isinstance(words, int):
        return (*wordings, *held_out)[words]
    known = {"first": wordings[:3], "all": wordings, "held_out": held_out}
    if words not in known:
        raise ValueError(f"`words` must be one of {', '.join(known)}, or a number (got {words!r})")
    wording = known[words][int(drawn * len(known[words]))]
    if split == "test" or words != "all":
        return wording
    return dress(compose(kind, rng) if kind in PARTS and rng.random() < 0.5 else wording, rng)


def compose(kind: str, rng: np.random.Generator) -> str:
    """Puts a question together from `PARTS`; never a held-out wording."""
    verb, *rest = (str(rng.choice(part)) for part in PARTS[kind])
    if kind == "rows" and rest[0] in ("the rows", "all rows"):
        verb = "Count"
    asks = verb.split()[0] in ("What", "Which", "How", "Is", "Can", "And")
    question = f"{verb} {''.join(rest)}{'?' if asks else '.'}"
    return compose(kind, rng) if question in HELD_OUT_WORDINGS[kind] else question


def wordings_of(kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The wordings of a kind of question, those of training and the held-out ones."""
    if kind in LIST_WORDINGS:
        return LIST_WORDINGS[kind], HELD_OUT_LIST_WORDINGS[kind]
    return WORDINGS[kind], HELD_OUT_WORDINGS[kind]


def dress(question: str, rng: np.random.Generator) -> str:
    """Leaves a question as it is, or changes what does not change its meaning."""
    is_dressed, before, after, lower, bare = rng.random(5)
    if is_dressed > DRESSED:
        return question
    if bare < 0.4:
        question = question.rstrip(".?")
    if lower < 0.4:
        question = question[0].lower() + question[1:]
    if before < 0.4:
        question = f"{rng.choice(COURTESIES_BEFORE)} {question}"
    if after < 0.4:
        question = f"{question} {rng.choice(COURTESIES_AFTER)}"
    return question


def unrelated_question(split: str, rng: np.random.Generator) -> str:
    """Draws a question that no form answers; the two splits share no noun and no name."""
    noun, name = rng.choice(NOUNS[split].split()), rng.choice(NAMES[split])
    return str(rng.choice(UNRELATED[split])).format(noun, name)
