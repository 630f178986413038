"""What Caesura costs and gains on the machine at hand, beside TRL: `python -m benchmarks` prints Markdown tables.

Nothing here is imported by the package or by its tests, and no test times anything. Programs that import torch run
in processes of their own (`benchmarks/programs`), so that each has its own threads and its own peak of memory.
"""
