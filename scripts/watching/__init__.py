"""`shoal watch`: a live page about runs, sweeps and servers, by a process that reads their folders.

The one idea: the folder of a run says all that the page shows, so the page costs the run nothing, opens finished runs too, and
needs no message of its own.
"""
