"""Serves an exported sampler over HTTP; needs only jax and numpy.

python sample.py --workdir=runs/digits --export=digits.hlo
python examples/serve.py digits.hlo --port=8000
curl "localhost:8000/?label=3&gamma=2&num=4&seed=0" -o samples.npy

A vector is written as its numbers, ?angle=0.3 or ?position=0.3,1.2. Omitted fields are ∅. The response is a NumPy file,
uint8 (num, height, width, channels), for images; for vectors, and for rows of a table with classes by number, it is
JSON, a list of num lists of numbers; for an invalid query, one line of text. The number of samples is rounded up to a
power of two, with one compilation for each.

The server reads queries concurrently and samples for one at a time. It drops a client that is silent for TIMEOUT
seconds, and answers 503 while CLIENTS connections are open.
"""

import argparse
import io
import json
import sys
import threading
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jax
import numpy as np
from jax import export

MOST = 1024  # samples per query
LARGEST = 1000.0  # |γ|; beyond it samples overflow
TIMEOUT = 10.0  # seconds for each read and write
CLIENTS = 32  # connections open at a time


def load(file: Path):
    """Returns the jitted sampler (seed, index, gamma, value, present) -> x, and what its data are from the JSON."""
    exported = export.deserialize(bytearray(file.read_bytes()))
    data = json.loads(file.with_name(file.name + ".json").read_text())["data"]
    return jax.jit(exported.call), {"kind": data["kind"], "fields": data["fields"]}


def draw(sampler, fields: dict[str, dict[str, Any]], asked: dict[str, str]) -> np.ndarray:
    """Draws the samples for a query such as {"label": "3", "gamma": "2", "num": "4", "seed": "0"}.

    Raises:
      ValueError: for an unknown field or value, or an invalid number.
    """
    asked = dict(asked)
    num, seed = _number(asked, "num", int, "1"), _number(asked, "seed", int, "0")
    gamma = _number(asked, "gamma", float, "2")
    if not (1 <= num <= MOST and 0 <= seed < 2**32 and abs(gamma) <= LARGEST):
        raise ValueError(
            f"expected num from 1 to {MOST}, seed from 0 to 2^32 - 1 and gamma from {-LARGEST:g} to {LARGEST:g}; "
            f"got {num}, {seed} and {gamma}"
        )
    size = 1 << (num - 1).bit_length()
    value, present = {}, {}
    for name, field in fields.items():
        text = asked.pop(name, None) if field["type"] in ("label", "vector") else None
        one = _value(name, field, text)
        value[name] = np.broadcast_to(one, (size, *one.shape))
        present[name] = np.full(size, text is not None)
    if asked:
        raise ValueError(f"expected num, seed, gamma and fields among {', '.join(fields)}; got {', '.join(asked)}")
    index = np.arange(size, dtype=np.int32)
    x = np.asarray(sampler(np.uint32(seed), index, np.full(size, gamma, np.float32), value, present))[:num]
    if not np.isfinite(x).all():
        raise ValueError(f"the samples at gamma = {gamma:g} are not finite: use a smaller gamma")
    return x


def _value(name: str, field: dict[str, Any], text: str | None) -> np.ndarray:
    """Returns one value of a field; zeros for None."""
    if field["type"] == "label":
        if text is not None and text not in field["values"]:
            raise ValueError(f"{name} is one of {', '.join(field['values'])}; got {text[:20]!r}")
        return np.array(0 if text is None else field["values"].index(text), np.int32)
    if field["type"] == "series":
        return np.zeros((field["length"], field["size"]), np.float16 if field.get("encoder") else np.float32)
    if field["type"] != "vector":
        return np.zeros(field["length"], np.int32)
    try:
        numbers = np.array([float(part) for part in text.split(",")] if text is not None else [0.0] * field["size"])
    except ValueError:
        numbers = np.zeros(0)
    if numbers.size != field["size"] or not (np.abs(numbers) <= np.finfo(np.float32).max).all():
        raise ValueError(f"{name} takes {field['size']} finite numbers, separated by commas; got {(text or '')[:40]!r}")
    return numbers.astype(np.float32)


def _number(asked: dict[str, str], name: str, kind: Callable[[str], Any], default: str) -> Any:
    text = asked.pop(name, default)
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"expected a number for {name}; got {text[:20]!r}") from None


class Handler(BaseHTTPRequestHandler):
    """Answers GET with samples."""

    timeout = TIMEOUT

    def __init__(self, draw: Callable[[dict[str, str]], np.ndarray], as_json: bool, *args) -> None:
        self.draw, self.as_json = draw, as_json
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answers one query."""
        try:
            url = urlsplit(self.path)
            if url.path != "/":
                self._answer(404, "text/plain; charset=utf-8", b"ask for /?num=4\n")
                return
            x = self.draw(dict(parse_qsl(url.query, keep_blank_values=True)))
        except ValueError as error:
            # In the body, not a header: the client chose part of the text, whose line breaks could inject headers.
            text = " ".join(str(error).split()) + "\n"
            self._answer(400, "text/plain; charset=utf-8", text.encode(errors="replace"))
            return
        if self.as_json:
            self._answer(200, "application/json", json.dumps(x.tolist()).encode())
            return
        body = io.BytesIO()
        np.save(body, x, allow_pickle=False)
        self._answer(200, "application/octet-stream", body.getvalue())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Serves at most ``CLIENTS`` connections, each in a thread; only one thread samples at a time."""

    daemon_threads = True

    def __init__(self, port: int, sampler, data: dict[str, Any]) -> None:
        self._free, one = threading.BoundedSemaphore(CLIENTS), threading.Lock()

        def draw_alone(asked: dict[str, str]) -> np.ndarray:
            with one:
                return draw(sampler, data["fields"], asked)

        super().__init__(("localhost", port), partial(Handler, draw_alone, data["kind"] in ("points", "records")))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for the connection, or answers 503 if all are in use."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        try:
            request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 10\r\n\r\n")
        finally:
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:
        """Handles a connection in its thread, then frees the thread's slot."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request, client_address) -> None:
        """Prints one line if the client has disconnected, a traceback for any other error."""
        error = sys.exception()
        if isinstance(error, OSError):
            print(f"client {client_address[0]} has gone: {error}", file=sys.stderr)
        else:
            super().handle_error(request, client_address)


def main() -> None:
    """Loads the sampler and serves it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    if not 0 <= options.port < 2**16:
        parser.error(f"expected a port from 0 (any that is free) to 65535; got {options.port}")
    try:
        sampler, data = load(options.file)
    except Exception as error:  # other files fail in many ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        parser.error(f"{options.file} cannot be read ({reason}): give a file that sample.py --export wrote")
    try:
        server = Server(options.port, sampler, data)
    except OSError as error:
        parser.error(f"port {options.port} is not available ({error.strerror}): choose another")
    with server:
        print(f"http://localhost:{server.server_address[1]}/?num=4&gamma=2", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == "__main__":
    main()
