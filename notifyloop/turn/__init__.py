"""What runs in a turn, and nothing else: the way of an event from the port to the protocol and back.

From below: `primitives`; `interest` and `interests`, what is wanted of descriptors; `timers`; `state`, what a turn
hands to the next; `surface`, what all this needs of its loop; `handles`; `scheduling` and `turn`, the queue and who
runs it; `waits` and `readiness`, who is called for a descriptor; `sockets`, the coroutines of sockets;
`transport_state`, `transport`, `stream` and `datagram`.

A `.pxd` beside a module is for compiling it: see docs/architecture.md.

It imports the port and itself. A function whose first parameter is a loop is a method of it: `notifyloop.loop` says of
which name.
"""
