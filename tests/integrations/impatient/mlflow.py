from __future__ import annotations

from caesura.integrations import mlflow, shipping

shipping.POLL_S = 0.1

if __name__ == "__main__":
    shipping.main(mlflow.open_run)
