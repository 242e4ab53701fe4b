"""What a certificate's statement must fulfil by itself: claims, models, starts, and deletion proofs."""

from ledger import provenance
from ledger import removal as rm
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR
from ledger.manifest_proof import EMPTY_ROOT, deletion
from ledger.removal import Removal, Shard
from ledger.shape import digests, table_of


def check_claims(removal: Removal) -> str:
    """What it says agrees with itself, and claims no more than the method gives. Raises LedgerError."""
    if removal.guarantee not in rm.GUARANTEES or removal.method not in rm.METHODS:
        raise LedgerError(f"unknown guarantee {removal.guarantee!r} or method {removal.method!r}")
    exact = removal.guarantee in (rm.EXACT_BITWISE, rm.EXACT_DISTRIBUTION)
    if exact and removal.method not in rm.EXACT_METHODS:
        raise LedgerError(f"claims {removal.guarantee}, but {removal.method} is an approximate method")
    same_class = removal.reproducibility["class"] == rm.BITWISE
    if removal.noise not in ("none", "fresh") or removal.reproducibility["class"] not in (rm.BITWISE, rm.TOLERANCE):
        raise LedgerError("noise is none or fresh, the reproducibility class bitwise or tolerance")
    if removal.guarantee == rm.EXACT_BITWISE and (removal.noise != "none" or not same_class):
        raise LedgerError("claims EXACT_BITWISE, but noise was drawn anew, or another hardware class replayed it")
    if removal.noise == "fresh" and not removal.privacy:
        raise LedgerError("noise was drawn anew, but no privacy spend is stated")
    if removal.participation != "recorded":
        raise LedgerError(f"participation is {removal.participation!r}, not 'recorded'")
    if removal.steps["replayed"] > removal.steps["total"]:
        raise LedgerError(f"{removal.steps['replayed']} of {removal.steps['total']} steps were replayed")
    for what, kind in (("digests", "digest"), ("keys", "digest"), ("cost", "str"), ("timings", "str"),
                       ("checks", "str")):  # fmt: skip
        table_of(getattr(removal, what), kind, what)
    table_of(removal.reproducibility["environments"], "digest", "environments")
    if "manifest" not in removal.digests:
        raise LedgerError("digests: the run manifest is missing")
    _check_models(removal)
    _check_start(removal, exact)
    share = removal.steps["replayed"] / max(1, removal.steps["total"])
    return f"{removal.steps['replayed']} of {removal.steps['total']} steps replayed ({share:.1%})"


def _check_models(removal: Removal) -> None:
    models = [entry for entry in removal.closure if entry.kind == provenance.MODEL]
    unused = not models and removal.model["old"] == removal.model["new"]  # the records were in no step
    if not unused and (removal.model["old"], removal.model["new"]) not in {(entry.old, entry.new) for entry in models}:
        raise LedgerError("model: its old and new digest are not those of a model in the closure")
    if any(entry.new not in (None, removal.model["new"]) for entry in models):
        raise LedgerError("model: the closure names two new models")
    digests(removal.withdrawn, "withdrawn")
    if removal.withdrawn != sorted({entry.old for entry in models if entry.old != entry.new}):
        raise LedgerError("withdrawn: is not the list of the models that the closure replaces")


def _check_start(removal: Removal, exact: bool) -> None:
    """Every cohort that was replayed says from which adapter, and that one is older than all replayed ones."""
    first: dict[str, int] = {}
    for entry in removal.closure:
        if entry.kind == provenance.ADAPTER and entry.new is not None:
            cohort, _, round_ = entry.name.rpartition("@")
            if not round_.isdecimal():
                raise LedgerError(f"closure: {entry.name!r} is not the name of an adapter")
            first[cohort] = min(int(round_), first.get(cohort, int(round_)))
    start = {begun.cohort: begun for begun in removal.start}
    if len(start) != len(removal.start) or (exact and set(start) != set(first)):
        raise LedgerError("start: is not one adapter for each cohort that was replayed")
    for cohort, begun in start.items():
        if begun.round >= first.get(cohort, begun.round + 1):
            raise LedgerError(f"start: cohort {cohort!r} goes on from round {begun.round}, which the closure replaces")


def check_deletion(removal: Removal) -> str:
    """Each shard's new root is its old one without the records that were asked for, and nothing else changed.

    Raises LedgerError.
    """
    wanted: dict[tuple[str, str, str], set[str]] = {}
    whole: set[str] = set()
    seen: set[str] = set()
    for request in removal.requests:
        if request.scope not in rm.SCOPES or request.request in seen:
            raise LedgerError(f"request {request.request[:16]}: comes twice, or has no known scope")
        seen.add(request.request)
        if not {request.organization, COORDINATOR} & set(removal.issuers):
            raise LedgerError(f"request {request.request[:16]}: {request.organization} is not an issuer")
        if request.scope == rm.ORGANIZATION:
            whole.add(request.organization)
        elif not any(entry.commitments for entry in request.removed):
            raise LedgerError(f"request {request.request[:16]}: names no record")
        for entry in request.removed:
            slot = (request.organization, entry.cohort, entry.split)
            wanted.setdefault(slot, set()).update(digests(entry.commitments, "commitments"))
    shards = {(shard.organization, shard.cohort, shard.split): shard for shard in removal.shards}
    if not shards or len(shards) != len(removal.shards) or set(shards) != set(wanted):
        raise LedgerError("shards: are not those that the requests name, each once")
    if any(shard.split not in (rm.TRAIN, rm.TEST) for shard in removal.shards):
        raise LedgerError("shards: a split is neither train nor test")
    for slot, shard in shards.items():
        if shard.organization in whole:
            if shard.new_root != EMPTY_ROOT or shard.proof:
                raise LedgerError(f"shard {node_name(shard)}: is not empty, though the organization leaves")
        else:
            try:
                deletion(shard.proof, wanted[slot], shard.old_root, shard.new_root)
            except LedgerError as error:
                raise LedgerError(f"shard {node_name(shard)}: {error}") from None
    rows = [(e.kind, e.name, e.old, e.new) for e in removal.closure if e.kind == provenance.SHARD]
    if sorted(rows) != sorted((provenance.SHARD, node_name(s), s.old_root, s.new_root) for s in removal.shards):
        raise LedgerError("closure: its shards are not those of the deletion proofs")
    records = sum(len(names) for slot, names in wanted.items() if slot[0] not in whole)
    what = [f"{records} records"] * (records > 0) + [f"all records of {name}" for name in sorted(whole)]
    return f"{', '.join(what)}, in {len(shards)} shards, were there before and are not after; no other changed"


def node_name(shard: Shard) -> str:
    """Name of a shard in the provenance graph."""
    return provenance.shard_name(shard.organization, shard.cohort if shard.split == rm.TRAIN else provenance.TEST)
