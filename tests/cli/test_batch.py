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
"""`dimple-hf batch`: every row has one line, whatever is wrong with some, and the same command again goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from jsonschema import Draft202012Validator

from dimple_hf.batch.results import ResultFiles
from dimple_hf.cli.main import main

SCHEMA: dict[str, Any] = {"enum": ["red", "green"]}


def ask(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}


@pytest.fixture
def dataset(parity_dir: Path, tmp_path: Path) -> Path:
    """Five rows, of which the third has no image, the fourth is no JSON and the fifth has an unknown role."""
    (tmp_path / "images").mkdir()
    for index in range(2):
        shutil.copy(parity_dir / "tiny" / "images" / f"{index}.png", tmp_path / "images")
    rows = [
        {"messages": [ask("What is it?")], "images": ["images/0.png"], "id": "first"},
        {"messages": [ask("Which colour has it, and how many are there?")], "images": ["images/1.png"]},
        {"messages": [ask("What is it?")], "images": ["images/9.png"]},
        {"messages": [{"role": "robot", "content": "Hello."}]},
    ]
    lines = [json.dumps(row) for row in rows]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*lines[:3], '{"messages": ', lines[3]]) + "\n")
    return path


@pytest.fixture
def command(parity_dir: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    output = str(tmp_path / "answers.jsonl")
    return ["batch", str(dataset), "--model", str(parity_dir / "checkpoint"), "--output", output]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_batch_answers_every_row_and_names_the_bad_ones(
    command: list[str], parity_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """In row order, with the answers of `dimple-hf generate` and a reason for each row without."""
    assert main([*command, "--max-new-tokens", "8"]) == 0
    assert "2 answered, 3 failed, 0 left" in capsys.readouterr().err
    lines = lines_of(tmp_path / "answers.jsonl")
    assert [line["row"] for line in lines] == list(range(5))
    assert [line.get("id") for line in lines] == [
        "first",
        "rows.jsonl:2",
        "rows.jsonl:3",
        "rows.jsonl[3]",
        "rows.jsonl:5",
    ]
    for line, question in zip(lines, ("What is it?", "Which colour has it, and how many are there?"), strict=False):
        image = str(tmp_path / "images" / f"{line['row']}.png")
        options = ["--model", str(parity_dir / "checkpoint"), "--image", image, "--max-new-tokens", "8", "--json"]
        assert main(["generate", question, *options]) == 0
        alone = json.loads(capsys.readouterr().out)
        assert (line["answer"], line["passes"]) == (alone["answer"], alone["passes"])
    reasons = ["images/9.png", "rows.jsonl:4 must be a JSON object", "(got 'robot')"]
    for line, reason in zip(lines[2:], reasons, strict=True):
        assert reason in line["error"]
        assert "answer" not in line


@pytest.mark.parametrize("batch_size", ["1", "2"])
def test_batch_size_is_a_matter_of_speed_alone(command: list[str], tmp_path: Path, batch_size: str) -> None:
    """Also one that is changed on the way."""
    options = ["--max-new-tokens", "8"]
    assert main([*command, *options]) == 0
    expected = (tmp_path / "answers.jsonl").read_bytes()
    assert expected
    other = str(tmp_path / "other.jsonl")
    assert main([*command, *options, "--output", other, "--batch-size", batch_size]) == 0
    assert Path(other).read_bytes() == expected


def test_batch_again_loads_no_model_and_changes_nothing(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """All rows have lines; a row whose line is taken out is answered anew, and that one alone."""
    command = [*command, "--max-new-tokens", "8", "--json"]
    output = tmp_path / "answers.jsonl"
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["seconds"] > 0
    assert first == {"output": str(output), "answered": 2, "failed": 3, "left": 0, "seconds": first["seconds"]}
    written = output.read_bytes()
    with monkeypatch.context() as without_model:
        without_model.setattr("transformers.AutoModelForImageTextToText", None)
        assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["answered"] == 2
    assert output.read_bytes() == written

    (tmp_path / "images" / "9.png").write_bytes((tmp_path / "images" / "0.png").read_bytes())
    output.write_bytes(b"".join(line for line in written.splitlines(True) if b"images/9.png" not in line))
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["answered"] == 3
    lines = lines_of(output)
    assert [line["row"] for line in lines] == list(range(5))
    assert lines[2]["answer"] == lines[0]["answer"]  # the same image and question
    assert [lines[row] for row in (0, 1, 3, 4)] == [json.loads(written.splitlines()[row]) for row in (0, 1, 3, 4)]


def test_batch_on_two_processes_divides_the_rows(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Each does its own; the last one puts them together. The lines are those of one process."""
    assert main([*command, "--max-new-tokens", "8"]) == 0
    alone = (tmp_path / "answers.jsonl").read_bytes()
    other = tmp_path / "two.jsonl"
    command = [*command, "--max-new-tokens", "8", "--output", str(other)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    capsys.readouterr()
    monkeypatch.setenv("RANK", "1")
    assert main(command) == 0
    error = capsys.readouterr().err
    assert "1 answered, 1 failed, 3 left" in error
    assert f"{other} is written when the other processes are done" in error
    assert not other.exists()
    monkeypatch.setenv("RANK", "0")
    assert main(command) == 0
    assert "2 answered, 3 failed, 0 left" in capsys.readouterr().err
    assert other.read_bytes() == alone


def test_batch_goes_on_with_another_number_of_processes(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three processes is all that ran before; what it did is not done again."""
    assert main([*command, "--max-new-tokens", "8"]) == 0
    alone = (tmp_path / "answers.jsonl").read_bytes()
    other = tmp_path / "other.jsonl"
    command = [*command, "--max-new-tokens", "8", "--output", str(other)]
    with monkeypatch.context() as launched:
        launched.setenv("WORLD_SIZE", "3")
        launched.setenv("RANK", "1")
        assert main(command) == 0
    done = {name: path.read_bytes() for path in tmp_path.iterdir() if ".part-" in (name := path.name)}
    assert list(done) == ["other.jsonl.part-00002-of-00003.1"]
    with monkeypatch.context() as watched:
        # What is written before the parts are put together.
        watched.setattr(ResultFiles, "merge", ResultFiles.find_lines)
        assert main(command) == 0
    parts = [path for path in tmp_path.iterdir() if ".part-" in path.name]
    assert sorted(line["row"] for path in parts for line in lines_of(path)) == list(range(5))
    assert main(command) == 0
    assert other.read_bytes() == alone


def test_batch_with_a_model_that_is_not_there_leaves_no_file(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """So that the command with the right name is not taken for another run."""
    (tmp_path / "modle").mkdir()
    assert main([*command, "--model", str(tmp_path / "modle")]) == 1
    assert "modle" in capsys.readouterr().err
    assert [path for path in tmp_path.iterdir() if path.name.startswith("answers")] == []


def test_batch_under_a_schema_gives_valid_values(command: list[str], tmp_path: Path) -> None:
    """The value and not its text; bad rows are lines with an error here, too."""
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    assert main([*command, "--schema", str(tmp_path / "schema.json"), "--any-order"]) == 0
    lines = lines_of(tmp_path / "answers.jsonl")
    assert ["error" in line for line in lines] == [False, False, True, True, True]
    for line in lines[:2]:
        Draft202012Validator(SCHEMA).validate(line["value"])


def test_batch_with_confidence_writes_it_beside_each_answer_and_value(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A number for an answer, a tree for a value, here of one field; rows with an error have none."""
    assert main([*command, "--max-new-tokens", "4", "--confidence"]) == 0
    lines = lines_of(tmp_path / "answers.jsonl")
    assert ["confidence" in line for line in lines] == [True, True, False, False, False]
    assert all(0 < line["confidence"] < 1 for line in lines[:2])
    assert main([*command, "--max-new-tokens", "4"]) == 1
    assert "was begun with confidence=True (got False)" in capsys.readouterr().err
    (tmp_path / "schema.json").write_text(
        json.dumps({"type": "array", "prefixItems": [SCHEMA], "minItems": 1, "maxItems": 1})
    )
    other = tmp_path / "values.jsonl"
    schema = str(tmp_path / "schema.json")
    assert main([*command, "--schema", schema, "--confidence", "--output", str(other)]) == 0
    for line in lines_of(other)[:2]:
        assert len(line["confidence"]) == len(line["value"])
        assert all(0 < value <= 1 for value in line["confidence"])


def test_batch_reads_a_saved_data_set(command: list[str], parity_dir: Path, tmp_path: Path) -> None:
    """With the answers of the same rows in a file."""
    data = [(parity_dir / "tiny" / "images" / f"{index}.png").read_bytes() for index in range(2)]
    questions = ["What is it?", "Which colour has it, and how many are there?"]
    columns = {
        "messages": [[ask(question)] for question in questions],
        "image": [{"bytes": image, "path": None} for image in data],
    }
    saved = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    datasets.DatasetDict({"test": saved}).save_to_disk(tmp_path / "saved")
    other = tmp_path / "saved.jsonl"
    options = ["--max-new-tokens", "8"]
    assert main([*command, *options]) == 0
    assert (
        main(["batch", str(tmp_path / "saved"), *command[2:], *options, "--output", str(other), "--split", "test"])
        == 0
    )
    answers = [line["answer"] for line in lines_of(other)]
    assert answers == [line["answer"] for line in lines_of(tmp_path / "answers.jsonl")[:2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "`--batch-size` must be at least 1 (got 0)"),
        (["--max-new-tokens", "0"], "`max_new_tokens` must be an integer >= 1 (got 0)"),
        (["--confidence-threshold", "1.5"], "`confidence_threshold` must lie in (0, 1] (got 1.5)"),
        (["--schema", "rows.jsonl"], "`--schema` must be a file with JSON"),
        (["--schema", "example.json"], "`schema` must have a keyword of JSON Schema"),
        (["--any-order"], "`--any-order` must be given with `--schema` only"),
        (["--schema", "s.json", "--max-new-tokens", "8"], "`--max-new-tokens` must not be given with `--schema`"),
        (["--output", "missing/a.jsonl"], "`--output` must be a file in a folder that exists (got missing/a.jsonl)"),
        (["--output", "images"], "`--output` must be a file in a folder that exists (got images)"),
        (["--output", "rows.jsonl"], "`--output` must be a new file, or one that was begun by this command"),
        (["--split", "test"], "`split` must only be given for a data set (got a file"),
    ],
)
def test_batch_refuses_bad_options_before_anything_is_loaded(
    command: list[str], tmp_path: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Each by its name, in one line; no file is left after."""
    monkeypatch.setattr("transformers.AutoProcessor", None)
    monkeypatch.chdir(tmp_path)
    Path("example.json").write_text('{"price": 5}')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([*command, *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_batch_refuses_missing_data_and_other_settings(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Answers of another model or length would be mixed with those that are there."""
    assert main(["batch", "nowhere.jsonl", *command[2:]]) == 1
    assert "nowhere.jsonl must be a file (got none there)" in capsys.readouterr().err
    assert main([*command, "--max-new-tokens", "8"]) == 0
    assert main(command) == 1
    assert "was begun with max_new_tokens=8 (got None)" in capsys.readouterr().err


def test_batch_refuses_a_folder_that_cannot_be_written_to(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Before the model is loaded."""
    monkeypatch.setattr("transformers.AutoProcessor", None)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # a superuser may write everywhere
    assert main([*command, "--output", "answers.jsonl"]) == 1
    assert capsys.readouterr().err == (
        "dimple-hf batch: `--output` must be a file in a folder that can be written to (got answers.jsonl)\n"
    )


@pytest.mark.parametrize(("rank", "world_size"), [("2", "2"), ("1", None), ("-1", "2"), ("a", "2")])
def test_batch_refuses_a_process_that_is_none(
    command: list[str], rank: str, world_size: str | None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Left over from something else, it would leave rows that nobody answers."""
    monkeypatch.setenv("RANK", rank)
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    assert main(command) == 1
    assert f"(got {rank} of {world_size or 1})" in capsys.readouterr().err


def test_batch_row_that_is_nested_too_deeply_fails_alone(
    command: list[str], dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Also where the brackets stand in an `id`, which a line repeats; the same command again reads its lines."""
    brackets = "[" * 1000 + "]" * 1000
    row = {"role": "user", "content": "Which?"}
    lines = [
        '{"messages": ' + brackets + "}",
        '{"messages": [' + json.dumps(row) + '], "id": ' + "[" * 300 + "]" * 300 + "}",
        json.dumps({"messages": [row]}),
    ]
    dataset.write_text("\n".join(lines) + "\n")
    for _ in range(2):
        assert main([*command, "--max-new-tokens", "4"]) == 0
        assert "left" in capsys.readouterr().err
    found = lines_of(tmp_path / "answers.jsonl")
    assert ["error" in line for line in found] == [True, False, False]


def test_batch_settings_that_are_broken_name_their_file(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A run that was begun cannot be compared with them."""
    (tmp_path / "answers.jsonl.settings.json").write_text('{"rows": ')
    assert main(command) == 1
    assert "answers.jsonl.settings.json must be the settings of a run, in JSON" in capsys.readouterr().err
    (tmp_path / "answers.jsonl.settings.json").write_text("[]")
    assert main(command) == 1
    assert "must be the settings of a run, a JSON object (got list)" in capsys.readouterr().err


def test_batch_refuses_rows_that_have_changed_under_the_same_name(
    command: list[str], dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Their answers would be mixed with those of the old ones; all failed rows, by themselves, are a status of 1."""
    assert main([*command, "--max-new-tokens", "4"]) == 0
    written = (tmp_path / "answers.jsonl").read_bytes()
    capsys.readouterr()
    dataset.write_text(dataset.read_text().replace("What is it?", "What was it?"))
    assert main([*command, "--max-new-tokens", "4"]) == 1
    assert "1 row has changed since the answer (got other texts or images in 0)" in capsys.readouterr().err
    assert (tmp_path / "answers.jsonl").read_bytes() == written


def test_batch_to_standard_output_keeps_the_order_of_the_rows(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept, so several processes have nothing to share."""
    assert main([*command, "--max-new-tokens", "4", "--output", "-"]) == 0
    assert [json.loads(line)["row"] for line in capsys.readouterr().out.splitlines()] == list(range(5))
    assert not (tmp_path / "-").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*command, "--output", "-"]) == 1
    assert "`--output` must be a file with several processes (got -)" in capsys.readouterr().err
