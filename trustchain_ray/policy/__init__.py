"""Q-policies of participation: learned with RLlib's DQN, judged by exact oracles, read with NumPy alone."""
