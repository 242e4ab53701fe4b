"""What an organization remembers of secure sums, so that no later one shows what the earlier ones hid.

Two sums of the same updates over different members differ by the updates of some of them. Training can be repeated, and
a replay gives the same updates where nothing changed for them: so a member gives shares of an update for one list of
members alone. A removal is the exception, since it changes who is merged: each adds one list.

Format
------
`<organization>.secure.json` beside the salts, mode 0600: `keys`, the public keys of all parties as they were first
seen, or rotated since; and `revealed`, for the keyed digest of an update the members of each sum, by the removal
(empty: training).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ledger.canonical import canonical_json, parse_canonical, write_atomic
from ledger.errors import LedgerError
from ledger.identity_document import lineage_of, read_identity
from trustchain_ray.errors import TrustChainError


class Revealed:
    """The memory of one organization in one run.

    Parameters
    ----------
    path
        The file; it is made when there is something to remember.

    Raises
    ------
    TrustChainError
        The file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: dict[str, str] = {}
        self._lists: dict[str, dict[str, list[str]]] = {}
        if path.exists():
            self._load()

    def pin(self, keys: Mapping[str, str], rotated: Mapping[str, Any] | None = None) -> dict[str, str]:
        """Take the parties' public keys (hex, by name) as they are first seen; all that are known.

        Parameters
        ----------
        rotated
            Identity documents of parties that rotated their keys, by name: they lead from one key to the next.

        Raises
        ------
        TrustChainError
            A party comes with a key for which the one before did not sign: somebody would read what is meant for it.
        """
        documents = rotated or {}
        for name, key in sorted(keys.items()):
            before = self._keys.get(name, key)
            if before != key and not _leads(name, before, key, documents.get(name)):
                raise TrustChainError(
                    f"secure aggregation: the key of {name} is another one than when the run began ({self._path}), and "
                    "no rotation leads from one to the other; compare both with its registration in the log"
                )
        if any(self._keys.get(name) != key for name, key in keys.items()):
            self._save({**self._keys, **keys}, self._lists)
        return dict(self._keys)

    def allow(self, update: str, removal: str, members: Sequence[str]) -> None:
        """Remember, durably, that shares are given for a sum; before they are.

        Parameters
        ----------
        update
            Keyed digest of the own update.
        removal
            In which it is replayed; empty: none.
        members
            Of the sum, sorted.

        Raises
        ------
        TrustChainError
            The update is in another sum already.
        """
        known = self._lists.get(update, {})
        if list(members) in known.values():
            return
        if known and (not removal or removal in known):
            raise TrustChainError(
                f"secure aggregation: this update is in a sum of {', '.join(next(iter(known.values())))}; the "
                f"difference to one of {', '.join(members)} could show an update; repeat the round with the same ones"
            )
        self._save(self._keys, {**self._lists, update: {**known, removal: list(members)}})

    def _save(self, keys: dict[str, str], lists: dict[str, dict[str, list[str]]]) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._path, canonical_json({"keys": keys, "revealed": lists}), 0o600)
        except (LedgerError, OSError) as error:
            raise TrustChainError(f"secure aggregation: {error}") from None
        self._keys, self._lists = keys, lists

    def _load(self) -> None:
        try:
            said: Any = parse_canonical(self._path.read_bytes())
            self._keys = {str(name): str(key) for name, key in said["keys"].items()}
            self._lists = {
                str(update): {str(removal): [str(name) for name in names] for removal, names in lists.items()}
                for update, lists in said["revealed"].items()
            }
        except (LedgerError, OSError, KeyError, TypeError, AttributeError) as error:
            raise TrustChainError(
                f"{self._path}: the memory of secure sums is damaged ({error}); restore it: without it nobody knows "
                "which shares were given away"
            ) from None


def _leads(name: str, before: str, key: str, document: Any) -> bool:
    """Whether a document has signed rotations that lead from one key of an organization to the other."""
    try:
        lineage = lineage_of(read_identity(canonical_json(document), name))
    except LedgerError:
        return False
    return before in lineage and lineage[-1] == key
