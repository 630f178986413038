"""Base models and adapters as torch modules: what training and inference share."""
