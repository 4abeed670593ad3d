"""Patterns: each returns a region, or the reason why it is none."""
