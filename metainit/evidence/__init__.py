"""Evidence: curves, controls, intervals, the probe, tables and pictures."""
