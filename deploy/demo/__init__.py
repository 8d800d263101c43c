"""The lab and what runs in it: namespaces, senders, captures, and the live demonstration (`python -m demo`).

Not part of the installed package: tests and benchmarks import the same lab, so that all three are judged alike.
"""
