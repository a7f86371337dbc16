"""Questions about requests: status, results, events, images, previews."""
