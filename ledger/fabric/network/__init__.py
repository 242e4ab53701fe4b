"""A Fabric network of two organizations on this machine, for trials and tests."""

from ledger.fabric.network.network import Network, running

__all__ = ["Network", "running"]
