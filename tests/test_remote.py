"""Sources behind an API, against a real server on this machine: slow, failing, rate-limiting, malformed."""

import base64
import io
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from support import no_noise

pytest.importorskip("openai")

import simpe
from simpe import Budget, InputError, PrivateData, Strategy, cli
from simpe.simulators.foundation import remote
from simpe.simulators.foundation.remote import Api, RemoteImages, RemoteText
from simpe.simulators.foundation.text import decode, encode

SECRET = "sk-very-secret"


class Server:
    """Answers each request with what ``answer(number, path, body)`` returns: (status, headers, content)."""

    def __init__(self):
        self.bodies, self.paths, self.times, self.keys = [], [], [], []
        self.busy = self.most_busy = 0
        self.answer = lambda number, path, body: (200, {}, chat("the parcel came late"))
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    outer.bodies.append(body)
                    outer.paths.append(self.path)
                    outer.times.append(time.monotonic())
                    outer.keys.append(self.headers["Authorization"])
                    number = len(outer.bodies)
                    outer.busy += 1
                    outer.most_busy = max(outer.busy, outer.most_busy)
                try:
                    status, headers, content = outer.answer(number, self.path, body)
                finally:
                    with lock:
                        outer.busy -= 1
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    self.wfile.write(content)
                except OSError:  # the client has hung up
                    self.close_connection = True
                if headers.get("Connection") == "close":
                    self.close_connection = True

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


def chat(content, **more):
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    message = {"choices": [{"message": {"role": "assistant", "content": content}}], "usage": usage, **more}
    return json.dumps(message).encode()


def embed(samples):
    return torch.stack([(samples == ord(letter)).float().mean(1) for letter in "abcdefghijklmnopqrstuvwxyz"], dim=1)


def source(server, folder, prices=(0.0, 0.0), contrast=0, **options):
    api = Api(server.url, "some-model", folder / "replies.sqlite", retries=options.pop("retries", 2), **options)
    return RemoteText(api, prices, classes=("praise", "complaint"), contrast=contrast, length=64, embedder=embed)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def echo(number, path, body):
    """A text that depends on what was asked, seed included, and on nothing else."""
    asked = json.loads(body)
    words = [("late", "good", "parcel", "shop")[(asked["seed"] >> shift) % 4] for shift in (0, 2, 4)]
    return 200, {}, chat(" ".join(words))


def test_what_was_answered_is_not_asked_again(server, tmp_path):
    server.answer = echo
    labels = torch.tensor([0, 1] * 5)
    first = source(server, tmp_path).random_of(labels, generator())["text"]
    assert len(server.bodies) == 10
    assert len(set(decode(first))) > 1
    assert torch.equal(source(server, tmp_path).random_of(labels, generator())["text"], first)
    assert len(server.bodies) == 10
    source(server, tmp_path).random_of(labels, generator(1))
    assert len(server.bodies) == 20, "another seed is another text"


def test_asking_says_how_far_it_is_and_nothing_where_all_is_known(server, tmp_path):
    said, one = [], source(server, tmp_path)
    one.report_to(lambda *what: said.append(what))
    one.write(["x"] * 3, range(3))
    assert said == [("asking the API for texts", done, 3) for done in range(4)]
    one.write(["x"] * 3, range(3))
    assert len(said) == 4


def test_requests_go_several_at_a_time_and_no_more(server, tmp_path):
    gate = threading.Barrier(3)

    def together(number, path, body):
        gate.wait(30)  # opens only where three are asked at once
        return 200, {}, chat("x")

    server.answer = together
    source(server, tmp_path, workers=3).random_of(torch.zeros(9, dtype=torch.int64), generator())
    assert server.most_busy == 3


def test_passing_failures_are_retried_and_the_pause_asked_for_is_kept(server, tmp_path):
    def failing(number, path, body):
        if number <= 2:
            return (429, 500)[number - 1], {"retry-after-ms": "200"}, b"{}"
        return 200, {}, chat("at last")

    server.answer = failing
    assert source(server, tmp_path).write(["x"], [0]) == ["at last"]
    assert server.times[1] - server.times[0] >= 0.2


@pytest.mark.parametrize("status", [429, 500, 503, 400, 422])
def test_failures_for_good_are_one_line_that_says_how_to_go_on(server, tmp_path, status):
    server.answer = lambda number, path, body: (status, {"retry-after-ms": "1"}, f"no {SECRET}".encode())
    with pytest.raises(InputError, match="simpe resume") as caught:
        source(server, tmp_path).write(["x"], [0])
    assert str(status) in str(caught.value)
    assert SECRET not in str(caught.value)
    assert len(server.bodies) == (3 if status in (429, 500, 503) else 1)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_is_one_line_without_the_key(server, tmp_path, status):
    server.answer = lambda number, path, body: (status, {}, json.dumps({"error": {"message": SECRET}}).encode())
    with pytest.raises(InputError, match="OPENAI_API_KEY") as caught:
        source(server, tmp_path).write(["x"], [0])
    assert SECRET not in str(caught.value)
    assert len(server.bodies) == 1


BAD = {
    "is empty": [b"", b" \n", chat(""), chat("  ")],
    "is truncated": [chat("good")[:40], b"not JSON at all", b"[" * 100_000],
    "is of the wrong type": [b"[]", b"3", b"null", b"{}", chat(None), chat(["x"]), chat(3), b'{"choices": {}}'],
}


@pytest.mark.parametrize(("reason", "content"), [(reason, content) for reason, all_ in BAD.items() for content in all_])
def test_a_reply_of_no_use_is_asked_for_again_and_then_one_line(server, tmp_path, reason, content):
    server.answer = lambda number, path, body: (200, {}, content)
    with pytest.raises(InputError, match=reason):
        source(server, tmp_path).write(["x"], [0])
    assert len(server.bodies) == 3
    server.answer = lambda number, path, body: (200, {}, content if number < 6 else chat("good"))
    assert source(server, tmp_path).write(["x"], [0]) == ["good"]


def test_a_connection_that_ends_in_the_middle_is_a_truncated_reply(server, tmp_path):
    server.answer = lambda number, path, body: (200, {"Content-Length": "1000", "Connection": "close"}, chat("good"))
    with pytest.raises(InputError, match="is truncated"):
        source(server, tmp_path).write(["x"], [0])


def test_a_reply_of_100_mb_is_not_read_to_its_end(server, tmp_path):
    sent = []

    def long(number, path, body):
        sent.append(number)
        return 200, {"Connection": "close"}, b'{"choices": "' + b"x" * (100 << 20)

    server.answer = long
    with pytest.raises(InputError, match="longer than 32 MB"):
        source(server, tmp_path).write(["x"], [0])
    assert len(sent) == 3


def test_a_slow_server_is_not_waited_for(server, tmp_path):
    release = threading.Event()
    server.answer = lambda number, path, body: (200, {}, chat("x") if release.wait(60) else b"")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"longer than 0\.2 s"):
        source(server, tmp_path, timeout=0.2, retries=0).write(["x"], [0])
    assert time.monotonic() - began < 50
    release.set()


def test_nobody_there_is_one_line(server, tmp_path):
    server.http.server_close()
    with pytest.raises(InputError, match="cannot be reached"):
        source(server, tmp_path, retries=0).write(["x"], [0])


def test_requests_keep_to_the_rate(server, tmp_path):
    began = time.monotonic()
    source(server, tmp_path, per_minute=1200, workers=8).write(["x"] * 5, range(5))
    assert max(server.times) - began >= 0.2, "four pauses of 0.05 s"


def test_the_cap_is_never_exceeded_and_counts_what_was_spent_before(server, tmp_path):
    prices = (1e4, 1e5)  # of a million: 10 tokens asked and 5 answered cost 0.6
    options = {"prices": prices, "workers": 4}
    with pytest.raises(InputError, match=r"cap of 20 .*cap in private/config.toml"):
        source(server, tmp_path, cap=20.0, **options).write(["x"] * 60, range(60))
    spent = len(server.bodies) * 0.6
    assert spent <= 20
    kept = source(server, tmp_path, cap=100.0, **options)
    assert kept._api.spent == pytest.approx(spent)
    kept.write(["x"] * 60, range(60))
    assert len(server.bodies) == 60, "nothing is paid for twice"
    with pytest.raises(InputError, match="a cap needs prices"):
        source(server, tmp_path, cap=1.0)


def test_a_reply_of_no_use_costs_the_most_it_can(server, tmp_path):
    server.answer = lambda number, path, body: (200, {}, b"")
    one = source(server, tmp_path, prices=(0.0, 1e6))
    with pytest.raises(InputError, match="empty"):
        one.write(["x"], [0])
    assert one._api.spent == pytest.approx(3 * 64)


def run(server, folder, seed=0, **options):
    """A run on texts of which every row holds words that nothing else does."""
    texts = [f"qzx{i:03d}w late parcel vvk{i:03d}j" for i in range(60)]
    kinds = np.array(["praise", "complaint"])[np.arange(60) % 2]
    private = PrivateData(encode(texts, 64), kinds, budget=Budget(2.0), noise=no_noise)
    strategy = Strategy(places=3, start=2, children=2)
    return simpe.evolve(
        source(server, folder, **options), None, private, samples=8, steps=2, strategy=strategy, seed=seed
    )


def test_no_request_holds_anything_of_the_private_rows(server, tmp_path):
    server.answer = echo
    release = run(server, tmp_path)
    assert len(release.samples) == 8
    assert len(server.bodies) > 20
    for body in server.bodies:
        assert b"qzx" not in body
        assert b"vvk" not in body
        asked = json.loads(body)
        assert set(asked) == {"model", "messages", "seed", "temperature", "max_tokens"}
    assert set(server.keys) == {f"Bearer {SECRET}"}


def test_what_contrast_sends_was_answered_before_and_a_run_that_goes_on_sends_it_again(server, tmp_path):
    """Samples in a request are earlier answers, of candidates that noisy votes ranked: nothing of the private rows."""
    server.answer = echo
    release = run(server, tmp_path, contrast=2)
    prompts = [json.loads(body)["messages"][0]["content"] for body in server.bodies]
    contrasting = [prompt for prompt in prompts if prompt.startswith("Wanted")]
    assert len(contrasting) > 8
    answers = {json.loads(echo(0, "", body)[2])["choices"][0]["message"]["content"] for body in server.bodies}
    for prompt in contrasting:
        listed = [line[2:] for line in prompt.splitlines() if line.startswith("- ")]
        assert 2 <= len(listed) <= 4
        assert set(listed) <= answers
    assert not any(mark in prompt for mark in ("qzx", "vvk") for prompt in prompts)
    server.bodies.clear()
    assert torch.equal(run(server, tmp_path, contrast=2).samples, release.samples)
    assert server.bodies == [], "the same again, to the byte: all of it is in the file"


def test_a_run_that_the_api_stopped_goes_on_to_the_same_release(server, tmp_path):
    server.answer = echo
    (tmp_path / "whole").mkdir()
    whole = run(server, tmp_path / "whole")
    asked = len(server.bodies)
    server.bodies.clear()
    server.answer = lambda *request: echo(*request) if request[0] <= asked // 2 else (400, {}, b"")
    with pytest.raises(InputError, match="simpe resume"):
        run(server, tmp_path)
    answered = asked // 2
    server.bodies.clear()
    server.answer = echo
    assert torch.equal(run(server, tmp_path).samples, whole.samples)
    assert len(server.bodies) == asked - answered


def test_the_key_stands_nowhere(server, tmp_path):
    server.answer = echo
    release = run(server, tmp_path)
    assert SECRET not in json.dumps(release.certificate)
    assert SECRET.encode() not in (tmp_path / "replies.sqlite").read_bytes()
    assert SECRET not in repr(source(server, tmp_path)._api)


def test_the_command_asks_an_api(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("simpe.simulators.foundation.text.Sentences", lambda: embed)
    server.answer = echo
    (tmp_path / "mails.csv").write_text("text,kind\n" + "late parcel,praise\ngood shop,complaint\n" * 30)
    told = ["simpe", "text", "--private", str(tmp_path / "mails.csv"), "--label", "kind", "--classes",
            "praise,complaint", "--samples", "6", "--steps", "1", "--api", server.url, "--model", "m", "--prices",
            "0.1,0.4", "--cap", "5", "--length", "64", "--out", str(tmp_path / "run")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", told)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "release" / "texts.csv").is_file()
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setattr(sys, "argv", [*told[:-1], str(tmp_path / "other")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "OPENAI_API_KEY is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "ftp://x"}, {"base_url": "https://me:word@x/v1"}, {"base_url": "x"}, {"base_url": "http://[x"},
        {"base_url": "https://x/v1?key=y"}, {"model": ""}, {"workers": 0}, {"timeout": 0}, {"cap": -1.0},
        {"key": "NO_SUCH_VARIABLE"}, {"retries": -1}, {"colour": "red"},
    ],
)  # fmt: skip
def test_wrong_settings_are_one_line(wrong, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with pytest.raises(InputError) as caught:
        RemoteText({"base_url": "http://x/v1", "model": "m", "cache": tmp_path / "c", **wrong}, embedder=embed)
    assert SECRET not in str(caught.value)


def test_a_cache_that_is_none_is_one_line(server, tmp_path):
    (tmp_path / "replies.sqlite").write_text("no database, and long enough to be read as the header of one" * 9)
    with pytest.raises(InputError, match=r"replies\.sqlite"):
        source(server, tmp_path).write(["x"], [0])


def picture(level, side=32, form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (side, side), (level, level, level)).save(file, format=form)
    return {"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}


def images(server, folder, **options):
    api = Api(server.url, "painter", folder / "replies.sqlite", retries=0)
    return RemoteImages(api, 8, "A {label} page", asked=32, classes=("dark", "bright"), **options)


def test_images_are_asked_for_and_changed(server, tmp_path):
    def paint(number, path, body):
        if path.endswith("edits"):
            assert b"image/png" in body
            return 200, {}, json.dumps(picture(77, form="JPEG")).encode()
        return 200, {}, json.dumps(picture(200 if "bright" in json.loads(body)["prompt"] else 10)).encode()

    server.answer = paint
    painter = images(server, tmp_path)
    labels = torch.tensor([0, 1, 1])
    made = painter.random_of(labels, generator())
    assert made["image"].shape == (3, 8, 8, 3)
    assert made["image"][:, 0, 0, 0].tolist() == [10, 200, 200]
    varied = painter.variation({**made, "label": labels}, 0.5, generator())["image"]
    assert int((varied.int() - 77).abs().max()) <= 1
    assert server.paths == ["/v1/images/generations"] * 3 + ["/v1/images/edits"] * 3
    assert torch.equal(painter.variation({**made, "label": labels}, 0.0, generator())["image"], made["image"])
    assert images(server, tmp_path, colour=False).random_of(labels, generator())["image"].shape == (3, 8, 8)
    assert painter.random_of(labels[:0], generator())["image"].shape == (0, 8, 8, 3)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (picture(9, side=16), "16 x 16, not 32 x 32"), ({"data": [{"url": "http://x"}]}, "wrong type"),
        ({"data": []}, "wrong type"), ({"data": [{"b64_json": "AAAA"}]}, "no image"),
        ({"data": [{"b64_json": 3}]}, "no image"),
    ],
)  # fmt: skip
def test_an_image_that_is_none_or_of_another_size_is_one_line(server, tmp_path, reply, said):
    server.answer = lambda number, path, body: (200, {}, json.dumps(reply).encode())
    with pytest.raises(InputError, match=said):
        images(server, tmp_path).random_of(torch.tensor([0]), generator())


def test_images_of_another_shape_are_not_adopted(server, tmp_path):
    painter = images(server, tmp_path)
    assert painter.adopt(torch.zeros((2, 8, 8, 3), dtype=torch.uint8), {})["image"].shape == (2, 8, 8, 3)
    with pytest.raises(InputError, match="8 x 8"):
        painter.adopt(torch.zeros((2, 8, 8), dtype=torch.uint8), {})


def test_the_limit_of_a_reply_holds_an_image():
    assert remote._LONGEST > 4 * 1024 * 1024 * 3
