"""The verb `keys`: rotate and protect key files, admit members of a consortium, revoke lost keys, TLS for Ray."""

import argparse
import json
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  trustchain keys list
  TRUSTCHAIN_KEY_PASSPHRASE=... trustchain keys protect bank
  trustchain keys rotate bank
  trustchain keys consortium new consortium.json --name health --threshold 2 \\
      --member bank=bank.json --member clinic=clinic.json --coordinator coordinator.json
  trustchain keys consortium sign consortium.json --as bank
  trustchain keys consortium propose consortium.json admit lab=lab.json
  trustchain keys consortium show consortium.json
  trustchain keys revoke runs/small bank --reason 'laptop stolen' -o revocation.json
  trustchain keys readmit runs/small bank --reason 'new key, shown in person' -o admission.json
  trustchain keys approve revocation.json --as clinic
  trustchain keys enact runs/small revocation.json
  trustchain keys tls --out tls --hosts 10.0.0.1,10.0.0.2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `trustchain keys`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="keys of a key folder: names, key ids, protected or not, retired ones")
    protect = actions.add_parser("protect", help="encrypt key files with the passphrase in TRUSTCHAIN_KEY_PASSPHRASE")
    protect.add_argument("--remove", action="store_true", help="take the passphrase off")
    rotate = actions.add_parser("rotate", help="make a new key, and retire the old one")
    document = actions.add_parser("document", help="print the identity document of a key, for others")
    for action in (protect, rotate, document):
        action.add_argument("name", metavar="NAME", help="organization, or coordinator")
    _add_consortium(actions.add_parser("consortium", help="who is a member, and how many decide who else is"))
    revoke = actions.add_parser("revoke", help="propose to revoke a lost or stolen key in a run")
    readmit = actions.add_parser("readmit", help="propose one's own new key in a run where the old one was revoked")
    for action in (revoke, readmit):
        action.add_argument("run", metavar="RUN", help="run directory")
        action.add_argument("name", metavar="NAME", help="organization whose key it is")
        action.add_argument("--reason", required=True, metavar="TEXT", help="why; it stands in the log")
        action.add_argument("-o", "--output", required=True, metavar="FILE", help="the proposal, for the others")
    approve = actions.add_parser("approve", help="approve a revocation or an admission as another organization")
    approve.add_argument("file", metavar="FILE", help="the proposal; the approval is added to it")
    enact = actions.add_parser("enact", help="log a revocation or an admission that enough organizations approved")
    enact.add_argument("run", metavar="RUN", help="run directory, at rest")
    enact.add_argument("file", metavar="FILE", help="the proposal with its approvals")
    _add_signer(approve)
    for action in (listing, protect, rotate, document, readmit, approve):
        _add_folder(action)
    tls = actions.add_parser("tls", help="make certificates for TLS between the nodes of a Ray cluster")
    tls.add_argument("--out", required=True, metavar="DIR", help="folder of the authority and the nodes' certificates")
    tls.add_argument(
        "--hosts", required=True, metavar="HOST,...", help="address or name of every node; several of one: joined by +"
    )
    tls.add_argument("--days", type=int, default=365, help="the nodes' certificates are valid so long (default: 365)")
    tls.add_argument("--place", default="", metavar="DIR", help="where a node's folder will lie on the node itself")
    for action in (listing, rotate, tls):
        action.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def _add_consortium(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    new = steps.add_parser("new", help="write a document whose first version all members must sign")
    new.add_argument("file", metavar="FILE", help="the document to write")
    new.add_argument("--name", required=True, help="of the consortium")
    new.add_argument("--threshold", type=int, required=True, metavar="K", help="members that decide on later versions")
    new.add_argument(
        "--member", action="append", required=True, metavar="NAME=FILE", help="identity document; repeat it"
    )
    new.add_argument("--coordinator", required=True, metavar="FILE", help="identity document of the coordinator")
    propose = steps.add_parser("propose", help="propose the next version")
    propose.add_argument("file", metavar="FILE", help="the document")
    propose.add_argument("change", choices=("admit", "remove", "replace", "threshold", "coordinator"))
    propose.add_argument(
        "what", metavar="WHAT", help="NAME=FILE to admit or replace, NAME to remove, K, FILE of the coordinator"
    )
    propose.add_argument("--instead", action="store_true", help="drop a version that still waits for signatures")
    sign = steps.add_parser("sign", help="sign the version that waits, as a member of the one in force")
    sign.add_argument("file", metavar="FILE", help="the document")
    _add_signer(sign)
    _add_folder(sign)
    show = steps.add_parser("show", help="check all versions, and show them")
    show.add_argument("file", metavar="FILE", help="the document")
    show.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def _add_signer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--as", dest="signer", required=True, metavar="NAME", help="organization that signs")


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keystore", default="", metavar="DIR", help="key folder (default: $TRUSTCHAIN_HOME/keys)")


def run(arguments: argparse.Namespace) -> int:
    """Run one action; 0. Raises LedgerError, TrustChainError."""
    result = _ACTIONS[arguments.action](arguments)
    if getattr(arguments, "json", False):
        print(json.dumps(result))
    return 0


def folder_of(arguments: argparse.Namespace) -> Path:
    """The key folder of a command line."""
    from trustchain_ray.keystore import home

    return Path(arguments.keystore) if arguments.keystore else home() / "keys"


def _list(arguments: argparse.Namespace) -> dict[str, Any]:
    from ledger.identity import is_protected, load
    from ledger.key_files import retired_files

    folder = folder_of(arguments)
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.pem")):
        if not file.name.endswith(".retired.pem"):
            name = file.stem
            found[name] = {
                "key_id": load(name, folder).key_id,
                "protected": is_protected(file.read_bytes()),
                "retired": [old.name.split(".")[-3] for old in retired_files(name, folder)],
            }
    for name, row in found.items():
        state = "protected" if row["protected"] else "plain"
        print(f"{name:<24}{row['key_id'][:16]}  {state:<10}{len(row['retired'])} retired")
    if not found:
        print(f"{folder}: holds no key")
    return found


def _protect(arguments: argparse.Namespace) -> dict[str, Any]:
    from ledger.key_files import protect

    changed = protect(arguments.name, folder_of(arguments), arguments.remove)
    state = "without a passphrase" if arguments.remove else "protected by the passphrase"
    for file in changed:
        print(f"{file}  {state}")
    if not changed:
        print(f"{arguments.name}: all key files are {state} already")
    return {}


def _rotate(arguments: argparse.Namespace) -> dict[str, Any]:
    from ledger.identity import COORDINATOR
    from ledger.key_files import rotate

    old, new = rotate(arguments.name, folder_of(arguments))
    print(f"{old.name}  {old.key_id[:16]} -> {new.key_id[:16]}")
    if old.name == COORDINATOR:
        print("new runs begin with the new key; a run that has begun keeps the key of its log")
    else:
        print("a run that has begun learns of it when it is opened the next time: resume it, or keep the retired file")
    return {"name": old.name, "old": old.key_id, "new": new.key_id}


def _document(arguments: argparse.Namespace) -> dict[str, Any]:
    from ledger.canonical import canonical_json
    from ledger.identity import load, public_document

    print(canonical_json(public_document(load(arguments.name, folder_of(arguments)))).decode())
    return {}


def _consortium(arguments: argparse.Namespace) -> dict[str, Any]:
    from trustchain_ray.keys_verb.consortium_steps import run_step

    return run_step(arguments)


def _decide(arguments: argparse.Namespace) -> dict[str, Any]:
    from trustchain_ray.keys_verb import decisions

    return {
        "revoke": decisions.revoke, "readmit": decisions.readmit, "approve": decisions.approve,
        "enact": decisions.enact,
    }[arguments.action](arguments)  # fmt: skip


def _tls(arguments: argparse.Namespace) -> dict[str, Any]:
    from trustchain_ray.tls import make_certificates

    hosts = [host for host in arguments.hosts.split(",") if host]
    folders = make_certificates(Path(arguments.out), hosts, arguments.days, arguments.place)
    for folder in folders:
        print(f"{folder}  for the node alone: ca.crt node.crt node.key ray.env")
    print(f"{Path(arguments.out) / 'ca.key'}  stays here; it makes certificates of further nodes")
    print(f"next  on every node: . {arguments.place or folders[0]}/ray.env && ray start ...")
    return {"nodes": [str(folder) for folder in folders]}


_ACTIONS = {
    "list": _list,
    "protect": _protect,
    "rotate": _rotate,
    "document": _document,
    "consortium": _consortium,
    "revoke": _decide,
    "readmit": _decide,
    "approve": _decide,
    "enact": _decide,
    "tls": _tls,
}
