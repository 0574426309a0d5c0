"""The routes, a file a resource: what the API says over HTTP about what is in the store."""
