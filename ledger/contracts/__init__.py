"""The anchor contract: Vyper source and its compiled artifact."""
