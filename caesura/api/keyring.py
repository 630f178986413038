"""Which caller a key stands for, and in which project it works."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

from caesura.api.explain import quote
from caesura.errors import Unauthenticated
from caesura.store.keys import Keys
from caesura.tenancy import Caller, Role, hash_key

#: A key that was looked up is believed for so long: a revoked one opens nothing after it.
BELIEVED_S = 2.0
MAX_BELIEVED = 1024


class KeyRing:
    """`fixed`: callers by the hash of keys that are in no table, the server's own. The rest `keys` knows.

    May be used from any thread.
    """

    def __init__(self, keys: Keys, fixed: Mapping[str, Caller]) -> None:
        self._keys = keys
        self._fixed = fixed
        #: By the key's hash: the caller, and when it was looked up.
        self._believed: OrderedDict[str, tuple[Caller, float]] = OrderedDict()

    def recall(self, key: bytes) -> Caller | None:
        """What `find` can say without asking the database; None: ask it."""
        digest = hash_key(key)
        for own, caller in self._fixed.items():
            if hmac.compare_digest(own, digest):
                return caller
        believed = self._believed.get(digest)
        return believed[0] if believed is not None and time.monotonic() - believed[1] <= BELIEVED_S else None

    def find(self, key: bytes) -> Caller | None:
        """None for a key that opens nothing. Raises DatabaseUnavailable."""
        recalled = self.recall(key)
        if recalled is not None:
            return recalled
        digest = hash_key(key)
        self._believed.pop(digest, None)
        caller = self._keys.find(digest)
        if caller is not None:
            self._believed[digest] = caller, time.monotonic()
            while len(self._believed) > MAX_BELIEVED:
                self._believed.popitem(last=False)
        return caller

    def select(self, caller: Caller, organization: str, project: str) -> Caller:
        """The caller in the organization and the project that its request's headers name; empty: its own.

        Raises Unauthenticated for what its key does not open. The server's first key, which clients of OpenAI bring
        together with names from there, works in its own project where there is none of that name.
        """
        is_known = caller.key_id is not None
        if is_known and organization not in ("", caller.organization, caller.organization_id):
            raise Unauthenticated(
                f"The key belongs to the organization '{caller.organization_id}', not to '{quote(organization)}', "
                "which the header OpenAI-Organization names.",
                code="mismatched_organization",
            )
        if project in ("", caller.project):
            return caller
        named = self._keys.find_project(project) if caller.role is Role.ADMIN else None
        if named is not None and (caller.is_server or named.organization == caller.organization):
            return replace(caller, project=named.id, organization=named.organization)
        if not is_known and not caller.is_server:
            return caller
        raise Unauthenticated(
            f"The key does not open the project '{quote(project)}', which the header OpenAI-Project names.",
            code="mismatched_project",
        )
