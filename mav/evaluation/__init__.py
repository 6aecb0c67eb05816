"""The evaluation: metrics with their protocol and interval, on videos of any system."""
