"""What runs in every ingress next to the requests: it claims work, delivers webhooks, and cleans up."""
