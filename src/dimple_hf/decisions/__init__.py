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
"""Decisions: typed questions about an input, answered with a probability for each option."""

from .answers import Answer, ChoiceAnswer, OptionProbability, PredicateAnswer, ScoreAnswer
from .calibration import Calibration
from .decide import decide
from .parsing import questions_from_json
from .questions import Choice, Option, Predicate, Question, Score

__all__ = [
    "Answer",
    "Calibration",
    "Choice",
    "ChoiceAnswer",
    "Option",
    "OptionProbability",
    "Predicate",
    "PredicateAnswer",
    "Question",
    "Score",
    "ScoreAnswer",
    "decide",
    "questions_from_json",
]
