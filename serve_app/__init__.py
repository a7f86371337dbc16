"""A Ray Serve application that serves image-editing LoRAs for the Qwen-Image-Edit family."""
