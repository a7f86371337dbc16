"""The models: what each one is (`registry`, free of torch) and how it edits (everything else here)."""
