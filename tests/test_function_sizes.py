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
"""Functions are short enough to be read whole: at most 60 lines without the docstring, and 7 parameters."""

import ast
from collections.abc import Iterator
from pathlib import Path

MAX_LINES = 60
MAX_PARAMETERS = 7

#: Functions with more parameters -> why.
MANY_PARAMETERS = {
    "modeling/modeling_dimple.py: forward": "transformers' signature of a model with images",
    "processing/image_processing_dimple.py: _prepare_image_like_inputs": "overrides transformers' method",
    "demo/page.py: respond": "gradio passes the value of each component",
    "integrations/lmms_eval.py: __init__": "lmms-eval passes each `--model_args` by name",
    # Public functions whose options all have defaults and independent meanings.
    "decisions/decide.py: decide": "options",
    "hub/card.py: build_model_card": "options",
    "modeling/likelihood_dimple.py: answer_log_likelihood": "options",
    "processing/structure_prior_dimple.py: from_json_schema": "options",
    "training/collator.py: __init__": "options",
}


def functions(source: str) -> Iterator[tuple[str, int, int]]:
    """Name, lines without the docstring, and parameters without `self` and `cls`, of each function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            num_lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                num_lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            arguments = node.args
            names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            names += [a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None]
            yield node.name, num_lines, len([name for name in names if name not in ("self", "cls")])


def test_functions_are_short_and_take_few_parameters(repo_root: Path) -> None:
    package = repo_root / "src" / "dimple_hf"
    found = [
        (f"{path.relative_to(package).as_posix()}: {name}", num_lines, num_parameters)
        for path in package.rglob("*.py")
        for name, num_lines, num_parameters in functions(path.read_text(encoding="utf-8"))
    ]
    assert {name: num_lines for name, num_lines, _ in found if num_lines > MAX_LINES} == {}
    assert {name for name, _, number in found if number > MAX_PARAMETERS} == set(MANY_PARAMETERS)


def test_sizes_are_counted_without_docstring_and_self() -> None:
    """The control: a long function and one with many parameters would be found."""
    body = "\n".join(["        pass"] * MAX_LINES)
    source = f'class A:\n    def f(self, a, *, b, **c):\n        """Two\n        lines."""\n{body}\n'
    assert list(functions(source)) == [("f", MAX_LINES + 1, 3)]
