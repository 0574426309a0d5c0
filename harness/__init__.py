"""Real services and media for demo, soak and live tests; not part of the package."""
