"""Forgetting: what it costs, how it is measured, and the approximate methods it is compared with."""
