"""How a model edits: loading a checkpoint, conditioning, the denoising loop, acceleration and offloading."""
