"""Folders that ai-toolkit leaves behind: its jobs, checkpoints, sample images and sample settings. Without torch."""
