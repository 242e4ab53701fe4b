"""Logs and witnesses over HTTP: a client that knows only the C2SP specifications gets along."""

import base64
import http.client
import re
import threading
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
from fake_run import RUN, FakeRun
from witnessed import witnessed_run

from ledger import checkpoint, layout
from ledger import events as ev
from ledger.cli import main
from ledger.errors import LedgerError, Unavailable
from ledger.identity import load_or_create
from ledger.log import SqliteLog
from ledger.merkle import MerkleLog, leaf_hash
from ledger.serve import serve_run, tile_number
from ledger.verify import verify_run
from ledger.witness import Stale, Witness
from ledger.witness_server import MAX_BODY_BYTES, ask, make_request, parse_request, serve_witness


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return witnessed_run(tmp_path_factory.mktemp("served"), anchored=False)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A run at work, of more events than two tiles have."""
    base = tmp_path_factory.mktemp("large")
    run = FakeRun(base / "run", base / "keys")
    run.open(anchored=False)
    run.submit(run.opening())
    made = [run.event("bank", ev.DECISION, {"round": number, "effort": "1"}) for number in range(1, 601)]
    run.submit(made)
    run.service.sign_head()
    return run


@pytest.fixture
def served(request):
    servers = []

    def serve(make, *arguments):
        servers.append(make(*arguments).start())
        return servers[-1].url

    yield serve
    for server in servers:
        server.stop()


def get(url):
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.read(), response.headers


def status_of(url, data=None, method=None):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=30) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


# The log


def rebuild(url, size):
    """What a client does that knows the specification: entries and hashes from tiles, each compared."""
    leaves, log = [], MerkleLog()
    for start in range(0, size, 256):
        width = min(256, size - start)
        partial = f".p/{width}" if width < 256 else ""
        data, _ = get(f"{url}/tile/entries/{tile_number(start // 256)}{partial}")
        hashes, _ = get(f"{url}/tile/0/{tile_number(start // 256)}{partial}")
        while data:
            length = int.from_bytes(data[:2], "big")
            leaves.append(data[2 : 2 + length])
            log.append(leaf_hash(leaves[-1]))
            data = data[2 + length :]
        assert hashes == b"".join(log.node(0, index) for index in range(start, start + width))
    level = 1
    while size >> (8 * level):
        width = (size >> (8 * level)) % 256
        hashes, _ = get(f"{url}/tile/{level}/000.p/{width}")
        assert hashes == b"".join(log.node(8 * level, index) for index in range(width))
        level += 1
    return leaves, log


def test_a_client_rebuilds_the_log_from_tiles(large, served):
    url = served(serve_run, large.dir)
    note, headers = get(f"{url}/checkpoint")
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    said = checkpoint.read(note.decode(), RUN, large.coordinator.public_hex, {})
    assert said.size == 604
    leaves, log = rebuild(url, said.size)
    assert (len(leaves), log.root()) == (said.size, said.root)
    assert leaves == large.service.leaves(0, said.size)


def test_a_run_at_work_is_served_as_it_grows(tmp_path, served, monkeypatch):
    monkeypatch.setattr("ledger.serve.FRESH_S", 0.0)
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    run.open(anchored=False)
    run.submit(run.opening())
    url = served(serve_run, run.dir)
    assert status_of(f"{url}/checkpoint")[0] == 404
    assert status_of(f"{url}/tile/0/000.p/5")[0] == 404
    run.submit(run.round(1))
    run.service.sign_head()
    said = checkpoint.parse(get(f"{url}/checkpoint")[0].decode())
    assert rebuild(url, said.size)[1].root() == said.root == bytes.fromhex(run.service.status()["root"])
    run.service.close()
    assert rebuild(url, said.size)[1].root() == said.root


def test_the_run_is_not_changed_by_serving_it(finished, served):
    before = {name: (finished.dir / name).read_bytes() for name in layout.files_under(finished.dir, ".")}
    url = served(serve_run, finished.dir)
    get(f"{url}/checkpoint")
    get(f"{url}/tile/0/000.p/1")
    for method in ("POST", "PUT", "DELETE"):
        assert status_of(f"{url}/checkpoint", b"x", method)[0] == 501
    assert {name: (finished.dir / name).read_bytes() for name in layout.files_under(finished.dir, ".")} == before


def test_paths_have_one_spelling(large, served):
    url = served(serve_run, large.dir)
    good = ["/tile/0/000", "/tile/0/001", "/tile/0/002.p/92", "/tile/0/000.p/7", "/tile/1/000.p/2", "/tile/entries/001"]
    for path in good:
        assert status_of(url + path)[0] == 200, path
    data, headers = get(f"{url}/tile/0/000")
    assert (len(data), headers["Content-Type"]) == (8192, "application/octet-stream")
    assert "immutable" in headers["Cache-Control"]
    bad = ["/", "/tile", "/tile/0/0", "/tile/00/000", "/tile/0/x000/000", "/tile/0/000.p/256", "/tile/0/000.p/0",
           "/tile/0/000.p/01", "/tile/64/000", "/tile/0/002", "/tile/0/002.p/200", "/tile/1/000", "/tile/2/000.p/1",
           "/tile/0/x999/x999/x999/x999/x999/x999/999", "/tile/0/x999/x999/x999/x999/999", "/tile/-1/000",
           "/tile/entries/009", "/../../etc/passwd", "/ledger/log.sqlite", "/tile/0/%30%30%30"]  # fmt: skip
    for path in bad:
        assert status_of(url + path)[0] == 404, path


def test_numbers_of_tiles_are_written_as_the_specification_says():
    assert tile_number(1234067) == "x001/x234/067"
    assert [tile_number(n) for n in (0, 7, 999, 1000)] == ["000", "007", "999", "x001/000"]


def test_an_event_too_long_for_an_entry_bundle_is_not_cut(tmp_path, served):
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    run.open(anchored=False)
    run.submit(run.opening())
    long = {"round": 1, "scores": {"x" * 50_000: "1"}}
    run.submit([run.event("coordinator", ev.EVALUATION, long)])
    run.service.close()
    url = served(serve_run, run.dir)
    assert status_of(f"{url}/tile/entries/000.p/4")[0] == 200
    status, body, _ = status_of(f"{url}/tile/entries/000.p/5")
    assert (status, b"get the /bundle" in body) == (404, True)
    assert status_of(f"{url}/tile/0/000.p/5")[0] == 200


def test_bundles_come_over_http(finished, served, tmp_path):
    url = served(serve_run, finished.dir)
    path = tmp_path / "bundle"
    for query, skipped in (("", "rounds"), ("?event=5", "links"), ("?type=MERGE&type=UPDATE", "links")):
        path.write_bytes(get(f"{url}/bundle{query}")[0])
        report = verify_run(path)
        assert report.ok, report.failure
        assert skipped in {check.name for check in report.checks if check.status == "skipped"}
    for query in ("?event=x", "?event=-1", "?event=99999", "?type=NOTHING"):
        status, body, _ = status_of(f"{url}/bundle{query}")
        assert status in (404, 503)
        assert str(finished.dir).encode() not in body


def test_head_gives_the_length_alone(finished, served):
    connection = http.client.HTTPConnection(urlsplit(served(serve_run, finished.dir)).netloc, timeout=30)
    for _ in range(2):  # the connection stays open
        connection.request("HEAD", "/checkpoint")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"")
        assert int(response.headers["Content-Length"]) > 100
    connection.close()


def test_what_cannot_be_served_is_said(finished, served, tmp_path):
    with pytest.raises(LedgerError, match="is missing"):
        serve_run(tmp_path)
    port = urlsplit(served(serve_run, finished.dir)).port
    with pytest.raises(LedgerError, match="cannot listen there"):
        serve_run(finished.dir, "127.0.0.1", port)
    assert main(["serve", str(tmp_path)]) == 2
    assert main(["witness", "--identity", str(tmp_path), "bank", "--state", str(tmp_path), "--log", "x"]) == 2
    log = ["--log", "run=" + "ab" * 32]
    assert main(["witness", "--identity", str(tmp_path), "bank", "--state", str(tmp_path), *log]) == 2


# The witness


class History:
    """A log that its coordinator signs, and a witness server that knows it."""

    def __init__(self, tmp_path, served):
        self.log = MerkleLog()
        for number in range(30):
            self.log.append(leaf_hash(number.to_bytes(2, "big")))
        self.coordinator = load_or_create("coordinator", tmp_path / "keys")
        self.witness = Witness(load_or_create("bank", tmp_path / "keys"), tmp_path / "state")
        self.url = served(serve_witness, self.witness, {RUN: self.coordinator.public_hex})

    def note(self, size, root=None, run=RUN):
        return checkpoint.sign(self.coordinator, run, size, root or self.log.root(size))

    def post(self, old, note, proof=None):
        proof = self.log.consistency_proof(old, checkpoint.parse(note).size) if proof is None else proof
        return status_of(f"{self.url}/add-checkpoint", make_request(old, proof, note))


@pytest.fixture
def history(tmp_path, served):
    return History(tmp_path, served)


def test_the_witness_protocol_as_the_specification_says(history):
    assert history.post(0, history.note(7))[0] == 200
    status, body, headers = history.post(7, history.note(20))
    assert (status, body.count(b"\n")) == (200, 1)
    note = checkpoint.add(history.note(20), body.decode())
    keys = {"bank": history.witness.identity.public_hex}
    assert checkpoint.read(note, RUN, history.coordinator.public_hex, keys).cosigners.keys() == {"bank"}
    assert history.post(20, history.note(20))[0] == 200  # once more

    for old in (0, 7, 19):  # not from what it has
        status, body, headers = history.post(old, history.note(25))
        assert (status, body, headers["Content-Type"]) == (409, b"20\n", "text/x.tlog.size")
    assert history.post(5, history.note(7))[0] == 409
    assert history.post(20, history.note(20, bytes(32)), [])[0] == 409  # the same size, another root
    assert history.post(20, history.note(25), [bytes(32)])[0] == 422
    assert history.post(20, history.note(25), [])[0] == 422
    assert history.post(20, history.note(19), [])[0] == 400  # old size above the checkpoint's
    assert history.post(0, history.note(25, run="other"))[0] == 404
    stranger = checkpoint.sign(history.witness.identity, RUN, 25, history.log.root(25))
    assert history.post(20, stranger)[0] == 403
    assert history.witness.latest(RUN).size == 20


def test_a_split_view_over_http_leaves_evidence(history):
    other = MerkleLog()
    for number in range(25):
        other.append(leaf_hash(b"other" + bytes([number])))
    assert history.post(0, history.note(7))[0] == 200
    status, _, _ = history.post(7, history.note(25, other.root()), other.consistency_proof(7))
    assert status == 422
    assert [path.name for path in history.witness.folder.glob("split-view-*")] == [f"split-view-{RUN}.json"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 0\n",
        b"old 0\n\n",
        b"old 0\n\nnonsense\n",
        b"old 00\n\nNOTE",
        b"old -1\n\nNOTE",
        b"old\n\nNOTE",
        b"new 0\n\nNOTE",
        b"old 0 \n\nNOTE",
        b"old 0\r\n\r\nNOTE",
        b"old 0\nnot base64!\n\nNOTE",
        b"old 0\nAAAA\n\nNOTE",
        b"old 0\n" + base64.b64encode(bytes(32)) + b"\n" * 1 + b"NOTE",
        b"old 0\n" + (base64.b64encode(bytes(32)) + b"\n") * 64 + b"\nNOTE",
        b"old 0\n\n\xff\xfe",
    ],
)
def test_malformed_requests_get_400(history, body):
    body = body.replace(b"NOTE", history.note(7).encode())
    assert status_of(f"{history.url}/add-checkpoint", body)[0] == 400
    assert history.witness.latest(RUN) is None


def test_the_example_of_the_specification_is_read():
    body = (
        "old 20852014\n"
        "PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n"
        "jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n"
        "5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=\n"
        "/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=\n"
        "\n"
        "example.com/behind-the-sofa\n"
        "20852163\n"
        "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
        "\n"
        "— example.com/behind-the-sofa "
        "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    ).encode()
    old, proof, note = parse_request(body)
    assert (old, len(proof), checkpoint.parse(note).size) == (20852014, 4, 20852163)
    assert make_request(old, proof, note) == body


def test_requests_that_are_no_requests(history):
    note = make_request(0, [], history.note(7))
    assert status_of(f"{history.url}/elsewhere", note)[0] == 404
    assert status_of(f"{history.url}/add-checkpoint")[0] == 501
    assert status_of(f"{history.url}/add-checkpoint", b"x" * (MAX_BODY_BYTES + 1))[0] == 400
    host = urlsplit(history.url).netloc
    for length in ("-1", "x", "1e3", "\u0661", "9" * 5000):
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.putrequest("POST", "/add-checkpoint")
        connection.putheader("Content-Length", length.encode())
        connection.endheaders()
        assert connection.getresponse().status == 400
        connection.close()


def test_a_log_asks_a_witness_and_catches_up(history, served):
    prove = history.log.consistency_proof
    for size in (3, 3, 8, 30):
        line = ask(history.url, history.note(size), prove)
        assert re.fullmatch("\u2014 bank \\S+\n", line)
    with pytest.raises(Stale) as stale:
        ask(history.url, history.note(29), prove)
    assert stale.value.size == 30
    with pytest.raises(Stale):
        ask(history.url, history.note(30, bytes(32)), prove, 30)
    with pytest.raises(LedgerError, match=r"refuses \(404\)"):
        ask(history.url, history.note(3, run="other"), prove)
    with pytest.raises(Unavailable, match="does not answer"):
        ask("http://127.0.0.1:9", history.note(3), prove)


def test_a_run_is_witnessed_over_http(tmp_path, served):
    """The whole way: the run signs a head, a witness elsewhere cosigns it, the verifier counts it."""
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    run.open(anchored=False)
    run.submit(run.opening())
    witness = Witness(run.identities["clinic"], tmp_path / "clinic")
    url = served(serve_witness, witness, {RUN: run.coordinator.public_hex})
    for round_ in (1, 2):
        run.submit(run.round(round_))
        head = run.service.sign_head()
        line = ask(url, run.service.newest_checkpoint(), run.service.consistency_proof)
        assert run.service.cosign(head.seq, [line]) == []
    run.service.close()
    assert verify_run(run.dir, min_witnesses=1, trust={"clinic": run.identities["clinic"].public_hex}).ok


def test_many_at_once(large, served):
    url = served(serve_run, large.dir)
    results = []

    def fetch():
        results.append(rebuild(url, 604)[1].root())

    threads = [threading.Thread(target=fetch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    log = SqliteLog(large.dir / layout.LOG, read_only=True)
    assert results == [log.root(604)] * 6
    log.close()
