"""The HTTP API: routes and OpenAPI."""
