"""Kinds of storage that images are read from: a module each."""
