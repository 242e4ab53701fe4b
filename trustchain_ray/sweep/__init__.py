"""The verb `sweep`: outcomes of the participation game, or of real federations, over a grid of configurations.

Read `runner.py` as the table of contents, then `points.py` (the grid), `trial.py` (what one trial of Ray Tune does),
`outcomes.py` (what is reported, and the exact equilibrium beside it), `summary.py` and `plots.py`.
"""
