"""Measured gains: runs of the graph in onnxruntime, confirmed in float64."""
