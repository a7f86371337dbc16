"""What runs in and around the replicas of the Ray deployments. Besides this room, only `app` and `commands` use Ray."""
