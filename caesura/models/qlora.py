"""Whether a base can be held in 4 bits here (Dettmers et al. 2023, arXiv:2305.14314). No torch."""

from __future__ import annotations

from importlib.util import find_spec

from caesura.errors import InvalidRequest

#: What `transformers` needs for it; the extra `qlora` has them.
PACKAGES = ("accelerate", "bitsandbytes")


def check_qlora(has_gpu: bool) -> None:
    """Raises InvalidRequest, with the remedy, where torch sees no GPU or a package is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    reason = None
    if missing:
        reason = f"needs the package '{missing[0]}', which is not installed here: pip install 'caesura[qlora]'"
    if not has_gpu:
        reason = "needs a GPU, and torch sees none here (or the setting 'device' is 'cpu'): run the server where one is"
    if reason is not None:
        raise InvalidRequest(
            f"The adapter type 'qlora' {reason}; or use 'lora'.", param="adapter.type", code="invalid_value"
        )
