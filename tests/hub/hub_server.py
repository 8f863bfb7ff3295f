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
"""A small Hub on this machine, which speaks the protocol of the real client (`huggingface_hub`, over plain HTTP).

What it knows: repositories with commits, branches and tags; private ones and tokens; upload in a commit or as large
files (LFS); download with ETags, sums and byte ranges, large files by way of a second address, as from a content
delivery network. What it adds for tests: a record of all requests, and faults in the transfer of a file. Used by
the tests in this folder.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

#: What becomes of the bytes of a file when it is sent: the bytes that really go out. Fewer end the connection.
Fault = Callable[[bytes], bytes]

LARGE_FILE_SUFFIXES = (".safetensors",)
WRONG_TOKEN = "Invalid credentials in Authorization header"  # the client knows this sentence


def cut(after: int) -> Fault:
    """The connection ends after so many bytes."""
    return lambda data: data[:after]


def change(position: int) -> Fault:
    """One bit of the byte at a position is another."""
    return lambda data: data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@dataclass(frozen=True)
class File:
    """Content of one file in a commit."""

    data: bytes
    is_large: bool

    @property
    def sum(self) -> str:
        """What the Hub gives as ETag: SHA-256 for large files, git's SHA-1 for the others."""
        if self.is_large:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Repository:
    """Commits (id -> path -> file), and the branches and tags that point to them."""

    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.commits:
            self.commit("main", {})

    def commit(self, branch: str, files: dict[str, File]) -> str:
        """Makes `files` the content of a branch; returns the commit's id, 40 hex digits."""
        described = f"{len(self.commits)} {branch} {[(path, file.sum) for path, file in sorted(files.items())]}"
        commit_id = hashlib.sha1(described.encode()).hexdigest()
        self.commits[commit_id] = files
        self.branches[branch] = commit_id
        return commit_id

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit's own id means."""
        commit_id = self.branches.get(revision) or self.tags.get(revision) or revision
        return commit_id if commit_id in self.commits else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Path -> content."""
        return {path: file.data for path, file in self.commits[self.resolve(revision) or ""].items()}


@dataclass(frozen=True)
class Request:
    """One answered request; `sent` counts the bytes of the answer's body."""

    method: str
    path: str
    status: int
    sent: int


class HubServer(ThreadingHTTPServer):
    """
    The server, running while it is used as a context manager.

    `tokens` maps tokens to users, who may all read and write everything; without one, public repositories can be read.
    `faults` holds, for a repository and a file in it, what goes wrong in its next transfers, one fault for each.
    """

    daemon_threads = True

    def __init__(self, tokens: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.tokens = tokens
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.faults: dict[tuple[str, str], list[Fault]] = {}
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def content_url(self) -> str:
        """Where large files are: to the client another host, to which it sends no token."""
        return f"http://localhost:{self.server_address[1]}/content"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.server_close()

    def copy(self, source: str, target: str, private: bool = False) -> None:
        """Puts a copy of a repository's files under another name."""
        repository = self.repositories[source]
        self.repositories[target] = Repository(private)
        self.repositories[target].commit("main", repository.commits[repository.branches["main"]])

    def requests_after(self, mark: str) -> list[Request]:
        """Requests between a request of the path `/mark/...` and the next such one."""
        paths = [request.path for request in self.requests]
        start = paths.index(f"/mark/{mark}") + 1
        ends = [position for position, path in enumerate(paths) if position >= start and path.startswith("/mark/")]
        return self.requests[start : ends[0] if ends else None]


class HubHandler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else headers and body, sent apart, wait for each other
    server: HubServer

    def log_message(self, *args: object) -> None:
        """Not on stderr: `HubServer.requests` keeps them."""

    def handle_request(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(iter(self.read_chunk, b""))
        else:
            self.body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            return self.refuse(401, "", WRONG_TOKEN)
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command.replace("HEAD", "GET"):
                return self.answer_route(answer, match, may_see_private=bool(token))
        return self.refuse(404, "", f"nothing at {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read_chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def answer_route(self, answer: Callable[..., None], match: re.Match[str], may_see_private: bool) -> None:
        """Finds the repository and revision that an address names; refuses what is not there or not allowed."""
        named = match.groupdict()
        if "repo" in named:
            repository = self.server.repositories.get(named["repo"])
            if repository is None or (repository.private and not may_see_private):
                return self.refuse(404 if may_see_private else 401, "RepoNotFound", "Repository not found")
            named["repository"] = repository
            if self.command in ("POST", "PUT") and not may_see_private:
                return self.refuse(401, "", "Unauthorized")
        if "revision" in named:
            named["commit_id"] = named["repository"].resolve(named.pop("revision") or "main")
            if named["commit_id"] is None:
                return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        return answer(self, **named)

    def reply(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        """Sends an answer; with a fault, perhaps only a part of what the headers announce, and no more after it."""
        sent = b"" if self.command == "HEAD" else body if fault is None else fault(body)
        self.server.requests.append(Request(self.command, self.path, status, len(sent)))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)
        if self.command != "HEAD" and len(sent) < len(body):
            self.close_connection = True

    def reply_json(self, content: Any, status: int = 200) -> None:
        self.reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        self.reply(status, body, {"X-Error-Code": code, "X-Error-Message": message} | (headers or {}))

    # Repositories

    def create_repository(self) -> None:
        wanted = json.loads(self.body)
        repo = f"{wanted['organization'] or 'user'}/{wanted['name']}"
        is_new = repo not in self.server.repositories
        if is_new:
            self.server.repositories[repo] = Repository(private=wanted.get("visibility") == "private")
        self.reply_json({"url": f"{self.server.url}/{repo}"}, 200 if is_new else 409)

    def describe(self, repo: str, repository: Repository, commit_id: str) -> None:
        siblings = [{"rfilename": path} for path in repository.commits[commit_id]]
        self.reply_json({"id": repo, "sha": commit_id, "private": repository.private, "siblings": siblings})

    def list_files(self, repo: str, repository: Repository, commit_id: str) -> None:
        entries = []
        for path, file in repository.commits[commit_id].items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(file.data), "oid": file.sum}
            if file.is_large:
                entry["lfs"] = {"oid": file.sum, "size": len(file.data), "pointerSize": 134}
            entries.append(entry)
        self.reply_json(entries)

    def create_tag(self, repo: str, repository: Repository, commit_id: str) -> None:
        repository.tags[json.loads(self.body)["tag"]] = commit_id
        self.reply_json({})

    def create_branch(self, repo: str, repository: Repository, branch: str) -> None:
        repository.branches[branch] = repository.branches["main"]
        self.reply_json({})

    # Upload

    def check_card(self) -> None:
        self.reply_json({"errors": [], "warnings": []})

    def choose_upload(self, repo: str, repository: Repository, commit_id: str) -> None:
        present = repository.commits[commit_id]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE_FILE_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": present[file["path"]].sum if file["path"] in present else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.reply_json({"files": files})

    def plan_large_files(self, repo: str, repository: Repository) -> None:
        objects: list[dict[str, Any]] = json.loads(self.body)["objects"]
        for entry in objects:
            if entry["oid"] not in self.server.uploads:
                entry["actions"] = {
                    "upload": {"href": f"{self.server.content_url}/{entry['oid']}"},
                    "verify": {"href": f"{self.server.url}/{repo}.git/info/lfs/verify"},
                }
        self.reply_json({"transfer": "basic", "objects": objects})

    def take_large_file(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.refuse(422, "", "the content does not have its sum")
        self.server.uploads[oid] = self.body
        return self.reply(200, b"", {})

    def verify_large_file(self, repo: str, repository: Repository) -> None:
        expected = json.loads(self.body)
        if len(self.server.uploads[expected["oid"]]) != expected["size"]:
            return self.refuse(422, "", "the content does not have its size")
        return self.reply_json({})

    def commit(self, repo: str, repository: Repository, branch: str) -> None:
        if branch not in repository.branches:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        files = dict(repository.commits[repository.branches[branch]])
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), is_large=False)
            elif key == "lfsFile":
                files[value["path"]] = File(self.server.uploads[value["oid"]], is_large=True)
            elif key == "deletedFile":
                del files[value["path"]]
            elif key != "header":
                return self.refuse(400, "", f"unknown operation {key}")
        commit_id = repository.commit(branch, files)
        address = f"{self.server.url}/{repo}/commit/{commit_id}"
        return self.reply_json({"commitUrl": address, "commitOid": commit_id, "success": True})

    # Download

    def resolve_file(self, repo: str, repository: Repository, commit_id: str, path: str) -> None:
        file = repository.commits[commit_id].get(path)
        headers = {"X-Repo-Commit": commit_id}
        if file is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", headers)
        headers["ETag"] = f'"{file.sum}"'
        if not file.is_large:
            return self.send_file(repo, path, file.data, headers)
        headers |= {"X-Linked-ETag": f'"{file.sum}"', "X-Linked-Size": str(len(file.data))}
        headers["Location"] = f"{self.server.content_url}/{repo}/{commit_id}/{path}"
        return self.reply(302, b"", headers)

    def send_content(self, name: str, commit_id: str, path: str) -> None:
        """The second address of a large file. It needs no token, as only those are told it who may read the file."""
        self.send_file(name, path, self.server.repositories[name].commits[commit_id][path].data, {})

    def send_file(self, repo: str, path: str, data: bytes, headers: dict[str, str]) -> None:
        faults = self.server.faults.get((repo, path))
        fault = faults.pop(0) if faults and self.command == "GET" else None
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted is None:
            return self.reply(200, data, headers, fault)
        start = int(wanted[1])
        headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return self.reply(206, data[start:], headers, fault)

    def nothing(self, **named: str) -> None:
        """For addresses that only leave a mark among the requests."""
        self.reply_json({})


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/api/repos/create", HubHandler.create_repository),
    ("POST", "/api/validate-yaml", HubHandler.check_card),
    ("GET", f"/api/models/{REPO}(/revision/(?P<revision>.+))?", HubHandler.describe),
    ("GET", f"/api/models/{REPO}/tree/(?P<revision>[^/]+)", HubHandler.list_files),
    ("POST", f"/api/models/{REPO}/tag/(?P<revision>.+)", HubHandler.create_tag),
    ("POST", f"/api/models/{REPO}/branch/(?P<branch>.+)", HubHandler.create_branch),
    ("POST", f"/api/models/{REPO}/preupload/(?P<revision>.+)", HubHandler.choose_upload),
    ("POST", f"/{REPO}\\.git/info/lfs/objects/batch", HubHandler.plan_large_files),
    ("PUT", "/content/(?P<oid>[0-9a-f]+)", HubHandler.take_large_file),
    ("POST", f"/{REPO}\\.git/info/lfs/verify", HubHandler.verify_large_file),
    ("POST", f"/api/models/{REPO}/commit/(?P<branch>.+)", HubHandler.commit),
    ("GET", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", HubHandler.resolve_file),
    ("GET", r"/content/(?P<name>[\w.-]+/[\w.-]+)/(?P<commit_id>\w+)/(?P<path>.+)", HubHandler.send_content),
    ("GET", "/mark/.*", HubHandler.nothing),
]
