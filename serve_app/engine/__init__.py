"""A plan in, an image and its timings out: one process, no Ray. With `pipeline`, the only room that imports torch."""
