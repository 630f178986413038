from __future__ import annotations

from caesura.training.memory import step_too_large
from tests.training.conftest import MakeSetup


def test_a_step_of_all_weights_that_does_not_fit_is_told_what_takes_less(make_setup: MakeSetup) -> None:
    _, with_adapter = make_setup()
    _, full = make_setup(adapter_type="full")
    messages = [step_too_large(3, plan, "supervised").message for plan in (with_adapter, full)]

    assert messages[1].startswith(messages[0])
    assert messages[1].endswith("an adapter (adapter.type 'lora') takes far less.")
