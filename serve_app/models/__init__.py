"""The models: what each one is (`registry`), and what an edit with it is (everything else here). Free of torch."""
