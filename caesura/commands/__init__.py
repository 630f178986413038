"""The commands that speak to a running server, over its public API alone. They import nothing that serves or trains."""
