"""The measured clients. Each upload runs in a new process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.measure import MIB, Sample
from benchmarks.processes import ROOT, module
from benchmarks.servers import Server, node_program
from harness.npm import has_node

#: Uploads a file to a server.
Client = Callable[[Server, Path], Sample]

OURS = "this package's operator"
CURL = "curl"
#: Runs a command and prints its cost.
SMALL = [sys.executable, "-I", "-S", str(ROOT / "benchmarks" / "curl.py")]


def run(command: Sequence[str], server: Server) -> Any:
    """Run a client to its end and return the last JSON that it prints.

    :param command: The client.
    :param server: The server, to which the client's environment points.
    """
    done = subprocess.run(command, cwd=ROOT, env=server.environment, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def operator(server: Server, file: Path) -> Sample:
    """Create an asset and upload to it, as a task does."""
    sample = run(module("uploads", "operator", file), server)
    return Sample(sample["wall"], sample["cpu"], sample["peak"])


def curl(server: Server, file: Path) -> Sample:
    """Send one streamed ``PATCH``. The whole process is measured."""
    return _to_new_upload(server, file, lambda url: [*SMALL, *curl_command(), str(file), url])


def curl_command() -> list[str]:
    """Return the command that sends one streamed ``PATCH``, without the file and the URL."""
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Offset": "0",
        "Content-Type": "application/offset+octet-stream",
        # Otherwise, curl waits a second for a 100, which no TUS server sends.
        "Expect": "",
    }
    command = ["curl", "--silent", "--show-error", "--fail", "--http1.1", "--request", "PATCH"]
    for name, value in headers.items():
        command += ["--header", f"{name}: {value}" if value else f"{name}:"]
    return [*command, "--upload-file"]


def tuspy(chunk_bytes: int) -> Client:
    """Return tuspy without changes.

    :param chunk_bytes: Its chunk size; 0 for its default, which is the whole file.
    """

    def client(server: Server, file: Path) -> Sample:
        return _to_new_upload(server, file, lambda url: module("uploads", "tuspy", file, url, str(chunk_bytes)))

    return client


def tus_js_client(server: Server, file: Path) -> Sample:
    """Upload with the reference client."""
    program = str(node_program("upload.mjs"))
    return _to_new_upload(server, file, lambda url: ["node", program, str(file), url])


def _to_new_upload(server: Server, file: Path, command: Callable[[str], Sequence[str]]) -> Sample:
    """Open an upload outside of the measurement, let a command fill it, and check that all bytes arrived."""
    asset = server.ask("/v1/assets", {"size_bytes": file.stat().st_size})
    url = server.url + urlsplit(asset["upload_url"]).path
    sample = Sample(**run(command(url), server))
    if server.ask(f"/v1/assets/{asset['id']}")["upload_url"] is not None:
        raise RuntimeError(f"{url} did not get all bytes")
    return sample


def available() -> dict[str, Client]:
    """Return the clients that this machine can run, by name."""
    clients: dict[str, Client] = {OURS: operator}
    if shutil.which("curl"):
        clients[CURL] = curl
    clients["tuspy, whole file"] = tuspy(0)
    clients["tuspy, 8 MiB chunks"] = tuspy(8 * MIB)
    if has_node():
        clients["tus-js-client"] = tus_js_client
    return clients


def left_out() -> list[str]:
    """Return the clients that this machine cannot run, with reasons."""
    lines = []
    if not shutil.which("curl"):
        lines.append("curl is not installed: it is left out, and with it all ratios.")
    if not has_node():
        lines.append("node and npm are not installed: tus-js-client and @tus/server are left out.")
    return lines
