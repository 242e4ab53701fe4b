"""Steps of `trustchain keys consortium`: new, propose, sign, show."""

import argparse
from pathlib import Path
from typing import Any

from ledger import consortium as papers
from ledger.consortium import Consortium, read_consortium
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR, load
from ledger.identity_document import read_identity
from trustchain_ray.errors import UsageError
from trustchain_ray.keys_verb.command import folder_of


def run_step(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a step, and show where the document stands.

    Raises
    ------
    LedgerError
        As the functions of :mod:`ledger.consortium`.
    UsageError
        A file is no identity document, or the change is none.
    """
    path = Path(arguments.file)
    if arguments.step == "new":
        if path.exists():
            raise UsageError(f"{path}: is there already; propose a change of it, or name another file")
        members = dict(_member(text) for text in arguments.member)
        if len(members) != len(arguments.member):
            raise UsageError("keys consortium new: a member is named twice")
        coordinator = _key_of(arguments.coordinator, COORDINATOR)
        papers.write(papers.found(arguments.name, arguments.threshold, members, coordinator), path)
    elif arguments.step == "propose":
        papers.write(_proposed(arguments, read_consortium(path)), path)
    elif arguments.step == "sign":
        papers.write(papers.sign(read_consortium(path), load(arguments.signer, folder_of(arguments))), path)
    return _show(read_consortium(path))


def _proposed(arguments: argparse.Namespace, document: Consortium) -> Consortium:
    change, what = arguments.change, arguments.what
    members = dict(document.force.members)
    if change == "threshold":
        if not what.isdecimal():
            raise UsageError(f"keys consortium propose threshold {what}: is no number")
        return papers.propose(document, threshold=int(what), instead=arguments.instead)
    if change == "coordinator":
        return papers.propose(document, coordinator=_key_of(what, COORDINATOR), instead=arguments.instead)
    name = what if change == "remove" else what.partition("=")[0]
    if (change == "admit") == (name in members):
        raise UsageError(
            f"keys consortium propose {change} {what}: {name} is {'' if name in members else 'not '}a member"
        )
    if change == "remove":
        del members[name]
    else:
        members |= [_member(what)]
    return papers.propose(document, members=members, instead=arguments.instead)


def _member(text: str) -> tuple[str, str]:
    name, _, file = text.partition("=")
    if not name or not file:
        raise UsageError(f"{text!r}: is not NAME=FILE of an identity document")
    return name, _key_of(file, name)


def _key_of(file: str, name: str) -> str:
    try:
        return str(read_identity(Path(file).read_bytes().strip(), name)["public_key"])
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
    except LedgerError as error:
        raise UsageError(f"{file}: {error}; make it with: trustchain keys document {name}") from None


def _show(document: Consortium) -> dict[str, Any]:
    first = document.versions[0]
    print(f"consortium {first.name}, founded by version 1 {first.digest}")
    rows = []
    for version in document.versions:
        state = "waits" if version is document.pending else "counts"
        signed = document.signed_by(version)
        print(
            f"version {version.version:<4}{state:<8}{len(version.members)} members, {version.threshold} decide; "
            f"signed by {', '.join(signed) or 'nobody'}"
        )
        rows.append({"version": version.version, "digest": version.digest, "state": state, "signed": signed})
    newest = document.versions[-1]
    for name, key in sorted(newest.keys.items()):
        print(f"  {name:<24}{key}")
    if document.missing():
        print(f"next    {document.missing()} more of {', '.join(sorted(document.signers(newest)))} sign it")
    return {"name": first.name, "versions": rows, "members": dict(newest.members), "missing": document.missing()}
