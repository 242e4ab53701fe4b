"""`trustchain evaluate`: scores of a released model, and metrics of forgetting, in this process and without Ray."""
