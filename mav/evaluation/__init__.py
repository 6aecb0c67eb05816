"""Evaluation: metrics with their protocol and interval, the demo world's oracle, and a human study."""
