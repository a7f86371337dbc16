"""The diffusion pipeline: loading a checkpoint, conditioning, the denoising loop, acceleration and offloading."""
