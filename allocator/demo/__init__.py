"""`allocator demo`: a model rollout from beginning to end, on one machine, within a minute.

Three versions of a model are trained, the server is started as a process of its own, and held-out images are sent
through it as requests: the better candidate rises, the broken one is caught. In: a seed. Out: a table that lives
while it runs, a summary in words, a figure.
"""
