"""Check what a certificate says of the closure, by the provenance graph of the run."""

from ledger import provenance
from ledger.errors import LedgerError
from ledger.manifest_proof import EMPTY_ROOT
from ledger.removal import EXACT_BITWISE, EXACT_DISTRIBUTION, Removal
from ledger.removal_rules import node_name


def check_closure(removal: Removal, graph: provenance.Graph, until: int) -> str:
    """The closure is the one that the log gives, and what replaces it was made without the records.

    Parameters
    ----------
    removal
        What the certificate states.
    graph
        Of the run's whole log.
    until
        Position of the withdrawal.

    Returns
    -------
    str
        What was found.

    Raises
    ------
    LedgerError
        An artifact is missing or too much, was never logged, was not withdrawn, or comes from the records.
    """
    sources = []
    for shard in removal.shards:
        organization, _, cohort = node_name(shard).partition("/")
        sources.append(provenance.Source(organization, cohort, shard.old_root, max(1, shard.round)))
    nodes = provenance.closure(graph, sources, until)
    expected = [(node.kind, node.name, node.digest) for node in nodes]
    said = [(entry.kind, entry.name, entry.old) for entry in removal.closure]
    if sorted(said) != sorted(expected):
        odd = sorted(set(said) ^ set(expected)) or [entry for entry in said if said.count(entry) > 1]
        kind, name, _ = odd[0]
        what = "lacks" if odd[0] in expected else "names too much:"
        raise LedgerError(f"closure: {what} {kind} {name}, by the log ({len(said)} named, {len(expected)} needed)")
    made = _made(removal, graph, until)
    _check_dropped(removal, graph, nodes)
    before = {(node.kind, node.name, node.digest) for node in graph.nodes if node.event < until}
    for start in removal.start:
        if (provenance.ADAPTER, f"{start.cohort}@{start.round}", start.digest) not in before:
            raise LedgerError(f"start: the log has no such adapter of cohort {start.cohort!r} in round {start.round}")
    if removal.guarantee in (EXACT_BITWISE, EXACT_DISTRIBUTION):
        _check_ancestors(graph, sources, [*made, _new_model(graph, removal.model["new"])])
    return f"all {len(expected)} artifacts that depend on the records, computed again from the log"


def _made(removal: Removal, graph: provenance.Graph, until: int) -> list[provenance.Node]:
    """What was logged after the withdrawal in place of the closure. Raises LedgerError where something was not."""
    by_name: dict[tuple[str, str, str], provenance.Node] = {}
    models: dict[str, provenance.Node] = {}
    for node in graph.nodes:
        if node.event > until:
            by_name[node.kind, node.name, node.digest] = node
            if node.kind == provenance.MODEL:
                models[node.digest] = node
    exact = removal.guarantee in (EXACT_BITWISE, EXACT_DISTRIBUTION)
    made = []
    for entry in removal.closure:
        if entry.new is None or (entry.kind == provenance.SHARD and entry.new == EMPTY_ROOT):
            continue
        is_model = entry.kind == provenance.MODEL
        found = models.get(entry.new) if is_model else by_name.get((entry.kind, entry.name, entry.new))
        if found is not None:
            made.append(found)
        elif entry.new != entry.old:
            raise LedgerError(f"closure: the log has no {entry.kind} {entry.name} with digest {entry.new}")
        elif exact:
            raise LedgerError(f"closure: {entry.kind} {entry.name} read the records, and is kept")
    return made


def _check_dropped(removal: Removal, graph: provenance.Graph, nodes: list[provenance.Node]) -> None:
    """What is said to be dropped of training was withdrawn. Raises LedgerError."""
    dropped = {(entry.kind, entry.name) for entry in removal.closure if entry.new is None}
    for node in nodes:
        of_training = node.kind in (provenance.UPDATE, provenance.ADAPTER)
        if of_training and (node.kind, node.name) in dropped and node.index not in graph.withdrawn:
            raise LedgerError(f"closure: {node.kind} {node.name} is said to be dropped, and was never withdrawn")


def _new_model(graph: provenance.Graph, digest: str) -> provenance.Node:
    models = [node for node in graph.nodes if (node.kind, node.digest) == (provenance.MODEL, digest)]
    if not models:
        raise LedgerError(f"closure: the log has no model {digest[:16]}")
    return models[-1]


def _check_ancestors(
    graph: provenance.Graph, sources: list[provenance.Source], nodes: list[provenance.Node]
) -> None:
    """Nothing that read the records is among what these were computed from. Raises LedgerError."""
    used = {node.index for node in [*nodes, *graph.ancestors(nodes)]}
    model = {node.index for node in nodes[-1:] + graph.ancestors(nodes[-1:])}
    for node in provenance.affected(graph, sources):
        if node.index in used:
            what = "the new model" if node.index in model else "what is said to be made again"
            raise LedgerError(f"closure: {what} comes from {node.kind} {node.name}, which read the records")
