"""The endpoint: a store that follows the registry, the HTTP API over it, Ray Serve around that."""
