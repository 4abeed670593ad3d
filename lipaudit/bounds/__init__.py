"""Certified scalars and verified norms of linear operators."""
