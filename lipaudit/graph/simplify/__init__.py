"""Passes that make the graph smaller and keep its function; one pass a file."""
