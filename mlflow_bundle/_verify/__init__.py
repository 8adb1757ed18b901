"""Checks that a bundle is whole: structure, tables, full, and a subset of the contents (spec/v1.md, 11)."""
