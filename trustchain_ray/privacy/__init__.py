"""Differential privacy of LoRA training: what is clipped and noised, by how much, and what it has cost so far."""
