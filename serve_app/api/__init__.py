"""HTTP and nothing else: the application, its routes by subject, middleware, bodies, and the shape of errors."""
