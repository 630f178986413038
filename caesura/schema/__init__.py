"""The wire, in pydantic: what requests may hold and what answers look like. No I/O, no logic."""
