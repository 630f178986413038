"""Which caller a key stands for."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Mapping

from caesura.store.keys import Keys
from caesura.tenancy import Caller, hash_key

#: A key that was looked up is believed for so long: a revoked one opens nothing after it.
BELIEVED_S = 2.0
MAX_BELIEVED = 1024


class KeyRing:
    """`fixed`: callers by the hash of keys that are in no table, the server's own. The rest `keys` knows.

    `find` may be called from any thread.
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
        return believed[0] if believed is not None and time.monotonic() - believed[1] < BELIEVED_S else None

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
