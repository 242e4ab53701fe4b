"""Metrics of forgetting. All but `scoring`, `generation`, `quantisation` and `relearning` are pure functions."""
