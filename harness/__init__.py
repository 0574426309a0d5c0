"""What demo and live tests run on; no part of the package."""
