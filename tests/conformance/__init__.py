"""The conformance table: every QoS2 call with its arguments, its result or error, and its effect on the wire.

The table is data (rows/, in the words of vocabulary.py and calls.py) and is run by drivers, which know how
to say a row to the core, to qos2.win32 and to libqwave. What Microsoft documents per call is documented.py.
"""
