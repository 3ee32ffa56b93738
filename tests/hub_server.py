"""A small hub on loopback: the endpoints that an upload uses, as huggingface_hub calls them."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_loopback"  # noqa: S105 - of this server only


@dataclass
class LoopbackHub:
    """What the server has, and how it fails.

    Attributes:
        repositories: Files of each repository by their path.
        private: Repositories that are private.
        requests: Methods and paths, in order.
        answers: Statuses to answer with, by the last part of a path ("create", "main", "batch").
        cut: Last parts of the paths at which the connection is closed without an answer.
        silent: Last parts of the paths that get no answer.
        stored: Large files by their SHA-256.
        ended: Set at the end of the server.
    """

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    stored: dict[str, bytes] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)


def _handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._serve(b"")

        def do_POST(self) -> None:
            self._serve(self._body())

        def do_PUT(self) -> None:
            self._serve(self._body())

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _serve(self, body: bytes) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            last = path.rpartition("/")[2]
            if last in hub.silent:
                hub.ended.wait()
            if last in hub.cut | hub.silent:
                self.close_connection = True
                return
            if last in hub.answers:
                self._reply(hub.answers[last], {"error": "as the test wants it"})
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}" and "/store/" not in path:
                self._reply(401, {"error": "Invalid username or password."})
            else:
                self._reply(*self._answer(path, body))

        def _reply(self, status: int, content: Any) -> None:
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def _answer(self, path: str, body: bytes) -> tuple[int, Any]:
            parts = path.strip("/").split("/")
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if path == "/api/validate-yaml":
                return 200, {"errors": [], "warnings": []}
            if parts[:1] == ["store"]:
                hub.stored[parts[1]] = body
                return 200, {}
            if path.endswith(".git/info/lfs/objects/batch"):
                return 200, self._batch(json.loads(body))
            repository = "/".join(parts[2:4])
            if repository not in hub.repositories:
                return 404, {"error": "Repository not found"}
            if parts[4:5] == ["preupload"]:
                files = [self._mode(file) for file in json.loads(body)["files"]]
                return 200, {"files": files}
            if parts[4:5] == ["commit"]:
                return self._commit(repository, body)
            names = [{"rfilename": name} for name in hub.repositories[repository]]
            private = repository in hub.private
            return 200, {
                "id": repository,
                "modelId": repository,
                "sha": "0" * 40,
                "private": private,
                "siblings": names,
            }

        def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
            name = f"{wanted['organization']}/{wanted['name']}"
            if name in hub.repositories:
                return 409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"}
            hub.repositories[name] = {".gitattributes": b""}
            if wanted.get("private") or wanted.get("visibility") == "private":
                hub.private.add(name)
            return 200, {"url": f"{hub.url}/{name}"}

        def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
            large = file["path"].endswith(".safetensors")
            return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

        def _batch(self, wanted: dict[str, Any]) -> dict[str, Any]:
            objects = []
            for one in wanted["objects"]:
                actions = {"upload": {"href": f"{hub.url}/store/{one['oid']}"}}
                known = {} if one["oid"] in hub.stored else {"actions": actions}
                objects.append({**one, **known})
            return {"transfer": "basic", "objects": objects}

        def _commit(self, repository: str, body: bytes) -> tuple[int, Any]:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.repositories[repository][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    content = hub.stored[value["oid"]]
                    assert hashlib.sha256(content).hexdigest() == value["oid"]
                    hub.repositories[repository][value["path"]] = content
            commit = hashlib.sha1(body, usedforsecurity=False).hexdigest()
            return 200, {"success": True, "commitUrl": f"{hub.url}/{repository}/commit/{commit}", "commitOid": commit}

    return Handler


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """Run a hub on a free port."""
    hub = LoopbackHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
