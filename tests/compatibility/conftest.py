from __future__ import annotations

from tests.api.conftest import clean_environment, client, http, http_server, service, settings

__all__ = ["clean_environment", "client", "http", "http_server", "service", "settings"]
