"""From one audit record to each output format; no renderer computes."""
