"""The programs of the integrations, as they are but for how long they wait."""
