from __future__ import annotations

from caesura.integrations import shipping, tensorboard

shipping.POLL_S = 0.1

if __name__ == "__main__":
    shipping.main(tensorboard.open_run)
