"""Images: decoding what clients send within limits, encoding what they get, and the arithmetic of sizes."""
