"""Federated LoRA fine-tuning between organizations on Ray, with a verifiable log and exact forgetting."""

__version__ = "0.1.0"
