"""Distrust: rules that merge updates of which some are hostile, and the reputation of organizations."""
