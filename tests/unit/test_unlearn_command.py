"""The command line of unlearn: what it takes, and what it refuses before anything is started."""

import argparse
from pathlib import Path

import pytest

from trustchain_ray.errors import UsageError
from trustchain_ray.forgetting.command import add_arguments, asks_of, options_of, read_requests
from trustchain_ray.forgetting.plan import Ask


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["run", *arguments])


def test_scopes() -> None:
    assert asks_of(parsed("--subject", "p1", "p1", "p2")) == [Ask("subject", ("p1", "p2"))]
    assert asks_of(parsed("--record", "r1", "--organization", "bank")) == [Ask("record", ("r1",), "bank")]
    assert asks_of(parsed("--organization", "bank")) == [Ask("organization", (), "bank")]
    assert asks_of(parsed()) == []


def test_a_requests_file_is_one_batch(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    bank = '{"record": "%s", "organization": "bank"}\n'
    path.write_text(bank % "r1" + '\n{"subject": "p"}\n' + bank % "r2")
    assert read_requests(path) == [Ask("record", ("r1", "r2"), "bank"), Ask("subject", ("p",))]
    path.write_text('{"organization": "bank"}\n')
    assert read_requests(path) == [Ask("organization", (), "bank")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "requests.jsonl:2: is not JSON"),
        ('{"record": 7}', "requests.jsonl:2: needs"),
        ('{"record": "a", "subject": "b"}', "requests.jsonl:2: needs"),
        ('{"person": "a"}', "requests.jsonl:2: needs"),
        ("[]", "requests.jsonl:2: needs"),
        ("{}", "requests.jsonl:2: needs"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"subject": "p"}\n' + line + "\n")
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        read_requests(path)


def test_contradictions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text("\n")
    with pytest.raises(UsageError, match="holds no request"):
        read_requests(path)
    with pytest.raises(UsageError, match="leave --organization"):
        asks_of(parsed("--requests", str(path), "--subject", "p"))
    with pytest.raises(UsageError, match="has no options"):
        options_of("replay", ["epochs=3"])
    with pytest.raises(UsageError, match="KEY=NUMBER"):
        options_of("npo", ["epochs=many"])
    with pytest.raises(UsageError, match="npo has no option speed"):
        options_of("npo", ["speed=3"])
    assert options_of("npo", ["epochs=3", "lr=1e-3"]) == {"epochs": "3.0", "lr": "0.001"}
