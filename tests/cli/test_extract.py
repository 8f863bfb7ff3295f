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
"""`dimple-hf extract`: a valid line for each image, whatever happens to some of them."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from jsonschema import Draft202012Validator

from dimple_hf.cli import extract, loading
from dimple_hf.cli.answering import read_json
from dimple_hf.cli.main import main

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}, "colour": {"enum": ["red", "green"]}},
    "required": ["count", "colour"],
}


@pytest.fixture
def arguments(parity_dir: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    return ["extract", "--model", str(parity_dir / "checkpoint"), "--schema", str(tmp_path / "schema.json")]


@pytest.fixture
def folder(parity_dir: Path, tmp_path: Path) -> Path:
    """Two images in a folder, one in a folder inside, a broken one, and a file that is no image."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.png", "more/c.png")):
        (folder / name).write_bytes((parity_dir / "tiny" / "images" / f"{index}.png").read_bytes())
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no image")
    return folder


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_extract_writes_a_valid_line_for_each_image_of_a_folder(
    arguments: list[str], folder: Path, batch_size: int, capsys: pytest.CaptureFixture
) -> None:
    """In the order of the names; a broken image is a line with an error, and no crash."""
    assert main([*arguments, "--image", str(folder), "--batch-size", str(batch_size)]) == 0
    captured = capsys.readouterr()
    lines = lines_of(captured.out)
    names = [str(folder / name) for name in ("a.png", "b.png", "broken.png", "more/c.png")]
    assert [line["source"] for line in lines] == names
    assert ["error" in line for line in lines] == [False, False, True, False]
    for line in lines:
        if "error" not in line:
            Draft202012Validator(SCHEMA).validate(line["value"])
            assert line["passes"] >= 1
    assert "3 answered, 1 failed, 0 left" in captured.err
    assert "skipped 1 other file (1 x .txt), such as" in captured.err


def test_extract_in_batches_gives_the_lines_of_single_images(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture
) -> None:
    """The size of a batch is a matter of speed alone."""
    assert main([*arguments, "--image", str(folder)]) == 0
    single = lines_of(capsys.readouterr().out)
    assert main([*arguments, "--image", str(folder), "--batch-size", "4"]) == 0
    assert lines_of(capsys.readouterr().out) == single


def test_extract_lists_bounds_and_marks_what_they_cut_short(
    arguments: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """An untrained model fills any canvas; one more option of the schema is another run."""
    open_schema = {"type": "array", "items": {"type": ["string", "integer"]}, "x-note": "names"}
    (tmp_path / "open.json").write_text(json.dumps(open_schema))
    command = [*arguments, "--image", str(folder / "a.png"), "--schema", str(tmp_path / "open.json")]
    assert main([*command, "--max-digits", "3", "--max-tokens", "12", "--verbose"]) == 0
    captured = capsys.readouterr()
    (line,) = lines_of(captured.out)
    Draft202012Validator(open_schema).validate(line["value"])
    assert line["truncated"] is True
    assert "bounded: numbers: at most 3 digits before and after the point" in captured.err
    assert "bounded: length: 12 tokens in all" in captured.err
    assert "ignored: $.x-note" in captured.err
    assert main(command) == 0
    assert "bounded" not in capsys.readouterr().err
    assert main([*arguments, "--image", str(folder / "a.png")]) == 0
    assert "truncated" not in lines_of(capsys.readouterr().out)[0]  # its values have bounds of their own


def test_extract_options_of_the_form_are_settings_of_the_run(
    arguments: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """And reach the schema, whose refusals name them."""
    command = [*arguments, "--image", str(folder / "a.png"), "--output", str(tmp_path / "lines.jsonl")]
    assert main(command) == 0
    capsys.readouterr()
    for name, value, default in (("max-items", 5, 4), ("max-digits", 3, 18), ("max-tokens", 99, None)):
        assert main([*command, f"--{name}", "0"]) == 1
        assert f"`{name.replace('-', '_')}` must lie between 1 and" in capsys.readouterr().err
        assert main([*command, f"--{name}", str(value)]) == 1
        assert f"{name.replace('-', '_')}={default} (got {value})" in capsys.readouterr().err
    assert main([*command, "--any-order"]) == 1
    assert "any_order=False (got True)" in capsys.readouterr().err
    assert main([*command[:-2], "--layout", "padded", "--max-tokens", "9"]) == 1
    assert "`max_tokens` must be None with the layout" in capsys.readouterr().err


def test_extract_with_confidence_writes_a_tree_beside_each_value(
    arguments: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The rest of the lines stays; an output that was begun without is not gone on with."""
    command = [*arguments, "--image", str(folder)]
    assert main(command) == 0
    plain = lines_of(capsys.readouterr().out)
    assert main([*command, "--confidence"]) == 0
    lines = lines_of(capsys.readouterr().out)
    for line in lines:
        if "error" not in line:
            confidence = line.pop("confidence")
            assert set(confidence) == set(line["value"])
            assert all(0 < value <= 1 for value in confidence.values())
    assert lines == plain
    command += ["--output", str(tmp_path / "lines.jsonl")]
    assert main(command) == 0
    assert main([*command, "--confidence"]) == 1
    assert "was begun with confidence=False (got True)" in capsys.readouterr().err


def test_extract_goes_on_where_it_was_stopped(
    arguments: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that have a line are left out, and the lines are those of the uninterrupted run."""
    output = tmp_path / "lines.jsonl"
    command = [*arguments, "--image", str(folder), "--output", str(output)]
    assert main(command) == 0
    first = output.read_bytes()
    capsys.readouterr()
    lines = first.splitlines(keepends=True)
    output.unlink()
    part = tmp_path / "lines.jsonl.part-00001-of-00001.1"
    part.write_bytes(lines[0] + lines[1][:9])
    assert main(command) == 0
    assert "3 answered, 1 failed, 0 left" in capsys.readouterr().err
    assert output.read_bytes() == first
    with monkeypatch.context() as without_model:
        without_model.setattr("transformers.AutoModelForImageTextToText", None)
        assert main(command) == 0  # nothing is left: failed images are not tried again, nor their lines doubled
    assert output.read_bytes() == first


def test_extract_asks_again_what_failed_and_takes_new_images(
    arguments: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """An image that failed and was mended is read, one that was added too; lines of other images stay."""
    output = tmp_path / "lines.jsonl"
    command = [*arguments, "--output", str(output), "--image"]
    assert main([*command, str(folder)]) == 0
    first = lines_of(output.read_text())
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "d.png").write_bytes((folder / "b.png").read_bytes())
    assert main([*command, str(folder)]) == 0
    lines = lines_of(output.read_text())
    names = ["a.png", "b.png", "broken.png", "d.png", "more/c.png"]
    assert [line["source"] for line in lines] == [str(folder / name) for name in names]
    assert lines[2]["value"] == first[0]["value"]
    assert [lines[0], lines[1], lines[4]] == [first[0], first[1], first[3]]
    (tmp_path / "e.png").write_bytes((folder / "a.png").read_bytes())
    assert main([*command, str(tmp_path / "e.png")]) == 0
    assert lines_of(output.read_text())[:5] == lines
    assert len(lines_of(output.read_text())) == 6


def test_extract_refuses_other_settings_and_changed_images(
    arguments: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Each with the difference; the lines that are there stay as they are."""
    output = tmp_path / "lines.jsonl"
    command = [*arguments, "--image", str(folder), "--output", str(output)]
    assert main(command) == 0
    written = output.read_bytes()
    capsys.readouterr()
    assert main([*command, "--question", "Which?"]) == 1
    assert "was begun with question='Read the image as JSON.' (got 'Which?')" in capsys.readouterr().err
    (tmp_path / "other.json").write_text('{"type": "integer", "minimum": 0, "maximum": 9}')
    assert main([*command, "--schema", str(tmp_path / "other.json")]) == 1
    assert "was begun with schema=" in capsys.readouterr().err
    (folder / "a.png").write_bytes((folder / "b.png").read_bytes())
    assert main(command) == 1
    error = capsys.readouterr().err
    assert f"1 row has changed since the answer (got other texts or images in {folder / 'a.png'})" in error
    assert output.read_bytes() == written


@pytest.mark.parametrize("output", ["-", "/dev/stdout"])
def test_extract_writes_to_standard_output_by_its_names(
    arguments: list[str], folder: Path, output: str, tmp_path: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """And makes no file of that name."""
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--image", str(folder / "a.png"), "--output", output]) == 0
    assert len(lines_of(capsys.readouterr().out)) == 1
    assert not (tmp_path / "-").exists()


def test_extract_passes_over_named_pipes_and_says_what_it_skips(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture
) -> None:
    """A pipe would never end; one that is named is an image that cannot be read."""
    os.mkfifo(folder / "pipe.png")
    (folder / "photo.unknown").write_bytes(b"x")
    assert main([*arguments, "--image", str(folder)]) == 0
    captured = capsys.readouterr()
    assert "skipped 3 other files (" in captured.err
    assert len(lines_of(captured.out)) == 4
    assert main([*arguments, "--image", str(folder / "pipe.png")]) == 1
    assert "pipe" in lines_of(capsys.readouterr().out)[0]["error"]


def test_extract_takes_several_images_and_folders_without_what_is_hidden(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture
) -> None:
    """`--image` may be repeated; what an archive of macOS adds is no image; a link to a folder may lead anywhere."""
    hidden = folder / "__MACOSX" / "._a.png", folder / ".thumbnails" / "a.png"
    for path in hidden:
        path.parent.mkdir()
        path.write_bytes(b"x")
    (folder / "linked").symlink_to(folder / "more", target_is_directory=True)
    image = str(folder / "a.png")
    assert main([*arguments, "--image", image, "--image", str(folder / "more"), str(folder)]) == 0
    captured = capsys.readouterr()
    assert [Path(line["source"]).name for line in lines_of(captured.out)] == ["a.png", "c.png", "b.png", "broken.png"]
    assert "skipped 4 other files (2 x hidden, 1 x link to a folder, 1 x .txt)" in captured.err
    assert main([*arguments, "--image", str(hidden[0])]) == 1  # control: one that is named is read
    assert "._a.png" in lines_of(capsys.readouterr().out)[0]["source"]


def test_extract_reads_a_data_set(
    arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """A folder of images is also a data set; the rows are named by their index."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    command = [*arguments, "--dataset", str(folder)]
    assert main(command) == 0
    lines = lines_of(capsys.readouterr().out)
    assert [line["source"] for line in lines] == [f"{folder}/train/{index}" for index in range(4)]
    assert sum("error" in line for line in lines) == 1
    load_dataset(str(folder), split="train").save_to_disk(str(tmp_path / "saved"))
    assert main([*arguments, "--dataset", str(tmp_path / "saved")]) == 0
    saved = lines_of(capsys.readouterr().out)
    assert [line.get("value") for line in saved] == [line.get("value") for line in lines]
    assert main([*command, "--image-column", "photo"]) == 1
    assert "`--image-column` must be one of image (got 'photo')" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "`--schema` must be a file with JSON"),
        ('{"type": "strin"}', "`schema` must have a type or a list of types at $.type (got 'strin')"),
        ('{"type": "string", "pattern": "^x{99}$", "x-max-tokens": 9}', "$ must be longer"),
        ("[]", "`schema` must be a dict or a pydantic model class (got list)"),
        ('{"price": 5, "qty": 1}', '`schema` must have a keyword of JSON Schema, such as "type" or "properties"'),
    ],
)
def test_extract_with_bad_schema_returns_one_before_the_model_is_loaded(
    arguments: list[str],
    schema: str,
    message: str,
    parity_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """One line with the position of the fault."""
    (tmp_path / "schema.json").write_text(schema)
    monkeypatch.setattr("transformers.AutoModelForImageTextToText", None)
    image = str(parity_dir / "tiny" / "images" / "0.png")
    assert main([*arguments, "--layout", "padded", "--image", image]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_extract_reads_a_schema_as_windows_writes_it(arguments: list[str], encoding: str) -> None:
    """With a byte order mark, in either encoding."""
    schema = Path(arguments[-1])
    schema.write_bytes(json.dumps(SCHEMA).encode(encoding))
    assert read_json(schema, "--schema") == SCHEMA
    schema.write_bytes(b"\xff{}")
    with pytest.raises(ValueError, match="`--schema` must be a file with JSON .*can't decode"):
        read_json(schema, "--schema")


def test_extract_refuses_bad_options(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Each by its name."""
    assert main([*arguments, "--image", str(folder), "--batch-size", "0"]) == 1
    assert "`--batch-size` must be at least 1 (got 0)" in capsys.readouterr().err
    assert main([*arguments, "--image", str(folder), "--confidence-threshold", "7"]) == 1
    assert capsys.readouterr().err == "dimple-hf extract: `confidence_threshold` must lie in (0, 1] (got 7.0)\n"
    output = folder / "notes.txt"
    output.write_text("no line\nand no end")
    assert main([*arguments, "--image", str(folder), "--output", str(output)]) == 1
    assert "`--output` must be a new file, or one that was begun by this command" in capsys.readouterr().err
    assert output.read_text() == "no line\nand no end"  # nothing of the user's is touched
    missing = [*arguments, "--image", str(folder / "nowhere.png")]
    assert main(missing) == 1  # an image that is not there is a bad image, and all of them are bad
    assert "error" in lines_of(capsys.readouterr().out)[0]
    assert main([*missing, str(folder / "a.png")]) == 0
    assert ["error" in line for line in lines_of(capsys.readouterr().out)] == [True, False]
    assert main([*arguments, "--image", str(folder / "nowhere")]) == 1  # not the base64 that its name could be
    assert f"(got {folder / 'nowhere'}, where there is nothing)" in capsys.readouterr().err
    assert main([*arguments, "--image", str(folder / "a.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["output"] is None  # standard output has no name
    (folder / "none").mkdir()
    assert main([*arguments, "--image", str(folder / "none")]) == 1
    assert "`--image` must name images, or folders of images (got none in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*missing, "--dataset", "x"])
    with pytest.raises(SystemExit):  # an empty path would be the current folder
        main([*arguments, "--image", ""])
    assert "argument --image: must not be empty" in capsys.readouterr().err
    for dataset in ("", str(folder / "notes.txt")):
        assert main([*arguments, "--dataset", dataset]) == 1
        assert "a data set must be a directory or a Hub id (got" in capsys.readouterr().err


def test_extract_of_nothing_but_archives_is_refused_before_a_model_is_loaded(
    arguments: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive for the folder that was packed in it. Among images it is one that cannot be read."""
    archive, pipe = tmp_path / "forms.zip", tmp_path / "pipe"
    archive.write_bytes(b"PK\x03\x04")
    os.mkfifo(pipe)
    assert main([*arguments, "--image", str(archive), str(pipe)]) == 1  # which is not opened
    assert [line["error"].rpartition("(")[2] for line in lines_of(capsys.readouterr().out)] == [
        "got a ZIP archive: extract it first)",
        "got a folder, a named pipe or a device)",
    ]
    monkeypatch.setattr(loading, "load_model", lambda *args: pytest.fail("a model was loaded"))
    assert main([*arguments, "--image", str(archive)]) == 1
    message = f"`--image` must name images, or folders of images (got {archive}, a ZIP archive: extract it first)\n"
    assert capsys.readouterr().err == f"dimple-hf extract: {message}"
    schema = arguments.index("--schema") + 1
    assert main([*arguments[:schema], str(archive), *arguments[schema + 1 :], "--image", str(folder)]) == 1
    assert f"`--schema` must be a file with JSON ({archive}: a ZIP archive: extract it" in capsys.readouterr().err


def test_extract_is_a_sub_command_with_help() -> None:
    """`dimple-hf extract --help` works."""
    parser = argparse.ArgumentParser()
    extract.add_arguments(parser)
    assert "--schema" in parser.format_help()
