"""The rules of QoS2, pure: decides about flows, reads no clock of its own and does no I/O.

`service.py` has one method per request and is all that the edges call; `ports.py` says what it needs
of them. The other files are its parts: priorities (marks), arguments and destinations (what callers may
say), rules (what the administrator says), slots and flows (the table), endings and accounts (what is left
when flows end), views; and for adaptive flows estimates, notifications (who waits), tracking (who uses a host).
"""
