"""Attestation: an organization says in the log what re-executing a removal gave, and counter-signs its certificate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ledger import certificate as ct
from ledger import events as ev
from ledger import layout
from ledger.canonical import canonical_json, sha256_hex
from ledger.errors import LedgerError
from ledger.events import Event
from ledger.publication import publish_from
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.federation import Federation
from trustchain_ray.forgetting.outcome import Finding, Outcome
from trustchain_ray.forgetting.standing import Recorded
from trustchain_ray.forgetting.unlearn import seal_again
from trustchain_ray.manifest import program_digest
from trustchain_ray.robust.reputation import SAME
from trustchain_ray.run_directory import RunDirectory
from trustchain_ray.run_keys import announce_rotations


@dataclass(frozen=True)
class Issued:
    """A certificate of the run: its file, relative to the run directory, and its content."""

    file: str
    data: bytes
    certificate: ct.Certificate


def issued(run: RunDirectory, events: Sequence[Event]) -> dict[str, Issued]:
    """Certificates of a run by the id of their removal."""
    found = {}
    withdrawn = [event.body for event in events if event.type == ev.UNLEARN_WITHDRAWN]
    for file in layout.certificate_files(run.path):
        data = layout.read_file(run.path, file)
        certificate = ct.parse(data)
        served = {request.request for request in certificate.removal.requests}
        removal = next((body["removal"] for body in withdrawn if served.intersection(body["requests"])), None)
        if removal is not None:
            found[removal] = Issued(file, data, certificate)
    return found


class Conditions:
    """Under which what was logged can be made again bit by bit: those of the training, and of each replay.

    Parameters
    ----------
    manifest
        Of the run.
    certificates
        By removal; they say with which program, and in which hardware class, it was replayed.
    """

    def __init__(self, manifest: Mapping[str, Any], certificates: Mapping[str, Issued]) -> None:
        trained = {name: sha256_hex(canonical_json(row)) for name, row in manifest["environments"].items()}
        self.programs: dict[str, str] = {"": manifest["program"]}
        self.environments: dict[str, dict[str, str]] = {"": trained}
        for removal, one in certificates.items():
            said = one.certificate.removal
            self.programs[removal] = said.digests.get("program", "")
            self.environments[removal] = said.reproducibility["environments"]

    def other_program(self, chosen: Sequence[Recorded]) -> str:
        """Why the program of this version cannot repeat the updates; empty: it can."""
        if any(self.programs.get(recorded.removal) != program_digest() for recorded in chosen):
            return "the training program of this version is not the one that trained them"
        return ""

    def other_hardware(self, chosen: Sequence[Recorded], now: Mapping[str, Mapping[str, str]]) -> str:
        """Why the hardware classes that are here cannot repeat the updates; empty: they can."""
        for name in sorted({recorded.organization for recorded in chosen}):
            if now[name]["engine"] != "torch":
                return f"the {now[name]['engine']} engine of {name} sums gradients in an order of its own"
            digest = sha256_hex(canonical_json(dict(now[name])))
            removals = {recorded.removal for recorded in chosen if recorded.organization == name}
            if any(self.environments.get(removal, {}).get(name) != digest for removal in removals):
                return f"{name} works in another hardware class now, with {now[name]['device']}"
        return ""


class Attester:
    """An organization that attests.

    Parameters
    ----------
    certificates
        By removal.
    """

    def __init__(self, name: str, certificates: Mapping[str, Issued]) -> None:
        self.name, self.certificates = name, certificates

    def check(self, removals: set[str], organizations: Sequence[str]) -> None:
        """It is among the organizations, and may attest one of the removals. Raises UsageError."""
        if self.name not in organizations:
            raise UsageError(f"--attest {self.name}: is not in the run; there are {', '.join(organizations)}")
        there = [removal for removal in sorted(removals) if removal in self.certificates]
        if there and not any(self.may(removal) for removal in there):
            raise UsageError(
                f"--attest {self.name}: it issued the certificate itself; another organization must attest it"
            )

    def may(self, removal: str) -> bool:
        """Whether it attests this removal: it has a certificate, which somebody else issued."""
        one = self.certificates.get(removal)
        return one is not None and self.name not in one.certificate.removal.issuers

    def audited(self, outcome: Outcome) -> dict[str, str]:
        """What it says of the updates of every other organization."""
        return {name: _said(finding) for name, finding in sorted(outcome.audits.items()) if name != self.name}

    def sign(self, federation: Federation, outcome: Outcome) -> dict[str, str]:
        """Log what was found, counter-sign what is the same, publish the certificates again, and seal the run.

        What was found of every other organization's updates is an AUDIT, on which its reputation rests; what was found
        of a removal is an UNLEARN_ATTEST.

        Returns
        -------
        dict
            What was attested, by the certificate's file, relative to the run directory.

        Raises
        ------
        TrustChainError
            The organization does not answer, or the ledger cannot work. The same command does it again.
        """
        signed: dict[str, bytes] = {}
        results: dict[str, str] = {}
        events = []
        for name, result in self.audited(outcome).items():
            steps = outcome.audits[name].steps
            body = {"round": federation.finished, "organization": name, "steps": steps, "result": result}
            call = federation.members[self.name].call("sign_event", ev.AUDIT, body)
            events.append(federation.answer(self.name, call))
        for removal, finding in outcome.findings.items():
            if self.may(removal):
                one = self.certificates[removal]
                results[one.file] = _said(finding)
                call = federation.members[self.name].call("attest", one.data, finding.steps, results[one.file])
                event, signed[one.file] = federation.answer(self.name, call)
                events.append(event)
        if not events:
            return {}
        federation.open_ledger()
        announce_rotations(federation)
        if refused := federation.ask_ledger("submit", events):
            raise TrustChainError(f"the ledger refused the attestation: {'; '.join(refused)}")
        federation.ask_ledger("settle", federation.witnesses)
        for file, data in signed.items():
            try:
                federation.run.write(file, publish_from(federation.run.path, data, federation.identity))
            except LedgerError as error:
                raise TrustChainError(str(error)) from None
        seal_again(federation)
        return results


def _said(finding: Finding) -> str:
    """Result of an UNLEARN_ATTEST or an AUDIT."""
    return SAME if finding.difference is None else str(finding.difference)
