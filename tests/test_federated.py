"""Federations: members in this process answer the very bytes that they would answer over a network."""

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import Oscillator, addressed_noise

import simpe
from simpe import Budget, Here, InputError, PrivateData, Strategy, marginals, runs
from simpe.config import make_config, read_config
from simpe.federated import commands, member, terms
from simpe.federated.masks import KEYS, Party, join, split, unmask
from simpe.federated.member import Member, Room
from simpe.federated.terms import Federation
from simpe.federated.wire import Message, Refused
from simpe.privacy.accounting import Charge, charge_of
from simpe.privacy.ledger import Ledger
from simpe.privacy.mechanism import skellam_support
from simpe.rows import Arrays
from simpe.simulators import network
from simpe.simulators.network.traces import Traces

STRATEGY = Strategy(start=5, places=6, children=2)
WEIGHED = replace(STRATEGY, marginals=0.5)
PARTS = ((0, 20), (20, 61), (61, 90))


def rows(n=90):
    generator = torch.Generator().manual_seed(5)
    return Oscillator().render(Oscillator.space.sample(n, generator)).numpy()


def agreement(out, trust="central", epsilon=4.0, classes="0,1", strategy=STRATEGY, **federation):
    return make_config(
        simulator="support:Oscillator",
        epsilon=epsilon,
        samples=30,
        steps=2,
        classes=classes,
        out=out,
        strategy=strategy,
        federation={"trust": trust, "clients": 3, "rows": 100, **federation},
    )


def members(config, ledgers=None, parts=PARTS, **options):
    whole = rows()
    return [
        Member(
            config,
            [Arrays(whole[start:stop], np.arange(start, stop) % 2, None)],
            ledger=None if ledgers is None else ledgers / f"{number}.jsonl",
            **options,
        )
        for number, (start, stop) in enumerate(parts)
    ]


class Between:
    """A room in which answers are changed on their way: ``change(kind, name, data)`` gives bytes, or None."""

    def __init__(self, room, change):
        self.room, self.change = room, change
        self.sent = {"down": 0, "up": 0}

    def members(self, least):
        return self.room.members(least)

    def ask(self, messages):
        kind = Message.unpack(next(iter(messages.values()))).kind if messages else ""
        answers = {name: self.change(kind, name, data) for name, data in self.room.ask(messages).items()}
        return {name: data for name, data in answers.items() if data is not None}


def ask(one, kind, arrays=None, **fields):
    own = {"agreement": one.digest, "run": "0" * 16, **fields}
    return Message.unpack(one.answer(Message(kind, own, arrays or {}).pack()))


def begun(one, plan=None, run="0" * 16):
    return ask(one, "begin", run=run, classes=["0", "1"], plan=plan or {"a": [20.0, True], "b": [20.0, True]})


def votes(one, address="a", z=20.0, n=8, run="0" * 16, **fields):
    """A question on n candidates; under no masks."""
    return ask(
        one,
        "vote",
        {"candidates": rows(n), "labels": np.arange(n, dtype=np.int32) % 2},
        **{"run": run, "address": address, "z": z, "query": "votes", "embedder": next(iter(one.embedders))}
        | {"neighbours": 1, "metric": "l2", "shared": False, **fields},
    )


# --- runs


@pytest.mark.parametrize("strategy", [STRATEGY, WEIGHED], ids=["votes", "marginals"])
def test_central_votes_are_those_of_one_data_set(tmp_path, strategy):
    config = agreement(tmp_path / "run", strategy=strategy)
    release = commands.start(config, Room(members(config)), noise=addressed_noise)
    private = PrivateData(rows(), np.arange(90) % 2, budget=Budget(4.0), classes=["0", "1"], noise=addressed_noise)
    alone = simpe.evolve(Oscillator(), None, private, samples=30, steps=2, strategy=strategy)
    assert torch.equal(release.samples, alone.samples)
    assert not release.certificate["private"]


@pytest.mark.parametrize(
    ("unit", "strategy"), [("row", STRATEGY), ("client", STRATEGY), ("row", WEIGHED), ("client", WEIGHED)]
)
@pytest.mark.parametrize("trust", ["central", "distributed", "local"])
def test_every_model_makes_a_release_and_says_what_it_protects(tmp_path, trust, unit, strategy):
    config = agreement(tmp_path / "run", trust, unit=unit, strategy=strategy)
    release = commands.start(config, Room(members(config, tmp_path)))
    certificate = release.certificate
    assert certificate["private"]
    assert certificate["spent_epsilon"] <= 4.0
    assert certificate["parties"] | {"trust": trust, "unit": unit, "clients": 3} == certificate["parties"]
    assert unit in certificate["statement"]
    assert any("cannot be enforced" in line for line in certificate["caveats"]) == (trust == "distributed")
    assert ("Skellam" in certificate["mechanism"]) == (trust == "distributed")
    for number in range(3):  # each client has charged the same, on a ledger of its own
        ledger = Ledger(tmp_path / f"{number}.jsonl")
        with ledger.locked():
            charged = {r["address"]: r["charge"] for r in ledger.releases()}
            assert ledger.spent(Budget(4.0)) <= 4.0
        assert charged == {c["release"]: {k: c[k] for k in Charge(1.0).__dict__} for c in certificate["charges"]}


def test_the_relation_agreed_on_is_the_one_that_is_charged(tmp_path):
    noise = {}
    for relation in ("add_remove", "replace_one"):
        config = agreement(tmp_path / relation, "distributed").model_copy(update={"relation": relation})
        release = commands.start(config, Room(members(config)))
        assert release.certificate["relation"] == relation
        noise[relation] = release.certificate["charges"][0]["noise_multiplier"]
    assert 1.3 < noise["replace_one"] / noise["add_remove"] < 1.6


def test_under_masks_the_sum_is_exact_whoever_falls_silent(tmp_path, monkeypatch):
    config = agreement(tmp_path / "a", "distributed", clients=5, dropouts=1)
    parts = ((0, 20), (20, 41), (41, 61), (61, 80), (80, 90))
    monkeypatch.setattr(member, "skellam", lambda variance, n: np.full(n, -7))  # so that sums can be compared

    def run(out, silent_at):
        found = []

        def change(kind, name, data):
            if kind == "unmask":
                found.append(kind)
            return None if (kind, name) == (silent_at, "4") else data

        release = commands.start(
            config.model_copy(update={"out": tmp_path / out}), Between(Room(members(config, parts=parts)), change)
        )
        with release.ledger.locked():
            return [np.array(r["counts"]) for r in release.ledger.releases()]

    # Who is silent from its keys or shares on is out; who is silent with its votes leaves masks that are taken off.
    whole = run("none", "")[0] + 5 * 7
    assert whole.tolist() == [45 * 1024, 45 * 1024]
    for silent_at in ("keys", "seal", "vote"):
        counts = run(silent_at, silent_at)[0] + 4 * 7
        assert counts.tolist() == [40 * 1024, 40 * 1024]
    assert (run("unmask", "unmask")[0] + 5 * 7).tolist() == whole.tolist()  # its votes were in already


def test_a_run_that_stopped_goes_on_and_the_clients_spend_nothing_twice(tmp_path):
    config = agreement(tmp_path / "run", "local")
    room = Room(members(config, tmp_path))

    class Stop(Exception):
        pass

    def stop(kind, name, data):
        stop.left -= kind == "vote"
        if stop.left < 0:
            raise Stop
        return data

    stop.left = 5  # in the midst of the second release: one client has answered, and the server never saw it
    with pytest.raises(Stop):
        commands.start(config, Between(room, stop))
    again = Room(members(config, tmp_path))  # restarted: their ledgers are on disk
    release = commands.resume(tmp_path / "run", again)
    assert len(release.samples) == 30
    assert commands.resume(tmp_path / "run", again) is None
    for number in range(3):
        ledger = Ledger(tmp_path / f"{number}.jsonl")
        with ledger.locked():
            assert [r["address"] for r in ledger.releases()] == ["0/counts", "0/0/votes", "0/1/votes"]


# --- what a client refuses


@pytest.mark.parametrize("trust", ["central", "local"])
def test_a_client_s_own_ledger_refuses_what_is_past_its_budget_also_after_a_restart(tmp_path, trust):
    config = agreement("x", trust)
    plan = {"a": [6.0, True], "b": [6.0, True]}
    one = members(config, tmp_path, budget=Budget(1.0))[0]
    assert begun(one, plan | {"c": [1.0, True]}).fields["why"] == "its ledger admits no more"
    assert not (tmp_path / "0.jsonl").exists()  # a plan that is refused commits to nothing
    assert begun(one, plan).kind == "begun"
    assert votes(one, "a", 6.0).kind == "votes"
    one = members(config, tmp_path, budget=Budget(1.0))[0]
    assert begun(one, plan).kind == "begun"  # the same run: nothing new is committed
    assert votes(one, "b", 6.0).kind == "votes"
    assert votes(one, "more", 6.0).fields["why"] == "its ledger admits no more"
    assert votes(one, "a", 5.0).fields["why"] != ""
    assert begun(one, plan, run="1" * 16).fields["why"] == "its ledger admits no more"
    assert begun(one, {"a": [7.0, True]}).fields["why"] == "the run was begun with another plan"


@pytest.mark.parametrize("trust", ["central", "local"])
def test_the_same_question_has_the_same_answer_and_another_none(trust):
    one = members(agreement("x", trust))[1]
    begun(one)
    first = votes(one).arrays["votes"]
    assert votes(one).arrays["votes"].tolist() == first.tolist()
    assert votes(one, n=9).kind == votes(one, metric="cosine").kind == "refused"


def test_a_local_answer_is_noisy_and_a_central_one_exact():
    found = {}
    for trust in ("central", "local"):
        one = members(agreement("x", trust))[1]
        begun(one)
        found[trust] = votes(one, n=40).arrays["votes"].astype(float)
    assert found["central"].sum() == 41
    assert found["central"].min() >= 0
    noise = found["local"] - found["central"]
    assert 20 * 0.4 < noise.std() < 20 * 2  # 40 draws: a false alarm is rarer than 1e-9


@pytest.mark.parametrize(
    "broken",
    [
        {"agreement": "0" * 64},
        {"run": "../../x"},
        {"run": "f" * 16},
        {"query": "code"},
        {"embedder": "0" * 64},
        {"neighbours": 0},
        {"neighbours": 1e9},
        {"metric": "x"},
        {"shared": 1},
        {"z": float("inf")},
        {"z": "20"},
        {"address": 5},
        {"n": 0},
    ],
    ids=str,
)
def test_questions_that_do_not_fit_are_refused_before_anything_is_charged(tmp_path, broken):
    one = members(agreement("x"), tmp_path)[0]
    begun(one)
    before = (tmp_path / "0.jsonl").read_bytes()
    assert votes(one, **broken).kind == "refused"
    assert (tmp_path / "0.jsonl").read_bytes() == before
    assert votes(one).kind == "votes"


@pytest.mark.parametrize("spoil", ["nan", "width", "label", "kind"])
def test_candidates_that_are_none_are_refused_before_anything_is_charged(tmp_path, spoil):
    one = members(agreement("x"), tmp_path)[0]
    begun(one)
    candidates, labels = rows(8), np.arange(8, dtype=np.int32) % 2
    if spoil == "nan":
        candidates[3, 3] = np.nan
    if spoil == "width":
        candidates = candidates[:, 1:]
    if spoil == "label":
        labels[0] = 2
    if spoil == "kind":
        labels = labels.astype(np.int64)
    found = ask(
        one, "vote", {"candidates": candidates, "labels": labels}, address="a", z=20.0, query="votes",
        embedder=next(iter(one.embedders)), neighbours=1, metric="l2", shared=False,
    )  # fmt: skip
    assert found.kind == "refused"
    ledger = Ledger(tmp_path / "0.jsonl")
    with ledger.locked():
        assert ledger.releases() == []


@pytest.mark.parametrize("spoil", ["not agreed", "columns", "width", "none"])
def test_marginals_are_counted_as_agreed_or_not_at_all(tmp_path, spoil):
    def asked(strategy, places, columns):
        one = members(agreement("x", strategy=strategy), tmp_path)[0]
        begun(one, {"m": [20.0, False]})
        how = {"address": "m", "z": 20.0, "query": "marginals", "embedder": next(iter(one.embedders))}
        return one, ask(one, "vote", {"places": places}, columns=columns, **how)

    columns = member.name_of_columns(marginals.query(marginals.Marginals(), 4, 2))
    strategy = STRATEGY if spoil == "not agreed" else WEIGHED
    places = {"width": rows(4)[:, 1:], "none": rows(4)[:0]}.get(spoil, rows(4))
    one, found = asked(strategy, places, "0" * 64 if spoil == "columns" else columns)
    assert found.kind == "refused"
    ledger = Ledger(tmp_path / "0.jsonl")
    with ledger.locked():
        assert ledger.releases() == []
    (tmp_path / "0.jsonl").unlink()
    one, found = asked(WEIGHED, rows(4), columns)
    scale = one._door.charge(20.0, False).sensitivity
    counts = found.arrays["votes"] * 2**0.5 / scale  # exact, in the central model: a row is in one bin of two sets
    assert counts[0] == pytest.approx(20, rel=1e-3)
    assert counts[1:].sum() == pytest.approx(20, rel=1e-3)


def test_under_masks_a_question_is_answered_once(tmp_path):
    """The same noise under other masks, or among fewer clients, would hide less."""
    config = agreement("x", "distributed")
    found = members(config, tmp_path)
    for one in found:
        assert begun(one).kind == "begun"
    assert votes(found[0]).fields["why"] == "this release has no keys, or is over"

    def round_():
        keys = [ask(one, "keys", address="a").arrays["keys"] for one in found]
        sealed = [ask(one, "seal", {"keys": np.stack(keys)}, address="a") for one in found]
        shares = {"from": [], "sealed": []}
        for key, message in zip(keys, sealed, strict=True):
            for to, content in zip(message.arrays["to"], message.arrays["sealed"], strict=True):
                if (to == keys[0]).all():
                    shares["from"].append(key)
                    shares["sealed"].append(content)
        arrays = {name: np.stack(part) for name, part in shares.items()}
        return ask(found[0], "vote", arrays, address="a", z=20.0, query="classes")

    assert round_().kind == "votes"
    assert round_().fields["why"] == "this was answered before; it is answered once"


def test_a_client_without_rows_or_with_too_many_cannot_take_part():
    config = agreement("x", rows=50)
    with pytest.raises(InputError, match="holds no rows"):
        Member(config, [Arrays(rows()[:0], np.arange(0), None)])
    with pytest.raises(InputError, match="more than the 50 rows"):
        Member(config, [Arrays(rows(), np.arange(90), None)])
    whole = agreement("x", rows=50, unit="client")
    Member(whole, [Arrays(rows(), np.arange(90), None)])  # 50 of them take part
    with pytest.raises(InputError, match="no table"):
        Member(config.model_copy(update={"federation": None}), [Arrays(rows(), np.arange(90), None)])


def test_an_answer_says_nothing_of_what_went_wrong_inside(monkeypatch):
    told = []
    one = members(agreement("x"), told=told.append)[0]
    begun(one)

    def secret(*_, **__):
        raise RuntimeError("row 17 is 42")

    monkeypatch.setattr(one._door, "noisy_sum", secret)
    assert votes(one).fields["why"] == "it cannot answer that"
    assert "42" not in " ".join(told)
    assert repr(one) == "Member(<private>)"


# --- what the server refuses


def spoiled(change):
    def change_votes(kind, name, data):
        if kind != "vote" or name != "1":
            return data
        message = Message.unpack(data)
        return Message(message.kind, message.fields, {"votes": change(message.arrays["votes"])}).pack()

    return change_votes


SPOILED = {
    "long": lambda v: np.append(v, v[:1]),
    "short": lambda v: v[:-1],
    "nan": lambda v: np.full(len(v), np.nan, np.float32),
    "huge": lambda v: v + 10**6,
    "negative": lambda v: v - 10**6,
}


@pytest.mark.parametrize("trust", ["central", "local"])
@pytest.mark.parametrize("how", SPOILED)
def test_visible_votes_that_cannot_be_are_left_out(tmp_path, trust, how):
    config = agreement(tmp_path / "run", trust)
    with pytest.raises(InputError, match="2 clients answered and 3 are needed"):
        commands.start(config, Between(Room(members(config)), spoiled(SPOILED[how])))
    config = agreement(tmp_path / "again", trust, dropouts=1)
    said = []
    release = commands.start(
        config, Between(Room(members(config)), spoiled(SPOILED[how])), progress=lambda what, *_: said.append(what)
    )
    assert len(release.samples) == 30
    assert any("refused by 1" in line for line in said)


@pytest.mark.parametrize("how", ["long", "short", "nan"])
def test_masked_votes_of_another_form_are_left_out(tmp_path, how):
    config = agreement(tmp_path / "run", "distributed", clients=4, dropouts=1)
    found = members(config, parts=(*PARTS, (0, 20)))
    release = commands.start(config, Between(Room(found), spoiled(SPOILED[how])))
    assert len(release.samples) == 30


def test_votes_after_the_round_do_not_count(tmp_path):
    """Each answer of one client comes a question late; the number of votes is the same, and their sum is not."""
    config, late, said = agreement(tmp_path / "run", dropouts=1), [], []

    def change(kind, name, data):
        if kind != "vote" or name != "2":
            return data
        late.append(data)
        return late[-2] if len(late) > 1 else None

    release = commands.start(
        config, Between(Room(members(config)), change), progress=lambda what, *_: said.append(what)
    )
    assert len(release.samples) == 30
    assert said.count("refused by 1: an answer came late, or to nothing") == 2


def test_too_few_clients_and_shards_that_differ_are_one_line(tmp_path):
    config = agreement(tmp_path / "run", clients=4)
    with pytest.raises(InputError, match="3 clients answered and 4 are needed"):
        commands.start(config, Room(members(config)))
    config = agreement(tmp_path / "run", clients=2)
    with pytest.raises(InputError, match="3 clients are there, and 2 were agreed on"):
        commands.start(config, Room(members(config)))
    config = agreement(tmp_path / "run")
    odd = Member(config, [Arrays(rows()[:, :16], np.arange(90) % 2, None)])
    with pytest.raises(InputError, match="shards differ in the shape"):
        commands.start(config, Room([*members(config)[:2], odd]))
    other = members(agreement("x", epsilon=5.0))
    with pytest.raises(InputError, match="the agreement is another one"):
        commands.start(config, Room(other))
    assert not (tmp_path / "run").exists()


def test_a_federation_is_not_a_run_of_one_s_own(tmp_path):
    from simpe import runs

    config = agreement(tmp_path / "run")
    with pytest.raises(InputError, match="simpe federated server"):
        runs.start(config)
    commands.start(config, Room(members(config)))
    kept = read_config(tmp_path / "run" / "private" / "config.toml")
    assert terms.digest(kept) == terms.digest(config)
    with pytest.raises(InputError, match="leave it out"):
        make_config(private="x", epsilon=1.0, out=tmp_path, federation={"clients": 3})


# --- terms


@pytest.mark.parametrize(
    ("terms_", "said"),
    [
        ({"clients": 2, "dropouts": 1}, "fewer than 2"),
        ({"clients": 5, "colluders": 4}, "fewer than 2"),
        ({"clients": 10, "dropouts": 5}, "unmask"),
        ({"clients": 10, "dropouts": 4, "colluders": 2}, "unmask"),
        ({"clients": 3, "colluders": 1, "trust": "local"}, "nothing is assumed"),
        ({"clients": 3, "unit": "client", "rows": 10_001}, "take part at most"),
        ({"clients": 1}, "greater than or equal to 2"),
    ],
)
def test_terms_that_cannot_hold_are_refused(terms_, said):
    with pytest.raises(ValueError, match=said):
        Federation(**terms_)


def test_the_honest_clients_shares_are_what_is_charged_and_no_sum_wraps_around():
    federation = Federation(clients=10, dropouts=2, colluders=1, rows=1000)
    charge = charge_of(8.0, False, "skellam")
    assert federation.honest == 7
    assert 7 * federation.share(charge) >= charge.sigma**2
    assert 7 * federation.share(charge) < charge.sigma**2 * (1 + 1e-9)
    most = 10 * (1000 * charge.sensitivity + skellam_support(federation.share(charge)))
    assert federation.bits(charge) == 32
    assert most < 2**31
    assert Federation(clients=10, rows=1_000_000).bits(charge) == 64


# --- the wire and the masks


def test_messages_come_through_and_anything_else_is_refused():
    sent = Message(
        "a", {"x": [1, "é"], "y": None}, {"u": np.arange(6, dtype=np.uint32).reshape(2, 3), "f": np.ones(0, np.float32)}
    )
    data = sent.pack()
    found = Message.unpack(data)
    assert (found.kind, found.fields) == (sent.kind, sent.fields)
    assert all(np.array_equal(found.arrays[n], a) and found.arrays[n].dtype == a.dtype for n, a in sent.arrays.items())
    for cut in range(len(data)):
        with pytest.raises(Refused):
            Message.unpack(data[:cut])
    with pytest.raises(Refused):
        Message.unpack(data + b"x")
    header = {"kind": "a", "fields": {}, "arrays": [["x", "f4", [2**62, 4]]]}
    for arrays in ([["x", "O", [1]]], [["x", "f4", [-1]]], [["x", "f4", [2**62, 4]]], [["x", "f4", ["1"]]], 5, None):
        raw = json.dumps(header | {"arrays": arrays}).encode()
        with pytest.raises(Refused):
            Message.unpack(len(raw).to_bytes(4, "big") + raw + bytes(4))


def test_shares_give_the_secret_and_fewer_do_not():
    secret = hashlib.sha256(b"x").digest()
    shares = dict(enumerate(split(secret, 5, 3), start=1))
    assert join({i: shares[i] for i in (1, 3, 5)}) == join({i: shares[i] for i in (4, 2, 3)}) == secret
    with pytest.raises(Refused):  # two points lie on some other curve
        join({i: shares[i] for i in (1, 3)})


def parties(n, threshold, secrets=None):
    found = [Party("about", threshold, n, b"" if secrets is None else secrets[i]) for i in range(n)]
    return {one.keys: one for one in found}


def exchanged(found):
    sealed = {key: one.seal([*found]) for key, one in found.items()}
    for key, one in found.items():
        one.open({other: sealed[other][key] for other in found if other != key})


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("gone", [0, 1, 2])
def test_the_server_gets_the_sum_and_nothing_else(bits, gone):
    found = parties(5, 3)
    exchanged(found)
    vectors = {key: np.random.default_rng(i).integers(-900, 900, 2000) for i, key in enumerate(found)}
    masked = {key: one.mask(vectors[key], bits) for key, one in found.items()}
    stayed = [*found][gone:]
    # What one client sends is uniform, whatever its votes: bytes' frequencies against chance, at 1e-8.
    for vector in masked.values():
        seen = np.bincount(vector.view(np.uint8), minlength=256)
        assert ((seen - seen.mean()) ** 2 / seen.mean()).sum() < 255 + 7 * (2 * 255) ** 0.5
    revealed = {key: found[key].reveal(stayed) for key in stayed}
    total = unmask("about", {key: masked[key] for key in stayed}, [*found], [*found], revealed, 3)
    assert total.tolist() == sum(vectors[key] for key in stayed).tolist()


def test_a_client_gives_of_another_the_own_mask_or_the_key_never_both():
    found = parties(5, 3)
    exchanged(found)
    keys = [*found]
    one = found[keys[0]]
    one.mask(np.zeros(3, np.int64), 32)
    with pytest.raises(Refused):
        one.reveal(keys[:2])  # fewer than agreed
    with pytest.raises(Refused):
        one.reveal([keys[0]] * 3)  # the same one three times
    with pytest.raises(Refused):
        one.reveal(keys[1:])  # without this client
    one.reveal(keys[:4])
    with pytest.raises(Refused):
        one.reveal(keys[:3])


def test_keys_that_were_swapped_are_noticed_by_clients_that_share_a_secret():
    for secret, noticed in ((b"s" * 32, True), (b"", False)):
        found = parties(3, 3, [secret] * 3)
        keys = [*found]
        false = Party("about", 3, 3)  # the server's own, in place of the last client's
        first = found[keys[0]]
        seen = [keys[0], keys[1], false.keys]
        first.seal(seen)
        other = found[keys[1]].seal(keys)
        theirs = false.seal(seen)
        if noticed:
            with pytest.raises(Refused, match="altered"):
                first.open({false.keys: theirs[keys[0]]})
        else:
            first.open({keys[1]: other[keys[0]], false.keys: theirs[keys[0]]})


def test_altered_and_foreign_shares_are_refused():
    found = parties(3, 3)
    keys = [*found]
    sealed = {key: one.seal(keys) for key, one in found.items()}
    content = bytearray(sealed[keys[1]][keys[0]])
    content[5] ^= 1
    with pytest.raises(Refused, match="altered"):
        found[keys[0]].open({keys[1]: bytes(content)})
    with pytest.raises(Refused, match="nobody"):
        found[keys[0]].open({bytes(KEYS): sealed[keys[1]][keys[0]]})
    with pytest.raises(Refused, match="fewer"):
        found[keys[0]].open({keys[1]: sealed[keys[1]][keys[0]]})
    with pytest.raises(Refused, match="no shares"):
        Party("about", 3, 3).mask(np.zeros(1, np.int64), 32)
    for everybody in (keys[1:], [*keys, keys[0]], keys[:1]):
        with pytest.raises(Refused):
            Party("about", 2, 3).seal(everybody)


# --- other data than series


@pytest.fixture(scope="module")
def captures(tmp_path_factory):
    """The recorded capture in three: each has the packets of some of its clients, and none of the others'."""
    dpkt = pytest.importorskip("dpkt", reason="dpkt is missing: pip install dpkt")
    pytest.importorskip("pyarrow", reason="pyarrow is missing: pip install pyarrow")
    folder = tmp_path_factory.mktemp("captures")
    with gzip.open(Path(network.__file__).parent / "recorded" / "recorded.pcap.gz") as file:
        packets = list(dpkt.pcap.Reader(file))
    writers = [dpkt.pcap.Writer((folder / f"{n}.pcap").open("wb")) for n in range(3)]
    for time, raw in packets:
        ip = dpkt.ethernet.Ethernet(raw).data
        if isinstance(ip, dpkt.ip.IP):
            writers[min(ip.src, ip.dst)[-1] % 3].writepkt(raw, time)
    for writer in writers:
        writer.close()
    return [str(folder / f"{n}.pcap") for n in range(3)]


def traffic(out, trust, simulator="network", unit="flow", **more):
    federation = {"trust": trust, "clients": 3, "rows": 10_000}
    strategy = Strategy(start=3, places=20, marginals=0.5 if simulator == "network" else 0)
    return make_config(
        simulator=simulator, unit=unit, epsilon=4.0, samples=50, steps=1, out=out, strategy=strategy,
        federation=federation, **more,
    )  # fmt: skip


def test_flows_of_captures_at_three_clients_are_those_of_one_place(tmp_path, captures):
    config = traffic(tmp_path / "run", "central")
    room = Room([commands.join(config, [one], ledger=tmp_path / f"{n}.jsonl") for n, one in enumerate(captures)])
    release = commands.start(config, room, noise=addressed_noise)
    everywhere = config.model_copy(
        update={"federation": None, "private": tuple(captures), "options": {"by_file": True}}
    )
    private = PrivateData(Here(runs.inputs_of(everywhere, None)), budget=Budget(4.0), noise=addressed_noise)
    alone = simpe.evolve(Traces(), None, private, samples=50, steps=1, strategy=config.strategy)
    assert torch.equal(release.samples, alone.samples)
    assert (tmp_path / "run" / "release" / "synthetic.pcap").is_file()


@pytest.mark.parametrize(
    ("trust", "simulator", "unit"),
    [("distributed", "network", "flow"), ("local", "network", "flow"), ("distributed", "network-sessions", "src")],
)
def test_captures_by_device_make_one_synthetic_capture(tmp_path, captures, trust, simulator, unit):
    config = traffic(tmp_path / "run", trust, simulator, unit)
    found = [commands.join(config, [one], ledger=tmp_path / f"{n}.jsonl") for n, one in enumerate(captures)]
    release = commands.start(config, Room(found))
    assert len(release.samples) == 50
    assert release.certificate["private"]
    assert (tmp_path / "run" / "release" / "synthetic.pcap").is_file()


def test_a_session_that_lies_in_two_of_a_client_s_files_is_refused(tmp_path, captures):
    config = traffic(tmp_path / "run", "local", "network-sessions", "src", options={"by_file": True})
    with pytest.raises(InputError, match="a unit has rows in two shards"):
        commands.join(config, [captures[0], captures[0]], ledger=tmp_path / "x.jsonl")
    commands.join(config, captures[:1], ledger=tmp_path / "x.jsonl")
