"""Programs of the benchmark that import torch. Each takes one JSON argument and ends with one line of JSON."""

from __future__ import annotations

import json
import sys
from typing import Any


def arguments() -> dict[str, Any]:
    return json.loads(sys.argv[1])


def finish(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)
