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
"""`dimple-hf decide` and `dimple-hf calibrate` on the small model of the package."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from launcher import Launcher
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from dimple_hf.batch.results import whole_lines
from dimple_hf.checkpoints import FORMS_CHECKPOINT, FORMS_SAMPLE
from dimple_hf.cli.calibrate import describe_doubts
from dimple_hf.cli.main import main
from dimple_hf.decisions import Calibration, decide, questions_from_json
from dimple_hf.decisions.calibration import CALIBRATION_NAME
from dimple_hf.decisions.reading import CanvasReader

QUESTIONS: list[dict[str, Any]] = [
    {"type": "predicate", "instructions": "Is the price above 500?", "name": "high"},
    {"type": "choice", "instructions": "Which is largest?", "choices": ["price", "qty"]},
    {"type": "score", "instructions": "How full is it?", "levels": [{"label": "empty"}, {"label": "full"}]},
]


@pytest.fixture
def questions_file(tmp_path: Path) -> Path:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"questions": QUESTIONS}))
    return path


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_decide_writes_the_answers_of_each_image(
    questions_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Equal to `decide`; a broken image is an error of its own line; the same command goes on."""
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(FORMS_SAMPLE, folder / "a.png")
    (folder / "b.png").write_bytes(FORMS_SAMPLE.read_bytes()[:50])
    shutil.copy(FORMS_SAMPLE, folder / "c.png")
    output = tmp_path / "answers.jsonl"
    command = ["decide", "--questions", str(questions_file), "--image", str(folder), "--output", str(output)]
    assert main(command) == 0
    lines = lines_of(output.read_text())
    assert ["error" in line for line in lines] == [False, True, False]
    model = AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype="auto").eval()
    processor = AutoProcessor.from_pretrained(FORMS_CHECKPOINT)
    expected: Any = decide(model, processor, FORMS_SAMPLE, questions_from_json(QUESTIONS))
    for found, own in zip(lines[0]["answers"], expected, strict=True):
        assert found["type"] == own.to_dict()["type"]
        assert found.get("probability", 0) == pytest.approx(own.to_dict().get("probability", 0), abs=1e-2)
    assert lines[0]["answers"] == lines[2]["answers"]
    before = output.read_bytes()
    assert main(command) == 0
    assert output.read_bytes() == before
    assert "2 answered, 1 failed, 0 left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--independent"], {"independent": True}),
        (["--reading", "text"], {"reading": "text"}),
        (["--permutations", "2"], {"permutations": 2}),
    ],
)
def test_decide_reads_as_it_is_asked_to(
    arguments: list[str], options: dict[str, Any], questions_file: Path, tmp_path: Path, batch_sizes: list[int]
) -> None:
    """Equal to `decide`, for images of several sizes, with no more canvases in a forward pass than the batch holds."""
    images = [tmp_path / "wide.png", FORMS_SAMPLE]
    Image.open(FORMS_SAMPLE).resize((168, 56)).save(images[0])
    output = tmp_path / "answers.jsonl"
    # In float32: in bfloat16, probabilities depend on the size of a batch by some hundredths.
    model = AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype="float32").eval()
    processor = AutoProcessor.from_pretrained(FORMS_CHECKPOINT)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    command = ["decide", "--model", str(tmp_path / "model"), "--questions", str(questions_file)]
    command += ["--image", *map(str, images), "--output", str(output)]
    assert main([*command, "--batch-size", "4", *arguments]) == 0
    assert max(batch_sizes) == 4
    expected: Any = decide(model, processor, images, questions_from_json(QUESTIONS), **options)
    together: Any = decide(model, processor, images, questions_from_json(QUESTIONS))
    found = [line["answers"] for line in lines_of(output.read_text())]
    assert probabilities_of(found) == pytest.approx(probabilities_of(dicts_of(expected)), abs=1e-4)
    assert probabilities_of(found) != pytest.approx(probabilities_of(dicts_of(together)), abs=1e-2)  # the control
    assert main([*command, "--batch-size", "4"]) == 1  # other settings


def test_batch_that_takes_long_shows_how_many_canvases_are_read(
    questions_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Texts of options take a canvas for each token: one image may take minutes. A short batch shows nothing more."""
    command = ["decide", "--questions", str(questions_file), "--image", str(FORMS_SAMPLE), "--reading", "text"]
    monkeypatch.setattr("dimple_hf.batch.decisions.PROGRESS_DELAY", 600.0)
    assert main(command) == 0
    assert "canvases: " not in capsys.readouterr().err
    monkeypatch.setattr("dimple_hf.batch.decisions.PROGRESS_DELAY", 0.0)
    assert main(command) == 0
    assert "canvases: " in capsys.readouterr().err


def dicts_of(answers: list[list[Any]]) -> list[list[dict[str, Any]]]:
    return [[answer.to_dict() for answer in of_image] for of_image in answers]


def probabilities_of(answers: list[list[dict[str, Any]]]) -> list[float]:
    """Of all images, questions and options, one after the other."""
    return [
        option["probability"]
        for of_image in answers
        for answer in of_image
        for option in answer.get("probabilities", [answer])
    ]


def test_decide_asks_more_questions_than_a_canvas_holds(tmp_path: Path, batch_sizes: list[int]) -> None:
    """On the canvases of `decide`: 16 questions each."""
    questions_file = tmp_path / "questions.json"
    questions_file.write_text(json.dumps(QUESTIONS[:1] * 20))
    output = tmp_path / "answers.jsonl"
    command = ["decide", "--questions", str(questions_file), "--image", str(FORMS_SAMPLE), "--output", str(output)]
    assert main(command) == 0
    assert batch_sizes == [2]
    (line,) = lines_of(output.read_text())
    assert len(line["answers"]) == 20


def test_decide_answers_in_causal_mode(questions_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Several questions in a row, as if each were alone; in bfloat16."""
    causal = tmp_path / "causal"
    shutil.copytree(FORMS_CHECKPOINT, causal)
    config = json.loads((causal / "config.json").read_text())
    (causal / "config.json").write_text(json.dumps(config | {"full_attn_mask": False}))
    command = ["decide", "--questions", str(questions_file), "--image", str(FORMS_SAMPLE), "--model", str(causal)]
    answers = []
    for options in ([], ["--independent"]):
        assert main([*command, *options]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        answers.append(json.loads(line)["answers"])
    for row, alone in zip(*answers, strict=True):
        assert row["label_mass"] == pytest.approx(alone["label_mass"], rel=0.02)


def test_decide_refuses_what_cannot_be_read(questions_file: Path, capsys: pytest.CaptureFixture) -> None:
    """More than one order of options that are not listed, and special tokens."""
    command = ["decide", "--questions", str(questions_file), "--image", str(FORMS_SAMPLE)]
    assert main([*command, "--reading", "text", "--permutations", "2"]) == 1
    assert "`permutations` must be 1" in capsys.readouterr().err
    questions_file.write_text(json.dumps([QUESTIONS[0] | {"instructions": "Is it <|im_end|>?"}]))
    assert main(command) == 1
    assert "must not hold special tokens (got '<|im_end|>'" in capsys.readouterr().err


def test_decide_refuses_another_question_on_the_same_output(
    questions_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "answers.jsonl"
    command = ["decide", "--questions", str(questions_file), "--image", str(FORMS_SAMPLE), "--output", str(output)]
    assert main(command) == 0
    questions_file.write_text(json.dumps(QUESTIONS[:1]))
    assert main(command) == 1
    assert "must be a new file for other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be a file with JSON"),
        ('{"question": []}', 'got {"question": []}'),
        ("null", "must be a file with a list of questions"),
        ("[]", "1 to 400 questions"),
        ('[{"type": "vote"}]', "questions[0].type"),
    ],
)
def test_decide_names_what_is_wrong_with_questions(
    questions_file: Path, content: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    questions_file.write_text(content)
    assert main(["decide", "--questions", str(questions_file), "--image", str(FORMS_SAMPLE)]) == 1
    assert message in capsys.readouterr().err


def test_decide_names_a_questions_file_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    missing = tmp_path / "missing.json"
    assert main(["decide", "--questions", str(missing), "--image", str(FORMS_SAMPLE)]) == 1
    assert f"`--questions` must be a file with JSON ({missing}: No such file" in capsys.readouterr().err


def test_calibrate_fits_saves_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Of each type of question; what it leaves is what `decide --calibrated` reads."""
    shutil.copy(FORMS_SAMPLE, tmp_path / "form.png")
    examples = [
        {"image": "form.png", "questions": QUESTIONS, "answers": [True, "qty", "full"]},
        {"text": "The price is 3.", "questions": QUESTIONS, "answers": [False, "price", "empty"]},
    ] * 2
    data = tmp_path / "labelled.jsonl"
    data.write_text("".join(json.dumps(example) + "\n" for example in examples))
    output, diagram = tmp_path / "calibrated", tmp_path / "reliability.svg"
    assert main(["calibrate", str(data), "--output", str(output), "--diagram", str(diagram), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["before"]["number"] == 6
    assert 0 <= report["after"]["ece"] <= 1
    assert Calibration.from_pretrained(output) == Calibration(report["temperatures"], False, "label")
    assert set(report["temperatures"]) == {"predicate", "choice", "score"}
    assert diagram.read_text().startswith("<?xml")

    saved = (output / CALIBRATION_NAME).read_bytes()
    assert main(["calibrate", str(data), "--output", str(output)]) == 1
    assert (
        f"`--overwrite` must be given to replace a file that is there already (got {output}" in capsys.readouterr().err
    )
    assert main(["calibrate", str(data), "--output", str(tmp_path / "other"), "--diagram", str(diagram)]) == 1
    assert f"(got {diagram})" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert (output / CALIBRATION_NAME).read_bytes() == saved
    assert main(["calibrate", str(data), "--output", str(output), "--overwrite", "--batch-size", "1"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert Calibration.from_pretrained(output).temperatures == pytest.approx(report["temperatures"], rel=1e-3)


@pytest.fixture
def batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Canvases of each forward pass of this process."""
    sizes: list[int] = []
    read = CanvasReader.read

    def counted(self: CanvasReader, canvases: Any, *arguments: Any) -> Any:
        sizes.append(len(canvases))
        return read(self, canvases, *arguments)

    monkeypatch.setattr(CanvasReader, "read", counted)
    return sizes


def test_calibrate_reads_as_many_canvases_at_once_as_the_batch_holds(tmp_path: Path, batch_sizes: list[int]) -> None:
    data = tmp_path / "labelled.jsonl"
    example = {"text": "The price is 3.", "questions": QUESTIONS, "answers": [True, "qty", "full"]}
    data.write_text(f"{json.dumps(example)}\n" * 5)
    assert main(["calibrate", str(data), "--output", str(tmp_path), "--batch-size", "2"]) == 0
    assert batch_sizes == [2, 2, 1]


def test_calibrate_fits_the_first_half_of_the_examples_and_scores_the_second(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """However many questions each has."""
    few = {"text": "3", "questions": QUESTIONS[:1], "answers": [True]}
    many = {"text": "3", "questions": QUESTIONS, "answers": [True, "qty", "full"]}
    data = tmp_path / "labelled.jsonl"
    data.write_text(f"{json.dumps(many)}\n{json.dumps(few)}\n")
    assert main(["calibrate", str(data), "--output", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["temperatures"]) == {"predicate", "choice", "score"}
    assert report["after"]["number"] == 1


def test_calibrate_doubts_what_few_examples_cannot_tell(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A temperature at its bound, and a type that only the second half has."""
    examples = [
        {"text": "3", "questions": QUESTIONS[:1], "answers": [True]},
        {"text": "3", "questions": QUESTIONS[:2], "answers": [True, "qty"]},
    ]
    data = tmp_path / "labelled.jsonl"
    data.write_text("".join(json.dumps(example) + "\n" for example in examples))
    assert main(["calibrate", str(data), "--output", str(tmp_path / "few")]) == 0
    errors = capsys.readouterr().err
    assert "predicate: the temperature is at a bound of its range" in errors
    assert "choice: no temperature, because the first half of the examples has no such question" in errors
    assert "score:" not in errors  # no such question at all
    (predicate,) = questions_from_json(QUESTIONS[:1])
    assert describe_doubts([(predicate, torch.zeros(2), 0)], Calibration({"predicate": 1.2})) == []  # the control


def test_calibrate_refuses_an_output_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A file for the folder; another format than SVG."""
    data = tmp_path / "labelled.jsonl"
    data.write_text("{}")
    assert main(["calibrate", str(data), "--output", str(data)]) == 1
    assert f"`--output` must be a folder (got the file {data})" in capsys.readouterr().err
    assert main(["calibrate", str(data), "--output", str(tmp_path), "--diagram", "reliability.png"]) == 1
    assert "`--diagram` must be an SVG file, whose name ends in .svg (got reliability.png)" in capsys.readouterr().err


def test_calibrate_names_what_is_missing_before_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "labelled.jsonl"
    data.write_text(json.dumps({"text": "3", "questions": QUESTIONS[:1], "answers": [True]}))
    assert main(["calibrate", str(data), "--output", str(tmp_path)]) == 1
    assert "must hold at least 2 examples (got 1)" in capsys.readouterr().err
    assert main(["calibrate", str(data), "--model", "somebody/model"]) == 1
    assert "`--output` must be given for a model on the Hub" in capsys.readouterr().err
    monkeypatch.setattr("dimple_hf.cli.calibrate.LIBRARIES", ("torch", "no_such_library"))
    assert main(["calibrate", str(data), "--output", str(tmp_path)]) == 1
    assert "`calibrate` needs no_such_library: run `pip install 'dimple_hf[decisions]'`" in capsys.readouterr().err


def test_calibrate_names_a_file_that_holds_no_examples(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A missing one, a named pipe, which would never end, and an image."""
    image, pipe = tmp_path / "form.png", tmp_path / "pipe"
    image.write_bytes(b"\x89PNG\r\n")
    os.mkfifo(pipe)
    for data, message in (
        (tmp_path / "gone.jsonl", f"`data` must be a file of JSON lines (got {tmp_path / 'gone.jsonl'})"),
        (pipe, f"`data` must be a file of JSON lines (got {pipe})"),
        (image, f"`data` must be a file of JSON lines (got {image}, an image: name it in a file of examples"),
    ):
        assert main(["calibrate", str(data), "--output", str(tmp_path)]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"questions": QUESTIONS[:1], "answers": [True]}, "either `image` or `text`"),
        ({"text": "", "questions": QUESTIONS[:1], "answers": []}, "`answers` must be a list of 1 answers"),
        ({"text": "", "questions": QUESTIONS[:1], "answers": ["yes"]}, "must be true or false"),
        ({"text": "", "questions": QUESTIONS[1:2], "answers": ["age"]}, "must be one of its options"),
        ({"text": "", "questions": [], "answers": []}, "1 to 400 questions"),
        ({"text": 3, "questions": QUESTIONS[:1], "answers": [True]}, "`text` must be a string (got 3)"),
        ({"image": None, "questions": QUESTIONS[:1], "answers": [True]}, "`image` must be a string (got None)"),
        ({"image": "gone.png", "questions": QUESTIONS[:1], "answers": [True]}, "`image` must be a file"),
    ],
)
def test_calibrate_names_the_line_of_a_bad_example(
    tmp_path: Path, example: dict[str, Any], message: str, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "labelled.jsonl"
    data.write_text("\n" + json.dumps(example) + "\n")
    assert main(["calibrate", str(data), "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"{data}, line 2: " in error
    assert message in error


NUM_EXAMPLES = 12

#: The command, which stops after two forward passes until a signal comes: a loaded machine cannot be too late.
SLOW_COMMAND = """
import itertools, os, signal, sys, time
from dimple_hf.cli.main import main
from dimple_hf.decisions.reading import CanvasReader

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
read, passes = CanvasReader.read, itertools.count()
CanvasReader.read = lambda *arguments: (time.sleep(600 if next(passes) >= 2 else 0), read(*arguments))[1]
code = main(sys.argv[1:])
sys.stderr.flush()
os._exit(code)
"""


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Examples about different texts."""
    data = tmp_path / "labelled.jsonl"
    answers = [[number > 5, "qty", "full"] for number in range(NUM_EXAMPLES)]
    examples = [
        {"text": f"The price is {100 * number}.", "questions": QUESTIONS, "answers": answers[number]}
        for number in range(NUM_EXAMPLES)
    ]
    data.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return data


def rows_read(folder: Path) -> list[int]:
    files = (folder / "decision_calibration.partial").glob("readings.jsonl*part-*")
    return [line["row"] for file in files for _, line in whole_lines(file)]


def test_calibrate_stopped_goes_on_and_saves_what_an_uninterrupted_run_does(
    labelled: Path, tmp_path: Path, batch_sizes: list[int]
) -> None:
    """Killed once, and interrupted once, which says what is kept and how to go on."""
    launcher = Launcher(tmp_path / "errors.txt")
    folder = tmp_path / "killed"
    command = ["calibrate", str(labelled), "--batch-size", "1", "--output"]
    script = tmp_path / "slow.py"
    script.write_text(SLOW_COMMAND)
    num_read = 0
    for number in (signal.SIGKILL, signal.SIGINT):
        (process,) = launcher.start([*command, str(folder)], script=script)
        deadline = time.monotonic() + 120
        while len(rows_read(folder)) < num_read + 2:
            assert time.monotonic() < deadline, launcher.errors.read_text()
            time.sleep(0.002)
        os.kill(process, number)
        assert launcher.wait(process) == (-number if number == signal.SIGKILL else 130)
        num_read = len(rows_read(folder))
        assert num_read == len(set(rows_read(folder)))
        assert not (folder / CALIBRATION_NAME).exists()
    assert 4 <= num_read < NUM_EXAMPLES  # control: both came in the middle of the work
    line = f"dimple-hf calibrate: {num_read} lines of this run are kept in "
    while line not in launcher.errors.read_text():  # it comes through a pipe
        assert time.monotonic() < deadline, launcher.errors.read_text()
        time.sleep(0.01)
    assert "the same command goes on from there" in launcher.errors.read_text().splitlines()[-1]
    assert main([*command, str(folder)]) == 0
    assert batch_sizes == [1] * (NUM_EXAMPLES - num_read)
    assert [path.name for path in folder.iterdir()] == [CALIBRATION_NAME]
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert (folder / CALIBRATION_NAME).read_bytes() == (tmp_path / "whole" / CALIBRATION_NAME).read_bytes()


def test_calibrate_reads_a_batch_that_is_half_there_as_a_whole(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row alone is rounded otherwise than in its batch. Readings of other examples are not gone on with."""
    keep = tmp_path / "kept"
    monkeypatch.setattr("dimple_hf.cli.calibrate.shutil.rmtree", lambda folder: os.rename(folder, keep))
    command = ["calibrate", str(labelled), "--batch-size", "4", "--output"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    partial = tmp_path / "resumed" / "decision_calibration.partial"
    partial.mkdir(parents=True)
    os.rename(keep / "readings.jsonl.settings.json", partial / "readings.jsonl.settings.json")
    lines = (keep / "readings.jsonl").read_bytes().splitlines(keepends=True)
    (partial / "readings.jsonl.part-00001-of-00001.1").write_bytes(b"".join(lines[:6]) + lines[6][:9])
    os.rename(keep, tmp_path / "earlier")
    assert main([*command, str(tmp_path / "resumed")]) == 0
    assert (keep / "readings.jsonl").read_bytes().splitlines(keepends=True) == lines


def test_calibrate_with_other_examples_refuses_the_readings_of_an_earlier_run(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names what differs."""
    monkeypatch.setattr("dimple_hf.cli.calibrate.shutil.rmtree", lambda folder: None)
    command = ["calibrate", str(labelled), "--output", str(tmp_path), "--overwrite"]
    assert main(command) == 0
    assert main(command) == 0  # control: the same examples
    labelled.write_text(labelled.read_text().replace("price is 0", "price is 1"))
    assert main(command) == 1
    assert "was begun with examples=" in capsys.readouterr().err
