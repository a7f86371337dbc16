"""LoRA adapters: where files come from, what is in them, who uses them, and how they reach the weights."""
