"""The routes, one module for each resource: the API over HTTP on top of the store."""
