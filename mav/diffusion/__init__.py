"""Diffusion: noise schedules, what a network predicts, guidance and samplers. It imports torch and einops only."""
