"""What the loop has on Windows besides sockets: pipes, child processes and signals, on the same port.

Sockets come to the port as notifications of their state; these come as what ports were made for, packets of
operations that have ended. `overlapped` keeps count of the operations, `pipes` has the transports, `blocking` the
files that know no such operations, `named_pipes` servers and clients, `processes` the children, `signals` Ctrl-C.
`system` is what the loop inherits.
"""
