"""OpenAI's images API: its requests become ours, and our results its answers."""
