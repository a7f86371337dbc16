"""LoRA adapter files: where they come from, their headers and key styles, receipts, and a cache on the node's disk."""
