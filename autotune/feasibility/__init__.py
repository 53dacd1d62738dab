"""What is rejected before a launch: rules (certain), model limits (certain), memory (likely, calibrated), dominance."""
