"""ASGI middleware, request bodies and the HTTP server, between the socket and the routes.

Order: timeouts < request_body, body_limit, server; request_body < openapi; the others need none of these.
"""
