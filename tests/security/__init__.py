"""Attacks, one file for each: what mailproxy does with peers that mean harm."""
