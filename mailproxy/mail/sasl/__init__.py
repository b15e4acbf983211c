"""SASL (RFC 4422), once for all protocols.

clients.py   what clients send: we are the server of the exchange
backends.py  what we send to backends: we are the client of the exchange
"""
