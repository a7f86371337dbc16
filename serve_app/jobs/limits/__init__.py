"""What tenants have used of their limits, counted for all ingresses."""
