"""SASL (RFC 4422), once for all protocols.

clients.py   messages from clients: the proxy is the server of the exchange
backends.py  messages to backends: the proxy is the client of the exchange
"""
