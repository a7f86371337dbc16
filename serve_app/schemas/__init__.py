"""The bodies of the HTTP contract: what clients send, what they get, and which text is accepted."""
