"""Decoding what clients send, in processes of their own."""
