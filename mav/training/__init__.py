"""Training: one loop, and what each network of the cascade trains on."""
