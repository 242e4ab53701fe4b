"""Hyperledger Fabric as private chain: the client of a peer's Gateway service.

Nothing is imported here: ``ledger.fabric.network`` needs neither grpcio nor protobuf.
"""
