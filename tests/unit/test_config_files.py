"""Reading configurations: every shipped file, unknown keys, merge order, paths, and the way back to YAML."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trustchain_ray.config import Config
from trustchain_ray.config_files import load_config, to_yaml
from trustchain_ray.errors import UsageError

SHIPPED = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
OVERLAYS = {"federation100.yaml": ["quickstart.yaml"], "sentiment_private.yaml": ["sentiment.yaml"]}
"""Files that say in their first line that they are merged over others."""

GOOD = """
model: {base: some/model}
data:
  split: sources
  organizations: {north: {train: north.jsonl}, south: {train: south.jsonl}}
"""

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(text: str = GOOD, name: str = "c.yaml") -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return make


def shipped(path: Path) -> list[str]:
    return [str(path.parent / name) for name in OVERLAYS.get(path.name, [])] + [str(path)]


@pytest.mark.parametrize("path", SHIPPED, ids=[path.name for path in SHIPPED])
def test_every_shipped_configuration_loads_without_an_environment(path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("TRUSTCHAIN_DATA", "TRUSTCHAIN_MODELS", "TRUSTCHAIN_MINILM"):
        monkeypatch.delenv(name, raising=False)
    config = load_config(shipped(path), [])
    assert config.run.name == path.stem


def test_there_are_shipped_configurations():
    assert {"quickstart.yaml", "sentiment.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize(
    ("override", "unknown", "nearest"),
    [
        ("modle.base=x", "modle", "model"),
        ("model.lora.rnak=4", "model.lora.rnak", "model.lora.rank"),
        ("training.learning_rate=4", "training.learning_rate", "training."),
        ("federation.round=4", "federation.round", "federation.rounds"),
        ("lora.rank=4", "lora", "model.lora"),
        ("model.max_grad_norm=1", "model.max_grad_norm", "training.max_grad_norm"),
        (
            "data.organizations.north.trian=x",
            "data.organizations.north.trian",
            "data.organizations.north.train",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_one(write: Write, override: str, unknown: str, nearest: str):
    with pytest.raises(UsageError, match=f"override {override}: unknown key {unknown}; did you mean {nearest}"):
        load_config([write()], [override])
    keys, value = override.split("=")
    nested = value
    for part in reversed(keys.split(".")):
        nested = f"{{{part}: {nested}}}"
    file = write(nested, "wrong.yaml")
    with pytest.raises(UsageError, match=f"wrong.yaml: unknown key {unknown}; did you mean {nearest}"):
        load_config([write(), file], [])


@pytest.mark.parametrize(
    "override",
    [
        "model.lora.rank=eight",
        "model.lora.rank=2.5",
        "training.lr=fast",
        "model.lora.targets=q_proj",
        "model.labels={a: 1}",
        "model.lora.ranks=[1]",
        "run.key=null",
        "training.gradient_checkpointing=perhaps",
    ],
)
def test_a_wrong_type_names_the_override_and_the_key(write: Write, override: str):
    with pytest.raises(UsageError, match=f"^override {override.split('=')[0]}"):
        load_config([write()], [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: 5", "model is a section of keys, not 5"),
        ("model:", "model is a section of keys, not None"),
        ("data: {organizations: {north: a.jsonl}}", r"data.organizations.north is a section of keys"),
        ("- a", "a configuration is a mapping of keys, found list"),
        ("a: b: c", "is not valid YAML"),
        ("run: {name: a}\nrun: {key: b}", "the key 'run' stands there twice"),
        ("run: {key: '${nothing.here}'}", "nothing"),
        ("run: {key: '${oc.env:NO_SUCH_VARIABLE_1}'}", "NO_SUCH_VARIABLE_1"),
        ("run: {key: '\\${x}'}", "run.key: Interpolation key 'x'"),
        (
            "model: {lora: {ranks: {north: [1]}}}",
            r"model.lora.ranks={'north': \[1\]}: must be dict\[str, int\]",
        ),
        ("federation: {groups: {all: north}}", "federation.groups.all: Value 'north'"),
        ("federation: {baselines: [[isolated]]}", r"federation.baselines=.*must be list\[str\]"),
        ("1: 2", "unknown key 1"),
    ],
)
def test_files_that_are_no_configuration(write: Write, text: str, message: str):
    with pytest.raises(UsageError, match=message):
        load_config([write(), write(text, "wrong.yaml")], [])


def test_unreadable_files(tmp_path: Path):
    with pytest.raises(UsageError, match=r"cannot read .*nowhere\.yaml: No such file"):
        load_config([str(tmp_path / "nowhere.yaml")], [])
    (tmp_path / "latin.yaml").write_bytes("run: {name: Zürich}".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.yaml is not valid UTF-8"):
        load_config([str(tmp_path / "latin.yaml")], [])


@pytest.mark.parametrize("text", ["run.key", "=3", "run.key=@x", "run.key=[1"])
def test_overrides_that_are_none(write: Write, text: str):
    with pytest.raises(UsageError, match="override"):
        load_config([write()], [text])


def test_files_merge_left_to_right_and_overrides_come_last(write: Write):
    first = write(GOOD + "training: {lr: 0.5, batch_size: 3}\nfederation: {rounds: 7}", "first.yaml")
    second = write("training: {lr: 0.25}\nfederation: {rounds: 8, local_steps: 2}", "second.yaml")
    config = load_config([first, second], ["federation.rounds=9", "federation.rounds=10"])
    assert (config.training.lr, config.training.batch_size) == (0.25, 3)
    assert (config.federation.rounds, config.federation.local_steps) == (10, 2)
    assert load_config([second, first], []).training.lr == 0.5


def test_relative_paths_are_those_of_the_file_that_names_them(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for folder in ("a", "b"):
        (tmp_path / folder / "set").mkdir(parents=True)
        (tmp_path / folder / "north.jsonl").touch()
        (tmp_path / folder / "made").mkdir()
    first = write(GOOD.replace("some/model", "made") + "  public: north.jsonl", "a/c.yaml")
    second = write("data: {validation: north.jsonl, test: 'hf:set:dev', train: hf:hub/set}", "b/c.yaml")
    config = load_config([first, second], ["data.organizations.south.test=north.jsonl"])
    assert config.data.organizations["north"].train == str(tmp_path / "a" / "north.jsonl")
    assert config.data.organizations["south"].train == "south.jsonl", "what does not exist stays as it is"
    assert config.data.organizations["south"].test == "north.jsonl", "an override is relative to the working folder"
    assert config.data.public == str(tmp_path / "a" / "north.jsonl")
    assert config.data.validation == str(tmp_path / "b" / "north.jsonl")
    assert config.data.test == f"hf:{tmp_path / 'b' / 'set'}:dev"
    assert config.data.train == "hf:hub/set"
    assert config.model.base == "made", "the word, not a folder that happens to have its name"


def test_words_that_yaml_takes_for_something_else(write: Write):
    config = load_config(
        [write(GOOD + "run: {key: 2026-01-01}")],
        ["model.labels=[no, yes, off]", "training.lr=5e-3", "run.name=on"],
    )
    assert config.run.key == "2026-01-01"
    assert config.model.labels == ["no", "yes", "off"]
    assert config.training.lr == 0.005
    assert config.run.name == "on"
    address = "0x00Ab" + "1" * 36
    config = load_config([write(GOOD)], [f"ledger.public.contract={address}", "federation.rounds=007"])
    assert (config.ledger.public.contract, config.federation.rounds) == (address, 7)


def test_yaml_gives_the_same_configuration_back(write: Write):
    for files, overrides in [(shipped(path), []) for path in SHIPPED] + [([write()], ["training.lr=1e-9"])]:
        config = load_config(files, overrides)
        assert load_config([write(to_yaml(config), "again.yaml")], []) == config


words = st.text(st.characters(codec="utf-8", exclude_characters="$?"), max_size=20)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(words, st.lists(words, unique=True), st.floats(1e-300, 1e300), st.integers(1, 2**60))
def test_any_value_comes_back_from_yaml(
    write: Write, config_of: Callable[..., Config], key: str, labels: list[str], lr: float, batch: int
):
    config = config_of("/nowhere/train.jsonl")
    config.run.key, config.model.labels, config.training.lr, config.training.batch_size = (
        key,
        labels,
        lr,
        batch,
    )
    assert load_config([write(to_yaml(config), "again.yaml")], []) == config
