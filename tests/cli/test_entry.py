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
"""The `dimple-hf` script as a process: at once where it needs no model, and one line however it ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launcher import Launcher
from test_packaging import NOT_AT_IMPORT

from dimple_hf.cli.main import COMMANDS, main
from dimple_hf.quantization import QUANTIZATIONS

#: The script, as pip writes it.
SCRIPT = [sys.executable, "-c", "import sys; from dimple_hf_cli import main; sys.exit(main())"]

#: Prints which libraries are imported when the parser has ended the process.
WATCHED = """
import atexit, sys
libraries = ("torch", "transformers", "numpy", "PIL", "datasets", "rich", "huggingface_hub")
atexit.register(lambda: print("imported:", [name for name in libraries if name in sys.modules], file=sys.stderr))
from dimple_hf_cli import main
main()
"""


def run(*arguments: str, code: str | None = None, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code] if code is not None else SCRIPT
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=240, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--help"], 0, "ask a model about images"),
        (["--version"], 0, "dimple-hf 0."),
        (["generate", "--help"], 0, "--block-length"),
        (["extract"], 2, "the following arguments are required: --schema"),
        (["train", "--nope", "r.yaml"], 2, "unknown option --nope"),
        (["generate", "What?", "photo.png"], 2, "an image is given by `--image photo.png`"),
        (["generate", "--model", "a b", "What?"], 2, "must be a directory or an id on the Hub (got 'a b')"),
    ],
)
def test_parser_answers_without_importing_the_libraries_of_models(
    arguments: list[str], status: int, message: str
) -> None:
    """Importing torch and transformers takes seconds."""
    ended = run(*arguments, code=WATCHED)
    assert ended.returncode == status
    assert message in ended.stdout + ended.stderr
    imported = ended.stderr.splitlines()[-1]
    assert imported in ("imported: []", "imported: ['huggingface_hub']")


def test_every_command_says_what_it_does_and_takes(capsys: pytest.CaptureFixture) -> None:
    """Control of the test above: the modules are complete."""
    for name, module in COMMANDS.items():
        assert module.HELP, name
        assert callable(module.run), name
    assert COMMANDS["convert"].QUANTIZATIONS == tuple(QUANTIZATIONS)


#: Runs `dimple-hf`, and prints how many objects garbage collections pass over, and every library that is imported.
IMPORTS = """
import gc, sys
from dimple_hf_cli import main
status = main()
print("frozen objects:", gc.get_freeze_count() if gc.isenabled() else None, file=sys.stderr)
print("imported:", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
sys.exit(status)
"""


def test_generate_without_anything_reads_the_sample_of_the_package() -> None:
    """The shortest first try; nothing but the answer is on stdout, and no optional library is imported."""
    ended = run("generate", code=IMPORTS)
    assert ended.returncode == 0
    *_, frozen, last = ended.stderr.splitlines()
    assert int(frozen.split()[-1]) > 100_000  # none is visited by a garbage collection, of which imports cause many
    imported = set(last.split()[1:])
    assert imported & set(NOT_AT_IMPORT) == set()
    assert {"dimple_hf", "torch"} <= imported  # control
    assert ended.stdout.startswith("price ")
    assert "no `--image` is given: reading the sample of the package" in ended.stderr


def test_generate_with_a_question_only_asks_about_the_sample(capsys: pytest.CaptureFixture) -> None:
    """The small model answers about images only; asked without one, it would make up a form."""
    assert main(["generate", "What is the price?"]) == 0
    found = capsys.readouterr()
    assert found.out == "price 929\n"  # as in examples/forms/sample.json
    assert "no `--image` is given: reading the sample of the package" in found.err


@pytest.mark.parametrize("delay", [0.3, *(pytest.param(delay, marks=pytest.mark.slow) for delay in (1.5, 3.0))])
def test_interrupt_at_any_time_is_one_line(delay: float) -> None:
    """Also in the middle of an import, where an exception would come out as another one."""
    process = subprocess.Popen([*SCRIPT, "generate"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode in (130, 0)  # 0: it was faster
    assert "Traceback" not in errors
    if process.returncode:
        assert errors.splitlines()[-1].endswith("interrupted")


#: `dimple-hf generate | head -0`, up to what the interpreter flushes at its end.
BROKEN_PIPE = """
import os, sys
from dimple_hf.cli.main import main
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, sys.stdout.fileno())
status = main(["generate"])
sys.stdout.flush()
os._exit(status)
"""


def test_broken_pipe_is_no_error(tmp_path: Path) -> None:
    """Nothing else is printed."""
    (tmp_path / "script.py").write_text(BROKEN_PIPE)
    launcher = Launcher(tmp_path / "errors.txt")
    (process,) = launcher.start([], script=tmp_path / "script.py")
    assert launcher.wait(process) == 141
    deadline = time.monotonic() + 60
    while "reading the sample" not in (errors := (tmp_path / "errors.txt").read_text()):  # it comes through a pipe
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "Broken pipe" not in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
            "the disk may be full",
        ),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "may be full"),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory.\nTry less."),
            "out of memory: CUDA out of",
        ),
    ],
)
def test_full_memory_or_disk_is_one_line_however_a_library_says_it(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Control: any other error keeps its trace."""
    errors = [error, RuntimeError("a bug")]
    monkeypatch.setattr("dimple_hf.cli.doctor.run", lambda args: (_ for _ in ()).throw(errors.pop(0)))
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().err
    assert line in printed
    assert printed.count("\n") == 1
    with pytest.raises(RuntimeError, match="a bug"):
        main(["doctor"])
