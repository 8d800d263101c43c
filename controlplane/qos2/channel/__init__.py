"""The synchronous transport of a handle: one connection to the daemon, any number of threads and calls under way.

Strategy: no thread is there only to read, and no lock is held while anything waits. Of the threads that wait
for an answer one, the leader, receives for all: it hands each reply to its call, and once its own is there it
hands the lead to the waiting thread that came last. So a lone thread pays one send and one receive per call.
Calls that were only begun, which nobody may be waiting for, have a helper thread: it leads while there are such
and nobody else does, and ends with the last of them.

An exception out of a signal handler may come between almost any two instructions of the main thread. So the lead
is a lock held by a `with` statement, which no exception can leak; a packet stays in the channel until it is
delivered, if need be by who leads next; and a follower that was not woken looks after itself before long. Of a
call that was given up, what waits at the daemon is cancelled and what its late answer began is ended.

A channel belongs to the process that made it. A forked child's copy is closed within fork(), and its lock is
made anew, since a thread that does not exist there may hold the old one.
"""

from qos2.channel.operation import Operation as Operation
from qos2.channel.transport import Channel as Channel
