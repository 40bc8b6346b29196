"""Bellman Optimal Stepsize Straightening (arXiv 2312.16414) for any velocity network.

The convention everywhere: noise at t = 0, data at t = 1, velocity ``v(x, t) = dx/dt``.
"""
