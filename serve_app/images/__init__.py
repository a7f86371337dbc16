"""Images: decoding control images within limits, encoding results, and the arithmetic of sizes."""
