# ruff: noqa: RUF009 - `_f` makes a field, it is no default
"""The configuration: its schema, its defaults and its checks.

Every field carries its documentation in ``metadata["doc"]``; `docs/configuration.md` is made from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from ledger.errors import LedgerError
from ledger.identity import COORDINATOR, check_name
from trustchain_ray.errors import UsageError
from trustchain_ray.policy import settings
from trustchain_ray.policy.settings import ParticipationConfig
from trustchain_ray.privacy import settings as privacy_settings
from trustchain_ray.privacy.settings import PrivacyConfig
from trustchain_ray.robust import settings as robust_settings
from trustchain_ray.secure_aggregation import settings as secure_settings
from trustchain_ray.sweep import settings as sweep_settings
from trustchain_ray.sweep.settings import SweepConfig


def _f(default: Any, doc: str, *, path: bool = False, entries: type | None = None) -> Any:
    """A documented field; `path` marks values that are resolved against the YAML file's folder, `entries` is
    the schema of the values of a table."""
    metadata = {"doc": doc, "path": path, "entries": entries}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    if is_dataclass(default) and isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class RunConfig:
    name: str = _f("run", "Name of the run; the run directory is `<dir>/<name>` unless `--run` says otherwise.")
    dir: str = _f("runs", "Folder that holds run directories.")
    key: str = _f("trustchain", "The run's key: every random choice is derived from it.")
    keystore: str = _f("", "Folder of the identity keys; empty: `$TRUSTCHAIN_HOME/keys`, else `~/.trustchain/keys`.")


@dataclass
class MadeModelConfig:
    hidden: int = _f(64, "Hidden size of a model made from this config.")
    layers: int = _f(2, "Number of transformer layers.")
    heads: int = _f(4, "Number of attention heads.")
    intermediate: int = _f(128, "Width of the feed-forward layers.")
    vocabulary: int = _f(512, "Size of the byte-level BPE vocabulary, built from `data.public` alone.")
    warmup_steps: int = _f(0, "Full-parameter training steps on `data.public` before the federation starts.")
    warmup_batch: int = _f(32, "Rows of a warm-up step.")
    warmup_lr: float = _f(3e-3, "Learning rate of the warm-up.")


@dataclass
class LoraConfig:
    rank: int = _f(8, "LoRA rank r.")
    ranks: dict[str, int] = _f({}, "Own rank of single organizations (forms `flora` and `svd`).")
    alpha: float = _f(16.0, "LoRA alpha; the update is scaled by alpha / rank.")
    targets: list[str] = _f(["q_proj", "v_proj"], "Module names that get an adapter (suffixes, as in PEFT).")
    form: str = _f("ffa", "How adapters are trained and merged: ffa | fedavg | flora | svd.")


@dataclass
class ModelConfig:
    base: str = _f("made", "`made` (from `model.made`), a local folder, or a hub id.", path=True)
    task: str = _f("causal", "causal | classification.")
    labels: list[str] = _f([], "Label set of a classification, in the order of the class indices.")
    dtype: str = _f("float32", "Type of the frozen base: float32 | bfloat16. LoRA tensors are float32.")
    max_length: int = _f(128, "Longest row in tokens; longer texts are cut.")
    pooling: str = _f("own", "What a classification head reads: own (as the base has it) | mean (of all tokens).")
    made: MadeModelConfig = _f(MadeModelConfig, "A model made from a config, for tests and laptops.")
    lora: LoraConfig = _f(LoraConfig, "The adapter.")


@dataclass
class ColumnsConfig:
    id: str = _f("id", "Column of the stable record id.")
    subject: str = _f("", "Column of the person the record belongs to; empty: the id.")
    organization: str = _f("organization", "Column of the organization (`data.split: column`).")
    text: str = _f("text", "Column of a plain text (or of the text to classify).")
    prompt: str = _f("prompt", "Column of the prompt; used when the row has it.")
    answer: str = _f("answer", "Column of the answer; the loss is taken on it alone.")
    label: str = _f("label", "Column of the class label.")


@dataclass
class SourceConfig:
    train: str = _f(
        "",
        "Training records: .jsonl, .csv, .tsv or .parquet (or .xz/.gz), or `hf:<path or hub id>[:split]`.",
        path=True,
    )
    test: str = _f(
        "", "Test records of this organization; empty: `data.test_share` of the training records.", path=True
    )
    labels: list[str] = _f(
        [], "Labels that this organization uses (empty: all): its loss and predictions choose among them."
    )


@dataclass
class DataConfig:
    split: str = _f(
        "column", "Who holds what: column | sources | dirichlet | subject (all of a person at one organization)."
    )
    train: str = _f("", "One source for all organizations (not `sources`).", path=True)
    test: str = _f("", "Test records (`column`: the organization column; `dirichlet`: shared by all).", path=True)
    organizations: dict[str, SourceConfig] = _f({}, "One source an organization (`sources`).", entries=SourceConfig)
    public: str = _f("", "Public records: vocabulary and warm-up of a made model. Never private.", path=True)
    validation: str = _f("", "Public validation records.", path=True)
    columns: ColumnsConfig = _f(ColumnsConfig, "Names of the columns.")
    split_into: int = _f(4, "Number of organizations of a `dirichlet` or `subject` split.")
    dirichlet_alpha: float = _f(0.5, "Concentration of a Dirichlet split over labels; small is heterogeneous.")
    test_share: float = _f(0.2, "Chance of each record to be held out where there are no test records.")
    bad_rows: str = _f("refuse", "Rows that cannot be read: refuse (stop, naming file and line) | skip (and count).")
    limit: int = _f(0, "At most so many training records an organization (0: all), the first by keyed order.")
    test_limit: int = _f(0, "At most so many test records an organization (0: all).")
    exclude: list[str] = _f(
        [],
        "Left out, after the limits: ids of records or subjects, `organization/` before it for one organization alone, "
        "`organization/*` for a whole one.",
    )


@dataclass
class TrainingConfig:
    engine: str = _f("auto", "auto (deepspeed where CUDA is, else torch) | torch | deepspeed.")
    batch_size: int = _f(16, "Expected records of a step, and the constant divisor of its loss.")
    sampling_rate: float = _f(
        0.0, "Probability that a record is in a step; 0: batch_size / records of the member, in the manifest."
    )
    micro_batch: int = _f(32, "Most rows of one forward pass; a larger step is accumulated.")
    lr: float = _f(1e-3, "Peak learning rate.")
    schedule: str = _f("constant", "constant | linear | cosine, over all steps of the run.")
    warmup_steps: int = _f(0, "Steps of linear learning-rate warm-up.")
    weight_decay: float = _f(0.0, "AdamW weight decay.")
    max_grad_norm: float = _f(0.0, "Clip the gradient of a step to this norm (0: off).")
    threads: int = _f(1, "CPU threads of a worker; part of the hardware class.")
    zero_stage: int = _f(2, "ZeRO stage of the deepspeed engine, 0 to 3.")
    gradient_checkpointing: bool = _f(False, "Recompute activations in the backward pass.")


@dataclass
class FederationConfig:
    rounds: int = _f(5, "Number of rounds.")
    local_steps: int = _f(10, "Steps of a member in a round at effort 1.")
    cohorts: str = _f("one", "one | by_shard | by_organization | by_both | groups.")
    groups: dict[str, list[str]] = _f({}, "Named cohorts of organizations (`cohorts: groups`).")
    shards_per_organization: int = _f(1, "Shards S of every organization (`by_shard`, `by_both`).")
    weights: str = _f("records", "Weight of a member in a merge: records | equal.")
    server_step: float = _f(1.0, "Step of the merged change; 1 is plain averaging.")
    merge_scale: float = _f(1.0, "Factor on the mean of the cohorts that makes the model.")
    participation: str = _f(
        "always",
        "How organizations decide on their effort (0, 1/2 or 1): always | never | random (keyed) | "
        "myopic (best response to the last round) | learned (participation.policy) | file (participation.schedule).",
    )
    quorum: float = _f(0.5, "Least share of organizations whose updates make a round.")
    deadline_s: float = _f(600.0, "Seconds after which a missing organization is left out of a round.")
    evaluate_every: int = _f(1, "Evaluate the model every so many rounds (the last one always).")
    keep_rounds: int = _f(0, "Keep the adapters of so many last rounds (0: all).")
    keep_updates: str = _f(
        "settled", "Keep single updates, too: none | settled (of rounds whose rewards are settled) | all."
    )
    baselines: list[str] = _f([], "Also train: isolated, centralised (centralised moves records: research only).")
    personalization: str = _f("none", "What an organization serves besides: none | head | adapter.")
    personalization_steps: int = _f(0, "Own steps of an organization after the last round (head, adapter).")
    personalization_lr: float = _f(
        0.0, "Peak learning rate of the own steps, on a schedule of their own; 0: training.lr."
    )


@dataclass
class TrustConfig:
    max_update_norm: float = _f(1e3, "Refuse an update whose change has a larger L2 norm.")
    rule: str = _f(
        "mean",
        "How a cohort's updates merge: mean | norm_bound (clipped to their median norm) | trimmed_mean | median | "
        "multi_krum | geometric_median. All but mean and norm_bound take every member once, whatever its weight.",
    )
    across: str = _f(
        "mean",
        "How cohorts merge into the model, where each organization is in one of them (federation.cohorts=groups or "
        "by_organization): the rules of `trust.rule`. It needs no single update, so it goes with secure aggregation.",
    )
    hostile: int = _f(0, "Hostile members f of a cohort that the rule is to stand; for `across`, cohorts with one.")
    mixing: bool = _f(False, "Replace every update by the mean of its nearest ones before the rule (NNM).")
    scan_every: int = _f(
        0,
        "Search for a trigger, a few tokens that move any text into one class, every so many rounds and in the last, "
        "and refuse updates of who planted it (classification); 0: never.",
    )
    expel: int = _f(
        0,
        "Remove an organization that so many scans (`trust.scan_every`) say plants a trigger: all that it ever sent, "
        "exactly, as `unlearn --organization` does; 0: never.",
    )
    exclude_below: float = _f(
        0.0, "Leave an organization out of rounds while its reputation (0 to 1, at first 0.5) is below this; 0: never."
    )
    consortium: str = _f("", "Consortium document (JSON) whose members alone may register; empty: anybody.", path=True)
    secure_aggregation: bool = _f(False, "The coordinator learns the sum of a cohort's updates, and none of them.")
    secure_threshold: int = _f(
        0, "Members of a cohort that must stay to the end of a secure sum; 0: more than two thirds, 3 at least."
    )


@dataclass
class ResourcesConfig:
    mode: str = _f("dedicated", "dedicated (own workers an organization) | pooled (simulation, no isolation).")
    workers: int = _f(1, "Ranks of an organization's worker group (dedicated), or workers of the pool (pooled).")
    cpus_per_worker: float = _f(1.0, "CPUs that Ray reserves for a rank.")
    gpus_per_worker: float = _f(0.0, "GPUs of a rank; a fraction shares one GPU between organizations.")
    pin_organizations: bool = _f(False, "Place each organization on nodes with the custom resource `org_<name>`.")
    address: str = _f("", "Ray cluster to join; empty: the job's or RAY_ADDRESS's cluster, else a local one.")
    max_restarts: int = _f(3, "Rebuild a dead worker group or organization at most so often.")


@dataclass
class PrivateChainConfig:
    kind: str = _f("sqlite", "sqlite (the log file of the run alone) | fabric (shared on Hyperledger Fabric, too).")
    profile: str = _f("", "Fabric connection profile, JSON or YAML.")
    msp: str = _f("", "MSP folder of the client that submits (signcerts, keystore).")
    organization: str = _f("", "Organization of the profile whose peer is asked; empty: the profile's own.")
    channel: str = _f("trustchain", "Channel of the consortium.")
    chaincode: str = _f("trustchain", "Name under which the chaincode is committed.")
    approvals: int = _f(1, "Organizations (k of `members`) that must endorse a model release or a certificate.")
    members: list[str] = _f([], "MSP ids of these organizations; empty: that of `msp` alone.")
    endorsers: list[str] = _f([], "MSP ids whose peers endorse, asked all at once; empty: the peer finds out who must.")
    deadline_s: float = _f(30.0, "Longest wait for any answer of a peer.")


@dataclass
class PublicChainConfig:
    kind: str = _f("embedded", "embedded (an EVM in process, its blocks in the run) | rpc (any EVM node) | none.")
    rpc_url: str = _f("", "JSON-RPC address of a node; `$NAME` stands for an environment variable.")
    chain_id: int = _f(0, "Chain id that the node must have (0: whichever it has).")
    contract: str = _f("", "Consortium contract of `trustchain chain deploy`; empty: the run deploys a log of its own.")
    key_env: str = _f("TRUSTCHAIN_ETH_KEY", "Environment variable with the anchoring account's private key.")
    keystore: str = _f("", "Encrypted JSON key file of the account instead; `key_env` then holds its passphrase.")
    signer: str = _f("", "`module:function` that signs instead, so that the key stays in a KMS or HSM.")
    confirmations: int = _f(12, "Blocks after which an anchor counts as final where a node has no `finalized` tag.")
    max_fee_gwei: float = _f(500.0, "Never bid more than this for a unit of gas.")


@dataclass
class LedgerConfig:
    anchor_every: int = _f(5, "Sign and anchor a tree head every so many rounds (and at the end).")
    witnesses: bool = _f(True, "Organizations check and cosign every tree head.")
    drain_s: float = _f(30.0, "At the end, wait at most so long for chains and witnesses; the rest is drained later.")
    private: PrivateChainConfig = _f(PrivateChainConfig, "The chain among the organizations.")
    public: PublicChainConfig = _f(PublicChainConfig, "The public chain.")


@dataclass
class Config:
    run: RunConfig = _f(RunConfig, "The run and its key.")
    model: ModelConfig = _f(ModelConfig, "The base model and its adapter.")
    data: DataConfig = _f(DataConfig, "Records of the organizations.")
    training: TrainingConfig = _f(TrainingConfig, "Local training.")
    federation: FederationConfig = _f(FederationConfig, "Rounds, cohorts and merging.")
    participation: ParticipationConfig = _f(ParticipationConfig, "The game of taking part.")
    sweep: SweepConfig = _f(SweepConfig, "Grids of configurations.")
    privacy: PrivacyConfig = _f(PrivacyConfig, "Differential privacy.")
    trust: TrustConfig = _f(TrustConfig, "Checks on updates.")
    resources: ResourcesConfig = _f(ResourcesConfig, "Ray actors and their resources.")
    ledger: LedgerConfig = _f(LedgerConfig, "The log and its anchors.")


CHOICES = {
    "model.task": ("causal", "classification"),
    "model.dtype": ("float32", "bfloat16"),
    "model.pooling": ("own", "mean"),
    "model.lora.form": ("ffa", "fedavg", "flora", "svd"),
    "data.split": ("column", "sources", "dirichlet", "subject"),
    "data.bad_rows": ("refuse", "skip"),
    "training.engine": ("auto", "torch", "deepspeed"),
    "training.schedule": ("constant", "linear", "cosine"),
    "federation.cohorts": ("one", "by_shard", "by_organization", "by_both", "groups"),
    "federation.weights": ("records", "equal"),
    "federation.keep_updates": ("none", "settled", "all"),
    "federation.participation": ("always", "never", "random", "myopic", "learned", "file"),
    "federation.personalization": ("none", "head", "adapter"),
    "resources.mode": ("dedicated", "pooled"),
    "trust.rule": robust_settings.RULES,
    "trust.across": robust_settings.RULES,
    "ledger.private.kind": ("sqlite", "fabric"),
    "ledger.public.kind": ("embedded", "rpc", "none"),
    **settings.CHOICES,
    **sweep_settings.CHOICES,
    **privacy_settings.CHOICES,
}
BASELINES = ("isolated", "centralised")
RESERVED = (COORDINATOR, "centralised")
"""Names that no organization may have: identities and baselines have them."""

# (path, least, most): both ends are allowed, None is open.
RANGES: tuple[tuple[str, float | None, float | None], ...] = (
    ("model.max_length", 4, None),
    ("model.lora.rank", 1, None),
    ("model.lora.alpha", 1e-9, None),
    ("model.made.hidden", 8, None),
    ("model.made.layers", 1, None),
    ("model.made.heads", 1, None),
    ("model.made.intermediate", 8, None),
    ("model.made.vocabulary", 300, None),
    ("model.made.warmup_steps", 0, None),
    ("model.made.warmup_batch", 1, None),
    ("model.made.warmup_lr", 0, None),
    ("data.split_into", 1, None),
    ("data.dirichlet_alpha", 1e-6, None),
    ("data.test_share", 0, 0.9),
    ("data.limit", 0, None),
    ("data.test_limit", 0, None),
    ("training.batch_size", 1, None),
    ("training.sampling_rate", 0, 1),
    ("training.micro_batch", 1, None),
    ("training.lr", 0, None),
    ("training.warmup_steps", 0, None),
    ("training.weight_decay", 0, None),
    ("training.max_grad_norm", 0, None),
    ("training.threads", 1, None),
    ("training.zero_stage", 0, 3),
    ("federation.rounds", 1, None),
    ("federation.local_steps", 1, None),
    ("federation.shards_per_organization", 1, None),
    ("federation.server_step", 0, None),
    ("federation.merge_scale", 0, None),
    ("federation.quorum", 0, 1),
    ("federation.deadline_s", 1e-3, None),
    ("federation.evaluate_every", 1, None),
    ("federation.keep_rounds", 0, None),
    ("federation.personalization_steps", 0, None),
    ("federation.personalization_lr", 0, None),
    ("trust.max_update_norm", 1e-12, None),
    ("trust.hostile", 0, None),
    ("trust.exclude_below", 0, 0.5),
    ("trust.scan_every", 0, None),
    ("trust.expel", 0, None),
    ("trust.secure_threshold", 0, None),
    ("resources.workers", 1, None),
    ("resources.cpus_per_worker", 0, None),
    ("resources.gpus_per_worker", 0, None),
    ("resources.max_restarts", 0, None),
    ("ledger.anchor_every", 1, None),
    ("ledger.drain_s", 0, None),
    ("ledger.private.approvals", 1, None),
    ("ledger.private.deadline_s", 0.1, None),
    ("ledger.public.chain_id", 0, None),
    ("ledger.public.confirmations", 1, None),
    ("ledger.public.max_fee_gwei", 0, None),
    *settings.RANGES,
    *sweep_settings.RANGES,
    *privacy_settings.RANGES,
)


def get(config: Any, path: str) -> Any:
    """The value at a dotted path of a config object."""
    for part in path.split("."):
        config = getattr(config, part)
    return config


def check(config: Config) -> None:
    """Refuse impossible values; one message with all that is wrong.

    Raises
    ------
    UsageError
        Each line names the key, its value and what is allowed.
    """
    wrong: list[str] = [
        f"{path}={value!r}: must be {str(hint).replace('trustchain_ray.config.', '')}"
        for path, value, hint in _containers(config)
        if not _fits(value, hint)
    ]
    wrong += impossible_values(config)
    for name in config.federation.baselines:
        if name not in BASELINES and isinstance(name, str):
            wrong.append(f"federation.baselines: {name!r}; choose from {', '.join(BASELINES)}")
    if not wrong:
        wrong = list(_inconsistencies(config))
    if wrong:
        raise UsageError("the configuration does not fit:\n  " + "\n  ".join(wrong))


def impossible_values(config: Config, below: str = "") -> Iterator[str]:
    """Yield each value that is not among its choices, or out of its range; of the keys that begin with `below`."""
    for path, allowed in CHOICES.items():
        if path.startswith(below) and (value := get(config, path)) not in allowed:
            yield f"{path}={value!r}: choose one of {', '.join(allowed)}"
    for path, least, most in RANGES:
        if not path.startswith(below):
            continue
        value = get(config, path)
        low = least is not None and value < least
        high = most is not None and value > most
        if not math.isfinite(value):
            yield f"{path}={value}: must be a finite number"
        elif low or high:
            bounds = f"at least {least:g}" if most is None else f"from {least:g} to {most:g}"
            yield f"{path}={value}: must be {bounds}"


def _containers(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, value and type of every list and table; OmegaConf does not look inside them far enough."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if is_dataclass(value):
            yield from _containers(value, f"{prefix}{name}.")
        elif get_origin(hint) in (list, dict):
            yield prefix + name, value, hint


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    return isinstance(value, kind)


def name_problem(name: str) -> str | None:
    """Why a name cannot be an organization's: it names its key, its files and its cohort."""
    if name in RESERVED:
        return f"organization name {name!r} is taken; choose another one"
    return _file_problem(name, "organization name")


def _file_problem(name: str, what: str) -> str | None:
    """Why a name cannot be the name of a file."""
    try:
        check_name(name)
    except LedgerError as error:
        return str(error).replace("organization name", what, 1)
    return None


def _inconsistencies(c: Config) -> Iterator[str]:
    """Pairs of values that make no sense together."""
    for key, problem in (
        ("run.name", _file_problem(c.run.name, "name")),
        *(("data.organizations", name_problem(name)) for name in c.data.organizations),
        *(("federation.groups", _file_problem(name, "group name")) for name in c.federation.groups),
    ):
        if problem:
            yield f"{key}: {problem}"
    for name, rank in c.model.lora.ranks.items():
        if rank < 1:
            yield f"model.lora.ranks.{name}={rank}: must be at least 1"
    if not c.model.lora.targets:
        yield "model.lora.targets: name at least one module that gets an adapter"
    for name, source in c.data.organizations.items():
        if c.data.split == "sources" and not source.train:
            yield f"data.organizations.{name}.train: every organization needs a source of training records"
    for name, members in c.federation.groups.items():
        if c.federation.cohorts == "groups" and not members:
            yield f"federation.groups.{name}: an empty group; name its organizations, or take it out"
    if c.model.task == "classification" and len(c.model.labels) < 2:
        yield "model.labels: a classification needs at least two labels"
    if c.model.pooling == "mean" and c.model.task != "classification":
        yield "model.pooling=mean: only a classification has a head that reads a pooled text; leave it own"
    for name, source in c.data.organizations.items():
        unknown = [label for label in source.labels if label not in c.model.labels]
        if unknown:
            yield f"data.organizations.{name}.labels: {', '.join(unknown)} not in model.labels"
    if len(set(c.model.labels)) != len(c.model.labels):
        yield "model.labels: a label stands there twice"
    if c.data.split == "sources" and not c.data.organizations:
        yield "data.organizations: `data.split: sources` needs one source an organization"
    if c.data.split != "sources" and not c.data.train:
        yield f"data.train: `data.split: {c.data.split}` needs a source of training records"
    if c.model.base == "made" and not c.data.public:
        yield "data.public: a made model builds its vocabulary from public records; name a file of them"
    if c.model.base == "made" and c.model.made.hidden % (2 * c.model.made.heads):
        yield "model.made.hidden: must be an even multiple of model.made.heads"
    if c.federation.cohorts == "groups" and not c.federation.groups:
        yield "federation.groups: `federation.cohorts: groups` needs named groups of organizations"
    if c.federation.cohorts in ("one", "by_organization", "groups") and c.federation.shards_per_organization > 1:
        yield (
            f"federation.shards_per_organization={c.federation.shards_per_organization}: "
            f"`cohorts: {c.federation.cohorts}` does not divide records; use by_shard or by_both"
        )
    if c.model.lora.ranks and c.model.lora.form not in ("flora", "svd"):
        yield f"model.lora.ranks: mixed ranks need model.lora.form flora or svd, not {c.model.lora.form}"
    if c.federation.personalization == "head" and c.model.task != "classification":
        yield "federation.personalization=head: only a classification has a head of its own"
    if c.federation.personalization != "none" and c.federation.personalization_steps < 1:
        yield f"federation.personalization_steps: an own {c.federation.personalization} needs own steps"
    if c.resources.mode == "pooled" and c.training.engine == "deepspeed":
        yield "training.engine=deepspeed: pooled workers swap adapters in one process; use engine torch"
    for kind, key in (("learned", "policy"), ("file", "schedule")):
        if c.federation.participation == kind and not getattr(c.participation, key):
            yield f"participation.{key}: `federation.participation: {kind}` needs it"
    yield from settings.problems(c.participation)
    yield from sweep_settings.problems(c.sweep)
    yield from privacy_settings.problems(
        c.privacy, engine=c.training.engine, max_grad_norm=c.training.max_grad_norm, form=c.model.lora.form
    )
    yield from robust_settings.problems(c, robust_settings.known_cohorts(c))
    yield from chain_problems(c.ledger)
    yield from secure_settings.problems(c)
    if c.training.engine == "torch" and c.resources.mode == "dedicated" and c.resources.workers > 1:
        yield "resources.workers: the torch engine is one process; several ranks need deepspeed"


def chain_problems(c: LedgerConfig) -> Iterator[str]:
    """Yield what is wrong with the settings of the chains, beyond choices and ranges."""
    private, public = c.private, c.public
    if private.kind == "fabric":
        for name in ("profile", "msp"):
            if not getattr(private, name):
                yield f"ledger.private.{name}: `ledger.private.kind: fabric` needs it"
        if private.members and private.approvals > len(private.members):
            yield f"ledger.private.approvals={private.approvals}: there are {len(private.members)} members"
    if public.kind == "rpc" and not public.rpc_url:
        yield "ledger.public.rpc_url: `ledger.public.kind: rpc` needs the address of a node"
    if public.key_env and not public.key_env.isidentifier():
        yield "ledger.public.key_env: the name of an environment variable, never the key itself"
    if public.keystore and public.signer:
        yield "ledger.public.signer: leave either keystore or signer out"


def describe(cls: type = Config, prefix: str = "") -> list[tuple[str, str, str]]:
    """All keys of the schema as (dotted path, default, documentation)."""
    rows: list[tuple[str, str, str]] = []
    default = cls()
    for item in fields(cls):
        path, value = prefix + item.name, getattr(default, item.name)
        if is_dataclass(value):
            rows.append((path, "", item.metadata["doc"]))
            rows += describe(type(value), path + ".")
        else:
            rows.append((path, repr(value), item.metadata["doc"]))
        if item.metadata["entries"]:
            rows += describe(item.metadata["entries"], path + ".<name>.")
    return rows
