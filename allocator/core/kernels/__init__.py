"""Loops over arrays that numba compiles, and nothing else. Callers have checked every argument; deciding needs none of it."""
