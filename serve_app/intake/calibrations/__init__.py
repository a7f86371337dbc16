"""Calibrations: the loss of tiers, measured on prompts and control images of the owner's."""
