"""examples/serve.py serves an exported sampler, under clients that are idle, gone, or up to no good."""

import contextlib
import http.client
import importlib.util
import io
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from flowguide import sampling
from flowguide.schema import Series, blank
from flowguide.schema.fields import field_to_json
from tests.support.runs import ROOT, run

spec = importlib.util.spec_from_file_location("serve", ROOT / "examples" / "serve.py")
assert spec is not None
assert spec.loader is not None
serve = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serve)

FIELDS = {"label": {"type": "label", "values": ["a", "b"]}, "pose": {"type": "vector", "size": 2}}
DATA = {"kind": "image", "fields": FIELDS}


def sampler(seed, index, gamma, value, present):
    """Points that show what they were asked to be."""
    assert value["pose"].shape == (len(index), 2)
    with np.errstate(over="ignore"):
        return np.stack([gamma * np.float32(1e36), index, value["label"], present["label"]], axis=1).astype(np.float32)


def test_an_absent_series_is_zeros_as_the_sampler_takes_them():
    for encoder, dtype in (("", np.float32), ("package.module:function", np.float16)):
        value = Series(3, 2, encoder=encoder)
        found = serve._value("text", field_to_json(value), None)
        np.testing.assert_array_equal(found, blank(value), strict=True)
        assert found.dtype == dtype


@contextlib.contextmanager
def serving(sampler=sampler, data=DATA):
    """The port of a server, in threads of this process."""
    with serve.Server(0, sampler, data) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def ask(port, path):
    """Status, headers and body."""
    connection = http.client.HTTPConnection("localhost", port, timeout=20)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def idle(port):
    return socket.create_connection(("localhost", port))


def test_a_query_is_answered():
    with serving() as port:
        status, headers, body = ask(port, "/?label=b&num=3&gamma=0.5")
    assert (status, headers["Content-Length"]) == (200, str(len(body)))
    expected = np.array([[5e35, 0, 1, 1], [5e35, 1, 1, 1], [5e35, 2, 1, 1]], np.float32)
    np.testing.assert_array_equal(np.load(io.BytesIO(body)), expected)


def test_vectors_are_asked_for_and_answered_as_numbers():
    """What is asked comes back bit for bit, and ∅ as absent."""

    def echo(seed, index, gamma, value, present):
        return np.concatenate([value["pose"], present["pose"][:, None], present["label"][:, None]], 1).astype(
            np.float32
        )

    with serving(echo, {**DATA, "kind": "points"}) as port:
        status, headers, body = ask(port, "/?pose=0.1,-3e5&num=3")
        absent = json.loads(ask(port, "/?label=a&num=1")[2])
    assert (status, headers["Content-Type"]) == (200, "application/json")
    expected = np.array([[0.1, -3e5, 1, 0]] * 3, np.float32)
    np.testing.assert_array_equal(np.array(json.loads(body), np.float32), expected)
    assert absent == [[0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("pose=1", "pose takes 2 finite numbers, separated by commas; got '1'"),
        ("pose=1,2,3", "pose takes 2 finite numbers"),
        ("pose=1,many", "pose takes 2 finite numbers"),
        ("pose=", "pose takes 2 finite numbers"),
        ("pose=nan,1", "pose takes 2 finite numbers"),
        ("pose=1e39,1", "pose takes 2 finite numbers"),
        ("gamma=inf", "gamma from -1000 to 1000"),
        ("gamma=1e38", "gamma from -1000 to 1000"),
        ("gamma=nan", "gamma from -1000 to 1000"),
        ("gamma=400", "the samples at gamma = 400 are not finite"),
        ("gamma=two", "expected a number for gamma; got 'two'"),
        ("num=" + "9" * 5000, "expected a number for num; got '99999"),
        ("num=0", "num from 1 to 1024"),
        ("seed=-1", "seed from 0"),
        ("label=c", "label is one of a, b; got 'c'"),
        ("size=3", "fields among label, pose; got size"),
    ],
)
def test_queries_that_cannot_be_answered(query, message):
    with serving() as port:
        status, headers, body = ask(port, f"/?{query}")
    assert status == 400
    assert headers["Content-Type"].startswith("text/plain")
    assert message in body.decode()
    assert body.count(b"\n") == 1


@pytest.mark.parametrize("query", ["label=%s", "%s=3", "gamma=%s", "num=%s"])
def test_no_query_adds_a_header(query):
    evil = query % "%0d%0aSet-Cookie:%20a=b%0d%0a%0d%0a<script>"
    with serving() as port, idle(port) as client:
        client.sendall(f"GET /?{evil} HTTP/1.0\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 400 Bad Request\r\n")
    assert b"Cookie" not in head
    assert body.count(b"\n") == 1


def test_other_paths_are_not_drawn():
    def never(*args):
        raise AssertionError

    with serving(never) as port:
        assert ask(port, "/favicon.ico")[0] == 404


def test_idle_clients_do_not_keep_others_waiting(monkeypatch):
    monkeypatch.setattr(serve.Handler, "timeout", 1)
    monkeypatch.setattr(serve, "CLIENTS", 4)
    with serving() as port, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(idle(port)) for _ in range(3)]
        assert ask(port, "/?num=2")[0] == 200
        while ask(port, "/")[0] == 200:  # the last place may be free again a moment later than its answer is there
            clients.append(stack.enter_context(idle(port)))
            assert len(clients) < 20
        assert ask(port, "/")[0] == 503
        for client in clients[:3]:
            client.settimeout(10)
            assert client.recv(100) == b""  # left after a second
        time.sleep(0.2)
        assert ask(port, "/?num=2")[0] == 200


def test_one_draws_at_a_time():
    now, most = [0], [0]

    def slow(seed, index, *rest):
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.05)
        now[0] -= 1
        return sampler(seed, index, *rest)

    with serving(slow) as port:
        threads = [threading.Thread(target=ask, args=(port, "/")) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1]


def test_a_client_that_goes_is_one_line(capsys):
    reached, gone = threading.Event(), threading.Event()

    def wide(seed, index, *rest):
        reached.set()
        gone.wait(10)
        return np.zeros((len(index), 100_000), np.float32)

    with serving(wide) as port:
        client = idle(port)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # its end is a reset
        client.sendall(b"GET /?num=64 HTTP/1.0\r\n\r\n")
        assert reached.wait(10)
        client.close()
        gone.set()
        assert ask(port, "/favicon.ico")[0] == 404
        for _ in range(100):
            printed = capsys.readouterr().err
            if "has gone" in printed:
                break
            time.sleep(0.05)
    assert "has gone" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("port", ["-1", "65536", "1e3", "taken"])
def test_ports_that_cannot_be_had_are_one_line(port, monkeypatch, capsys):
    monkeypatch.setattr(serve, "load", lambda file: (sampler, DATA))
    with socket.create_server(("localhost", 0)) as other:
        port = other.getsockname()[1] if port == "taken" else port
        monkeypatch.setattr(sys, "argv", ["serve.py", "file", f"--port={port}"])
        with pytest.raises(SystemExit, match="2"):
            serve.main()
    assert capsys.readouterr().err.splitlines()[-1].startswith("serve.py: error: ")


@pytest.mark.parametrize("content", [None, b"", b"no export", bytes(1000)])
def test_a_file_that_is_no_export_is_one_line(content, tmp_path, monkeypatch, capsys):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
        (tmp_path / "file.json").write_text(json.dumps({"data": DATA}))
    monkeypatch.setattr(sys, "argv", ["serve.py", str(tmp_path / "file")])
    with pytest.raises(SystemExit, match="2"):
        serve.main()
    assert "file cannot be read" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.thorough
def test_a_sampler_is_exported_and_served(digits, tmp_path):
    file = tmp_path / "digits.hlo"
    done = run("sample.py", f"--workdir={digits}", "--steps=4", "--solver=ab2", "--negative=8", f"--export={file}")
    assert done.returncode == 0, done.stderr
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), str(file), "--port=0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split("/?")[0]
        with urllib.request.urlopen(f"{address}/?label=3&gamma=3&num=5&seed=2") as answer:
            x = np.load(io.BytesIO(answer.read()))
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{address}/?label=ten")
        assert b"label is one of 0, 1, 2" in error.value.read()
    finally:
        server.kill()
    config = sampling.SamplerConfig("ab2", 4)
    own = sampling.sample(sampling.load(digits), "3", num=5, gamma=3.0, negative=["8"], config=config, seed=2).x
    assert x.shape == own.shape
    assert np.abs(x.astype(int) - own.astype(int)).max() <= 1
