from __future__ import annotations

from typing import Any

from caesura.integrations import shipping, wandb

shipping.POLL_S = 0.1
wandb.INIT_TIMEOUT_S, wandb.FINISH_TIMEOUT_S = 1.5, 5.0
wandb.ASK_EVERY_S, wandb.PATIENCE_S = 0.2, 3.0
wandb.TRANSMIT_EVERY_S = 1.0
patient_settings: Any = wandb.client_settings


def impatient_settings(*given: Any) -> Any:
    settings = patient_settings(*given)
    settings.x_transaction_log_flush_interval = 0.2
    return settings


wandb.client_settings = impatient_settings

if __name__ == "__main__":
    shipping.main(wandb.open_run)
