"""The verb `keys`: key files, the consortium's document, lost keys, and TLS for Ray."""
