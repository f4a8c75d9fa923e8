from __future__ import annotations


def measure(own, seen, kinds): return [(None,None)]*len(seen)
