"""Diffusion: noise schedules, what a network predicts, guidance and samplers. torch only."""
