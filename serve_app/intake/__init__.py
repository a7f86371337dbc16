"""From a request to a committed job, and from a job to an answer. No HTTP, no Ray, no torch."""
