"""Caesura: OpenAI's fine-tuning API over open-weight models, on machines of one's own."""

__version__ = "0.1.0"
