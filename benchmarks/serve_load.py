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
"""Loads a server with many clients at once, a quarter of them hostile, and judges every answer.

Good clients each have images of their own and ask as fast as they are answered: at once, streamed, and under a JSON
schema. Their answers must be those of the model's own `generate` for their own images. Hostile ones send broken
JSON, bodies of 50 MB, decompression bombs, ten thousand images, images up to the limits that no context holds,
schemas that explode, wrong types and private addresses, which must be refused with a reason, and leave in the middle
of answers. The server's memory is read every half second. The good clients run twice, first alone, so that it shows
what the hostile ones cost them.

The model runs in single precision: in bfloat16, what an answer is batched with can tip a token that is nearly a tie.

Command:
    python benchmarks/serve_load.py --clients 64 --seconds 60 --output benchmarks/results/serve-load-cpu.json

Hardware: any. The server is a process of its own on the same machine, so that clients and model share its cores.
"""

import argparse
import asyncio
import base64
import collections
import functools
import io
import itertools
import json
import os
import platform
import re
import shlex
import statistics
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import PIL.Image
import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

import dimple_hf
from dimple_hf import StructurePrior
from dimple_hf.checkpoints import FORMS_CHECKPOINT

SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "forms" / "sample.png"
QUESTIONS = (
    "Give the form as JSON.",
    "What does the form say?",
    "Read the floor.",
    "How many rows does the form have?",
)
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "integer", "minimum": 0, "maximum": 9999} for name in ("price", "floor", "table")},
    "required": ["price", "floor", "table"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "form", "schema": SCHEMA, "strict": True}}
HEADERS = {"content-type": "application/json"}

#: Small schemas that take hours and gigabytes to compile without bounds, and one that is none.
BOMBS = {
    "endless pattern": {"type": "string", "pattern": "^(a|[a-z]{1,50}){0,60}$"},
    "nested pattern": {"type": "string", "pattern": "^(((((a?){30}){30}){30})){30}$"},
    "no schema": {"required": [[]]},
    "nested references": {
        "$ref": "#/$defs/d",
        "$defs": {"a": {"anyOf": [{"const": number} for number in range(30)]}}
        | {
            name: {
                "anyOf": [
                    {"type": "array", "items": {"$ref": f"#/$defs/{before}"}, "minItems": number, "maxItems": number}
                    for number in range(1, 31)
                ]
            }
            for before, name in itertools.pairwise("abcd")
        },
    },
}


def format_of(schema: Any) -> dict[str, Any]:
    """A response format, with a name of its own so that no two requests are the same."""
    return {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"description": os.urandom(4).hex(), **schema}},
    }


class ServerProcess:
    """`dimple-hf serve` with these arguments, on a free port. Its log is in `lines`."""

    def __init__(self, *arguments: str):
        command = [sys.executable, "-m", "dimple_hf.cli.main", "serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.url = ""
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"running on (http://\S+)", line):
                self.url = found[1]
                break
        if not self.url:
            raise RuntimeError("".join(self.lines))
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True).start()

    def stop(self) -> int:
        """Asks it to end, as a supervisor does. Returns its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=120)
        finally:
            self.process.kill()

    def resident_mib(self) -> float:
        """Memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def noise_image(seed: int) -> PIL.Image.Image:
    """The sample form with a little noise, moved by a few pixels: an image of its own that is still a form."""
    random = np.random.default_rng(seed)
    pixels = np.asarray(PIL.Image.open(SAMPLE).convert("L")).astype(int)
    pixels = np.clip(pixels + random.integers(-12, 13, pixels.shape), 0, 255).astype(np.uint8)
    return PIL.Image.fromarray(np.roll(pixels, int(random.integers(-3, 4)), axis=int(random.integers(0, 2))))


def data_url(image: PIL.Image.Image, kind: str = "png") -> str:
    """An image as clients send it."""
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def messages(url: str, question: str) -> list[dict[str, Any]]:
    """A chat about an image, as clients send it."""
    return [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}],
        }
    ]


def png_bomb(side: int) -> bytes:
    """A small PNG file that asks for `side` x `side` pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        + chunk(b"IEND", b"")
    )


@functools.cache
def own_answers(seeds: range) -> dict[tuple[int, str], str]:
    """What `generate` answers to each image alone: (seed, "free" or "json") -> text."""
    processor = AutoProcessor.from_pretrained(FORMS_CHECKPOINT)
    model = AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype=torch.float32).eval()
    priors = {"free": None, "json": StructurePrior.from_json_schema(SCHEMA)}
    answers = {}
    for seed, (way, prior) in itertools.product(seeds, priors.items()):
        content = [{"type": "image", "image": noise_image(seed)}, {"type": "text", "text": QUESTIONS[seed % 4]}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **({} if prior is None else {"structure_prior": prior}),
        )
        tokens = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
        answers[seed, way] = processor.decode(tokens, skip_special_tokens=True)
    return answers


class Report:
    """What happened: counts by name, seconds of good requests, and everything that was not as it must be."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.seconds: list[float] = []
        self.faults: list[str] = []

    def judge(self, name: str, is_right: bool, got: Any) -> None:
        self.counts[name] += 1
        if not is_right:
            self.faults.append(f"{name}: {got!r}"[:300])


WAYS = ("whole", "stream", "json")


async def good_client(
    url: str, seeds: list[int], expected: dict[tuple[int, str], str], end: float, report: Report
) -> None:
    """Asks about its own images in every way, at least once, and compares."""
    chats = {seed: messages(data_url(noise_image(seed)), QUESTIONS[seed % 4]) for seed in seeds}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        for number, (seed, way) in enumerate(itertools.cycle(itertools.product(seeds, WAYS))):
            if number >= len(WAYS) and time.monotonic() > end:
                return
            start = time.monotonic()
            try:
                if way == "stream":
                    pieces = await client.chat.completions.create(model="forms", messages=chats[seed], stream=True)
                    text = "".join([piece.choices[0].delta.content or "" async for piece in pieces])
                else:
                    options = {"response_format": FORMAT} if way == "json" else {}
                    answer = await client.chat.completions.create(model="forms", messages=chats[seed], **options)
                    text = answer.choices[0].message.content
            except openai.OpenAIError as error:
                report.judge(f"good {way}", False, error)
                continue
            report.seconds.append(time.monotonic() - start)
            report.judge(f"good {way}", text == expected[seed, "json" if way == "json" else "free"], (seed, text))


async def hostile_client(url: str, number: int, end: float, report: Report) -> None:
    """Does every evil thing, at least once, beginning with another than its neighbours."""
    image = data_url(noise_image(10_000 + number))
    bomb = "data:image/png;base64," + base64.b64encode(png_bomb(30_000)).decode()
    large_bomb = "data:image/png;base64," + base64.b64encode(png_bomb(5_000)).decode()

    dot, square = (data_url(PIL.Image.new("RGB", (side, side))) for side in (1, 512))
    halves = [{"type": "text", "text": half} for half in ("<|im_", "end|>")]
    split_token = [{"role": "user", "content": halves}]

    def body(**changes: Any) -> bytes:
        return json.dumps({"model": "forms", "messages": messages(image, "What?")} | changes).encode()

    def messages_of(urls: list[str]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}} for url in urls]}]

    async def megabytes() -> Any:
        for _ in range(50):
            yield bytes(1 << 20)

    refused = {
        "broken JSON": (400, lambda: body()[:-5]),
        "50 MB": (413, lambda: b" " * 50_000_000),
        "50 MB in pieces": (413, megabytes),
        "bomb beyond Pillow's limit": (400, lambda: body(messages=messages(bomb, "What?"))),
        "bomb": (400, lambda: body(messages=messages(large_bomb, "What?"))),
        "wrong type": (400, lambda: body(temperature="hot")),
        "not a chat": (400, lambda: body(messages={"role": "user"})),
        "private address": (400, lambda: body(messages=messages("http://169.254.169.254/latest", "What?"))),
        "loopback name": (400, lambda: body(messages=messages("http://localhost:22/", "What?"))),
        "pixels up to the limit": (400, lambda: body(messages=messages_of([square] * 64))),
        "ten thousand images": (400, lambda: body(messages=messages_of([dot] * 10_000))),
        "special token in two parts": (400, lambda: body(messages=split_token)),
        **{
            name: (400, lambda schema=schema: body(response_format=format_of(schema)))
            for name, schema in BOMBS.items()
        },
    }
    names = [*refused, "left a stream", "left an answer", "left while sending"]
    path = f"{url}/v1/chat/completions"
    async with httpx2.AsyncClient(timeout=300) as client:
        for count, name in enumerate(itertools.islice(itertools.cycle(names), number, None)):
            if count >= len(names) and time.monotonic() > end:
                return
            if name == "left a stream":
                async with client.stream("POST", path, content=body(stream=True), headers=HEADERS) as response:
                    async for _ in response.aiter_bytes():
                        break
                report.judge(name, response.status_code == 200, response.status_code)
            elif name in ("left an answer", "left while sending"):
                host, port = url.removeprefix("http://").split(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                data = body()
                head = ("POST /v1/chat/completions HTTP/1.1", f"Host: {host}", "Content-Type: application/json")
                writer.write("\r\n".join([*head, f"Content-Length: {len(data)}", "", ""]).encode())
                writer.write(data if name == "left an answer" else data[:-10])
                await writer.drain()
                await asyncio.sleep(0.05)
                writer.close()
                report.judge(name, True, None)
            else:
                status, content = refused[name]
                try:
                    response = await client.post(path, content=content(), headers=HEADERS)
                    message = response.json()["error"]["message"]
                    is_expensive = name in BOMBS or name == "pixels up to the limit"
                    statuses = (status, 429) if is_expensive else (status,)  # a few at a time
                    report.judge(
                        name, response.status_code in statuses and bool(message), (response.status_code, message)
                    )
                except httpx2.TransportError as error:
                    report.judge(name, False, error)
            await asyncio.sleep(0.05)


async def load(server: ServerProcess, num_clients: int, seconds: float, with_hostile: bool = True) -> dict[str, Any]:
    """
    Runs the clients, a quarter of them hostile.

    Args:
        server ([`ServerProcess`]):
            A server of the small model in single precision, which may fetch images.
        num_clients (`int`):
            Clients at a time.
        seconds (`float`):
            How long they go on, but at least until each has done everything once. What they have asked by then is
            waited for.
        with_hostile (`bool`, *optional*, defaults to `True`):
            Whether the hostile quarter takes part.

    Returns:
        `dict[str, Any]`: Counts, seconds of good requests, memory over time, and `faults`, which must be empty.
    """
    num_hostile = num_clients // 4
    num_good = num_clients - num_hostile
    num_hostile = num_hostile if with_hostile else 0
    expected = own_answers(range(2 * num_good))
    report, memory = Report(), [server.resident_mib()]
    begin = time.monotonic()
    end = begin + seconds

    async def watch_memory() -> None:
        while True:
            await asyncio.sleep(0.5)
            memory.append(server.resident_mib())

    watcher = asyncio.create_task(watch_memory())
    clients = [good_client(server.url, [2 * i, 2 * i + 1], expected, end, report) for i in range(num_good)]
    clients += [hostile_client(server.url, number, end, report) for number in range(num_hostile)]
    await asyncio.gather(*clients)
    took = time.monotonic() - begin
    watcher.cancel()
    if server.process.poll() is not None:
        report.faults.append(f"the server ended with status {server.process.returncode}")
    thirds = [memory[len(memory) * part // 3 : len(memory) * (part + 1) // 3] or memory[-1:] for part in range(3)]
    quantiles = statistics.quantiles(report.seconds, n=100) if len(report.seconds) > 1 else [0.0] * 99
    return {
        "seconds": round(took, 1),
        "clients": {"good": num_good, "hostile": num_hostile},
        "answers": dict(sorted(report.counts.items())),
        "good_requests_per_second": round(len(report.seconds) / took, 2),
        "good_seconds": {"median": round(quantiles[49], 2), "p95": round(quantiles[94], 2)},
        "different_answers_expected": len(set(expected.values())),
        "resident_mib": {
            "idle": round(memory[0]),
            "peak_of_each_third": [round(max(third)) for third in thirds],
            "end": round(memory[-1]),
        },
        "faults": report.faults,
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Starts a server, loads it, stops it, and prints the report."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(arguments)
    server = ServerProcess("--dtype", "float32", "--allow-remote-images")
    try:
        alone = asyncio.run(load(server, args.clients, args.seconds, with_hostile=False))
        result = asyncio.run(load(server, args.clients, args.seconds))
    finally:
        status = server.stop()
    report = {
        "benchmark": "serve_load",
        "command": shlex.join(["python", "benchmarks/serve_load.py", *arguments]),
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dimple_hf": dimple_hf.__version__,
        },
        **result,
        "good_seconds_without_hostile": alone["good_seconds"],
        "p95_ratio": round(result["good_seconds"]["p95"] / max(alone["good_seconds"]["p95"], 1e-3), 2),
        "exit_status": status,
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    if args.output is not None:
        args.output.write_text(text + "\n")
    print(text)
    return report


if __name__ == "__main__":
    sys.exit(bool(main()["faults"]))
