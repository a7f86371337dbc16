"""HTTP and nothing else: the application, its routes by subject, what every request passes, and the shape of errors."""
