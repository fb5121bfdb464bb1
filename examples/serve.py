"""Serves an exported sampler over HTTP, with jax and numpy alone.

python sample.py --workdir=runs/digits --export=digits.hlo
python examples/serve.py digits.hlo --port=8000
curl "localhost:8000/?label=3&gamma=2&num=4&seed=0" -o samples.npy

A field that is left out is ∅. The answer is a NumPy file, uint8 (num, height, width, channels) for images. Programs are
compiled once for each power of two of the number of samples.
"""

import argparse
import io
import json
import math
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlparse

import jax
import numpy as np
from jax import export

MOST = 1024


def load(file: Path):
    """The jitted sampler (seed, index, gamma, value, present) -> x, and the description that lies beside it."""
    exported = export.deserialize(bytearray(file.read_bytes()))
    return jax.jit(exported.call), json.loads(file.with_name(file.name + ".json").read_text())


def draw(sampler, about: dict, asked: dict[str, str]) -> np.ndarray:
    """Samples for a query such as {"label": "3", "gamma": "2", "num": "4", "seed": "0"}.

    Raises:
      ValueError: for a field, value or number that there is not.
    """
    asked, fields = dict(asked), about["data"]["fields"]
    num, seed, gamma = int(asked.pop("num", "1")), int(asked.pop("seed", "0")), float(asked.pop("gamma", "2"))
    if not (1 <= num <= MOST and 0 <= seed < 2**32 and math.isfinite(np.float32(gamma))):
        raise ValueError(
            f"expected num from 1 to {MOST}, seed from 0 to 2^32 - 1 and a finite gamma; got {num}, {seed} and {gamma}"
        )
    size = 1 << (num - 1).bit_length()
    value, present = {}, {}
    for name, field in fields.items():
        if field["type"] != "label":
            shape = (size, field["size"]) if field["type"] == "vector" else (size, field["length"])
            value[name] = np.zeros(shape, np.float32 if field["type"] == "vector" else np.int32)
            present[name] = np.zeros(size, bool)
            continue
        text = asked.pop(name, None)
        if text is not None and text not in field["values"]:
            raise ValueError(f"{name} is one of {', '.join(field['values'])}; got {text!r}")
        value[name] = np.full(size, 0 if text is None else field["values"].index(text), np.int32)
        present[name] = np.full(size, text is not None)
    if asked:
        raise ValueError(f"expected num, seed, gamma and fields among {', '.join(fields)}; got {', '.join(asked)}")
    index = np.arange(size, dtype=np.int32)
    return np.asarray(sampler(np.uint32(seed), index, np.full(size, gamma, np.float32), value, present))[:num]


class Handler(BaseHTTPRequestHandler):
    """Answers GET with samples."""

    def __init__(self, sampler, about: dict, *args) -> None:
        self.sampler, self.about = sampler, about
        super().__init__(*args)

    def do_GET(self) -> None:
        """One query."""
        try:
            x = draw(self.sampler, self.about, dict(parse_qsl(urlparse(self.path).query, keep_blank_values=True)))
        except ValueError as error:
            self.send_error(400, str(error).encode("ascii", "replace").decode())
            return
        body = io.BytesIO()
        np.save(body, x, allow_pickle=False)
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        self.wfile.write(body.getvalue())


def main() -> None:
    """Loads and serves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    sampler, about = load(options.file)
    with HTTPServer(("localhost", options.port), partial(Handler, sampler, about)) as server:
        print(f"http://localhost:{server.server_address[1]}/?num=4&gamma=2", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
