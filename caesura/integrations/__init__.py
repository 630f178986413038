"""Sends what jobs tell of their steps to Weights & Biases, MLflow and TensorBoard.

`shipper`, a thread of the server, starts a process for each shipment that has something to send: `wandb`, `mlflow` or
`tensorboard`, the only modules that import these libraries. Such a process opens the job's run (`runs` says what one
is) and ships (`shipping`) until the job rests. It may die at any time: the job's events are the buffer, and the
shipment's row says how far the run has come.

To add one: a module with a `Run` beside those three, its `Kind` in `kinds`, and what may be asked of it in
`caesura/schema/integrations.py`.
"""
