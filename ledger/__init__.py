"""The ledger: identities, signed events, the Merkle log, anchors on a public chain, and the verifier.

Nothing is imported here: an auditor who runs ``ledger.cli`` loads only what a check needs.
"""
