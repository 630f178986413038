"""`caesura check`: is a data file fit to train on, and what would a job make of it? No server, key or database."""
