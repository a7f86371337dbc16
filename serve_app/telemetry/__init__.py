"""What operators see: every metric, and the spans and ids of a request."""
