"""Graders: what gives a model's answer its reward. One file per type; `build.py` puts them together."""
