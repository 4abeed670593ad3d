"""From a file to a checked, simplified, frozen graph."""
