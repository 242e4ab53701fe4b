"""The verb `measure`: a response surface of real trainings over ranks, coalitions and efforts.

Read `surface.py` as the table of contents, then `bench.py` (which trainings a surface needs), `simulation.py` (what a
coalition trains), `estimate.py` (standard errors) and `kriging.py` (joint efforts that were not measured).
"""
