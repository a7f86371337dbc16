"""From a request's body to plans that can be committed: checks, files, the effective value of every parameter."""
