"""The HTTP surface: one thin file a resource; `errors.py` is the one table from exception to answer."""
