"""Keys over the life of a run: rotations that its log must learn of, and members of the consortium."""

from typing import TYPE_CHECKING, Any

from ledger import consortium
from ledger.errors import LedgerError
from ledger.identity_document import rotated_document
from trustchain_ray.config import Config
from trustchain_ray.errors import TrustChainError

if TYPE_CHECKING:
    from trustchain_ray.assembly import Assembly


def announce_rotations(federation: "Assembly") -> list[str]:
    """Log the keys that organizations rotated since the run was at work, and publish their documents anew.

    Everything is sent again where it was cut short. Who does not answer announces its key another time.

    Returns
    -------
    list
        Organizations whose key was revoked in this run, and no other one admitted: their statements do not count.

    Raises
    ------
    TrustChainError
        The key with which an organization registered is not in its key folder any more; the ledger refuses; or the
        run's private chain keeps the keys that it knows.
    """
    run = federation.run
    revoked: list[str] = federation.ask_ledger("revoked")
    present = [name for name in federation.members if name not in federation.offline and name not in revoked]
    documents: dict[str, dict[str, Any]] = {name: run.read_json(f"identities/{name}.json") for name in present}
    key_ids = {name: document["key_id"] for name, document in documents.items()}
    answers = federation.gather("rotation", key_ids, names=present)
    for name, event in answers.items():
        if event is not None:
            if federation.config.ledger.private.kind == "fabric":
                raise TrustChainError(
                    f"organization {name!r} rotated its key, but the chaincode of the private chain knows an "
                    "organization by one key: go on with the retired one (put its file back), and rotate with a new "
                    "channel"
                )
            _submit(federation, [event])
            documents[name] = rotated_document(documents[name], event)
            run.write_json(f"identities/{name}.json", documents[name])
            federation.progress(f"{name} rotated its key: {key_ids[name][:16]} -> {documents[name]['key_id'][:16]}")
    events = []
    for name, document in documents.items():
        if "rotations" in document:
            call = federation.members[name].call("sign_event", "REGISTER", federation.registration(name, document))
            events.append(federation.answer(name, call))
    if events:
        _submit(federation, events)
    return revoked


def _submit(federation: "Assembly", events: list[dict[str, Any]]) -> None:
    if refused := federation.ask_ledger("submit", events):
        raise TrustChainError(f"the ledger refused a rotated key: {'; '.join(refused)}")


def check_members(
    config: Config, keys: dict[str, str], coordinator: str, agreed: dict[str, str] | None = None
) -> dict[str, str]:
    """Refuse organizations that are no members of the consortium (`trust.consortium`).

    Parameters
    ----------
    keys : public key in hex of each organization that registers.
    coordinator : public key in hex of the run's coordinator.
    agreed : the manifest's entry of a run that has begun; its version must be one of the document.

    Returns
    -------
    dict
        Entry of the manifest: digest, number and name of the version in force when the run began; empty without a
        consortium.

    Raises
    ------
    TrustChainError
        Naming organization and file, and what to do.
    """
    path = config.trust.consortium
    if not path:
        return {}
    try:
        document = consortium.read_consortium(path)
        force = document.force
    except LedgerError as error:
        raise TrustChainError(f"trust.consortium: {error}") from None
    where = f"{path} (version {force.version} of consortium {force.name!r})"
    for name, key in keys.items():
        if force.members.get(name) != key:
            known = "another key" if name in force.members else "no member of that name"
            verb = "replace" if name in force.members else "admit"
            raise TrustChainError(
                f"organization {name!r} is not admitted: {where} has {known}, not {key[:16]}; "
                f"trustchain keys consortium propose {path} {verb} {name}=IDENTITY.json, then the members sign it"
            )
    if force.coordinator != coordinator:
        raise TrustChainError(
            f"the coordinator's key {coordinator[:16]} is not the one in {where}, {force.coordinator[:16]}; "
            f"trustchain keys consortium propose {path} coordinator IDENTITY.json, then the members sign it"
        )
    digests = {version.digest for version in document.versions}
    if agreed is not None and agreed["digest"] not in digests:
        raise TrustChainError(
            f"{where} does not descend from version {agreed['version']} ({agreed['digest'][:16]}), with which the run "
            "began; point trust.consortium to that document"
        )
    return agreed or {"digest": force.digest, "name": force.name, "version": str(force.version)}
