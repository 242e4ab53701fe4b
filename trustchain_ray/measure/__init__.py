"""The verb `measure`: a response surface of real trainings over ranks, coalitions and efforts.

Read `surface.py` as the table of contents, then `simulation.py` (what a coalition trains), `estimate.py` (standard
errors) and `kriging.py` (from merges and some real federations to all points).
"""
