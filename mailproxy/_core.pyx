"""The compiled core: one file with all of its modules, and what they were made from."""

cdef extern from *:
    const char *MAILPROXY_SOURCES

SOURCES = MAILPROXY_SOURCES.decode("ascii")
"""`compiled.digest` of the sources."""
