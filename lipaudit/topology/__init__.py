"""From a graph to a tree of regions."""
