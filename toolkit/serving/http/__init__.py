"""ASGI middleware, request bodies and the HTTP server, between the socket and the routes.

Order: access_control, body_stream < middleware; body_stream < server; request_body < openapi.
"""
