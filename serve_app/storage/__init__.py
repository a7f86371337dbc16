"""Files that outlive a process, and guarded requests to other hosts."""
