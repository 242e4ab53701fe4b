"""Lineage: what the artifacts of a run were computed from, and what a removal would have to compute again."""

import argparse
import json
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ledger import layout
from ledger.errors import LedgerError
from ledger.graph import MODEL, SHARD, Graph, Node
from ledger.provenance import Source, closure
from ledger.verify_document import read_run_log


def to_dict(graph: Graph, nodes: Collection[Node] | None = None) -> dict[str, Any]:
    """For JSON: ``nodes`` (default: all), ``revoked`` (digests of models) and ``withdrawn`` (numbers of nodes)."""
    shown = graph.nodes if nodes is None else nodes
    return {"nodes": _rows(shown), "revoked": sorted(graph.revoked), "withdrawn": sorted(graph.withdrawn)}


def _rows(nodes: Collection[Node]) -> list[dict[str, Any]]:
    return [{**asdict(node), "parents": list(node.parents)} for node in nodes]


def to_text(graph: Graph, nodes: Collection[Node] | None = None) -> str:
    """One line for each node (default: all): kind, name, digest, and what it was computed from."""
    lines = []
    for node in graph.nodes if nodes is None else nodes:
        parents = ", ".join(f"{graph.nodes[p].kind} {graph.nodes[p].name}" for p in node.parents)
        mark = "  REVOKED" if node.kind == MODEL and node.digest in graph.revoked else ""
        mark = "  WITHDRAWN" if node.index in graph.withdrawn else mark
        digest = node.digest[:16] or "not committed"
        lines.append(f"{node.kind:<11}{node.name:<28}{digest:<17}{'<- ' + parents if parents else ''}{mark}")
    return "\n".join(line.rstrip() for line in lines)


def lineage_text(graph: Graph, digest: str) -> str:
    """What an artifact was computed from, and what was computed from it. Raises LedgerError as :meth:`Graph.find`."""
    found = graph.find(digest)
    parts = [("computed from", graph.ancestors(found)), ("artifact", found), ("used by", graph.descendants(found))]
    return "\n\n".join(f"{title}:\n{to_text(graph, nodes) if nodes else 'nothing'}" for title, nodes in parts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of :func:`run`."""
    parser.add_argument("run", metavar="RUN", help="run directory, or a bundle of the whole log")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--of", metavar="DIGEST", help="one artifact, by the first 8 or more digits of its digest")
    what.add_argument(
        "--closure", metavar="ORGANIZATION/COHORT", help="what would be computed again without records of this shard"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def run(arguments: argparse.Namespace) -> int:
    """Print the lineage of a run; 0, or 2 where there is none, or no such artifact. Needs neither Ray nor torch."""
    target = Path(arguments.run)
    try:
        if not target.is_file() and not (target / layout.LOG).exists():
            raise LedgerError(f"{target}: there is no run here ({layout.LOG} is missing)")
        graph = read_run_log(target).graph
        if arguments.of is not None:
            found = graph.find(arguments.of)
            content = {
                "artifacts": _rows(found),
                "computed_from": _rows(graph.ancestors(found)),
                "used_by": _rows(graph.descendants(found)),
            }
            text = lineage_text(graph, arguments.of)
        elif arguments.closure is not None:
            nodes = closure(graph, [_source(graph, arguments.closure)])
            content, text = {"closure": _rows(nodes)}, to_text(graph, nodes)
        else:
            content, text = to_dict(graph), to_text(graph)
    except LedgerError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(content) if arguments.json else text)
    return 0


def _source(graph: Graph, name: str) -> Source:
    """The newest version of a shard, whose records may have been used from the first round on."""
    shards = {node.name: node for node in graph.nodes if node.kind == SHARD}
    if name not in shards:
        raise LedgerError(f"lineage: the run has no shard {name!r}; it has {', '.join(sorted(shards)) or 'none'}")
    organization, _, cohort = name.partition("/")
    return Source(organization, cohort, shards[name].digest)
